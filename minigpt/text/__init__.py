"""Text becomes tokens, and tokens batches: a byte-level BPE tokenizer, a character tokenizer, datasets of token blocks,
collators for the objectives, a corpus.

bpe.py is the algorithm; read it first. tokenizer.py puts patterns, special tokens and files around it.
"""

from minigpt.text.char import CharTokenizer
from minigpt.text.collators import DataCollatorForLanguageModeling
from minigpt.text.corpus import default_corpus
from minigpt.text.dataset import TextDataset
from minigpt.text.knowledge import DataCollatorForKnowledge, Gazetteer
from minigpt.text.tokenizer import Tokenizer

__all__ = ["CharTokenizer", "DataCollatorForKnowledge", "DataCollatorForLanguageModeling", "Gazetteer", "TextDataset",
           "Tokenizer", "default_corpus"]
