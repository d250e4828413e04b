"""Knowledge-enhanced pre-training: names are hidden as a whole, and facts are told in sentences.

A name of several tokens gives itself away if only a part of it is hidden: of "Johann Sebastian [MASK]" nothing is
learnt about the man. ERNIE (arXiv:1904.09223) and salient span masking (REALM, arXiv:2002.08909) hide whole entities,
so that the rest of the sentence must tell them. KELM (arXiv:2010.12688) writes the triples of a knowledge base as
sentences and mixes them into the text. Here: a Gazetteer finds the names, `verbalise` writes the triples, and
DataCollatorForKnowledge makes batches of both. `minigpt bench knowledge` measures what it is good for.
"""

import zlib
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from minigpt.text.collators import DataCollatorForLanguageModeling, check_share
from minigpt.text.tokenizer import Tokenizer
from minigpt.text.words import Words

END = -1  # the key under which a node of the trie says that a name ends there


class Gazetteer:
    """A set of names, to be found among token ids.

    The names are kept as a trie over ids: node[id] is the node after one more token. A name stands in it as it is
    tokenized at the beginning of a text and after a space. Names that the vocabulary cannot write are left out.
    ValueError if none is left.
    """

    def __init__(self, names: Iterable[str], tokenizer: Tokenizer):
        if isinstance(names, str):
            raise TypeError(f"Gazetteer: names is {names[:60]!r}, must be a list of names")
        names = list(names)
        for name in names:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"Gazetteer: a name is {name!r}, must be text")
        self.words, self.names = Words(tokenizer), []
        self._root: dict = {}
        for name in dict.fromkeys(names):
            spellings = _spellings(name, tokenizer)
            self.names += [name] * bool(spellings)
            for ids in spellings:
                node = self._root
                for id in ids:
                    node = node.setdefault(id, {})
                node[END] = {}
        if not self.names:
            raise ValueError("Gazetteer: there is no name that the tokenizer can write, must be one or more")

    @classmethod
    def from_file(cls, path: str | PathLike, tokenizer: Tokenizer) -> "Gazetteer":
        """Names from a file, as `read_names` reads it."""
        try:
            return cls(read_names(path), tokenizer)
        except ValueError as error:
            raise ValueError(str(error).replace("Gazetteer", str(path))) from None

    def __len__(self) -> int:
        return len(self.names)

    def find(self, ids: np.ndarray) -> list[tuple[int, int]]:
        """[(start, end), ...] of the names in ids (T,), from left to right: the longest at each place, none within
        another, none that is a part of a longer word."""
        goes_on = [*self.words.continues(ids).tolist(), False]                                      # (T + 1,)
        ids, spans, start = ids.tolist(), [], 0
        while start < len(ids):
            end = None if goes_on[start] else self._longest(ids, start, goes_on)
            if end is not None:
                spans.append((start, end))
            start = end or start + 1
        return spans

    def _longest(self, ids, start, goes_on):
        """Where the longest name that begins at `start` ends, or None."""
        node, end = self._root, None
        for i in range(start, len(ids)):
            node = node.get(ids[i])
            if node is None:
                break
            if END in node and not goes_on[i + 1]:
                end = i + 1
        return end


def _spellings(name, tokenizer):
    """The ids of a name at the beginning of a text and, where that differs, after a space."""
    spellings = []
    for text in (name, " " + name):
        try:
            spellings.append(tokenizer.encode(text))
        except ValueError:  # a character that the vocabulary lacks
            pass
    if len(spellings) == 2 and spellings[1] == tokenizer.encode(" ") + spellings[0]:
        spellings.pop()
    return spellings


class DataCollatorForKnowledge(DataCollatorForLanguageModeling):
    """Hides whole names, as spans; arguments and batches as DataCollatorForLanguageModeling's, with

    gazetteer      the names.
    entity_share   the share of the names that are hidden: each by a draw of its own, so that a long one is hidden as
                   often as a short one. Tokens outside of names are drawn as many as bring the mean to mlm_probability
                   of the tokens that are not special; in a block of which names are so large a part that they alone
                   would exceed it, fewer are hidden. A name is masked, replaced by random tokens or kept as one
                   (SpanBERT, arXiv:1907.10529). Not all names, because a sentence without any tells nothing.
    triples        sentences that tell facts (see `verbalise`), and triple_share: the share of the rows in which such
                   sentences, drawn at random, stand instead of the text. The number of tokens remains. With mlm=False
                   that is all that is done, for a causal model.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        gazetteer: Gazetteer,
        entity_share: float = 0.5,
        triples: Sequence[str] = (),
        triple_share: float = 0.1,
        **options,
    ):
        super().__init__(tokenizer, **options)
        if isinstance(triples, str):
            raise TypeError(f"{self.name}: triples is {triples[:60]!r}, must be a list of sentences")
        if not isinstance(gazetteer, Gazetteer):
            raise TypeError(f"{self.name}: gazetteer is {gazetteer!r}, must be a Gazetteer")
        if self.whole_word_mask:
            raise ValueError(f"{self.name}: whole_word_mask is True, must be False: names are masked")
        entity_share = check_share(self.name, "entity_share", entity_share)
        triple_share = check_share(self.name, "triple_share", triple_share)
        self.gazetteer, self.entity_share = gazetteer, entity_share
        self.sentences = [np.array(tokenizer.encode(f"{sentence}\n")) for sentence in triples]
        self.triple_share = triple_share if self.sentences else 0.0

    def fingerprint(self) -> str:
        names = zlib.crc32("\n".join(self.gazetteer.names).encode())
        triples = zlib.crc32(np.concatenate([*self.sentences, np.array([], int)]))
        return (f"{super().fingerprint()}, {self.entity_share} for {len(self.gazetteer)} names, crc32 {names:08x}, "
                f"{self.triple_share} triples, crc32 {triples:08x}")

    def label(self, ids, rng):
        if rng.random() < self.triple_share:
            ids = self._triples(len(ids), rng)
        return super().label(ids, rng)

    def choose(self, ids, rng):
        unit, free = np.full(len(ids), -1), ~self._special[ids]
        names = [(start, end) for start, end in self.gazetteer.find(ids) if free[start:end].all()]
        budget = self.mlm_probability * np.count_nonzero(free)                  # tokens to hide, on average
        named = sum(end - start for start, end in names)
        p = min(self.entity_share, budget / max(named, 1))
        for (start, end), draw in zip(names, rng.random(len(names)), strict=True):
            free[start:end] = False
            if draw < p:
                unit[start:end] = start
        rest = budget - p * named
        rest = rng.permutation(np.flatnonzero(free))[:int(rest) + (rng.random() < rest % 1)]
        unit[rest] = rest
        return unit

    def _triples(self, T, rng):
        """Sentences one after the other, cut to T tokens."""
        parts, size = [], 0
        while size < T:
            parts.append(self.sentences[rng.integers(len(self.sentences))])
            size += len(parts[-1])
        return np.concatenate(parts)[:T]


# ---------------------------------------------------------------------------------------------------------------
# sources


def verbalise(triples: Iterable[tuple[str, str, str]], templates: dict[str, Sequence[str]] | None = None) -> list[str]:
    """A sentence for each (subject, relation, object) and template of the relation: "{subject} lives in {object}.".
    Where there is none, the relation's own words stand between: "Ada born_in London" -> "Ada born in London."."""
    sentences = []
    for subject, relation, object in triples:
        for template in (templates or {}).get(relation) or ["{subject} " + relation.replace("_", " ") + " {object}."]:
            sentences.append(template.replace("{subject}", subject).replace("{object}", object))
    return sentences


def read_names(path: str | PathLike) -> list[str]:
    """Names or phrases, one a line; or the phrases of WordNet, from its own index.noun (of the package wordnet-base,
    say), of which those of several words are taken. ValueError names the file that is not such a text."""
    lines = _lines(path)
    if Path(path).name.startswith("index."):  # WordNet: "abstract_entity n 1 ...", after a licence set in by two spaces
        names = [line.split(" ", 1)[0].replace("_", " ") for line in lines if not line.startswith("  ")]
        names = [name for name in names if " " in name]
    else:
        names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path}: holds no names, must have one on each line")
    return names


def read_triples(path: str | PathLike) -> list[tuple[str, str, str]]:
    """Subject, relation and object, with tabs between, one triple a line. ValueError names the line that is not one."""
    triples = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"{path}: line {number} is {line[:60]!r}, must be subject, relation and object with tabs "
                             "between")
        triples.append(tuple(parts))
    if not triples:
        raise ValueError(f"{path}: is empty, must hold triples")
    return triples


def _lines(path):
    if not Path(path).is_file():
        what = "is not a plain file" if Path(path).exists() else "there is no such file"
        raise ValueError(f"{path}: {what}")
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()    # Windows writes a mark in front
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
