"""The only file that the tests import. It leads from the names that the tests know to your functions; leave it as it
is: when your work is graded, it is ours again, and so is given/. The submission is what is in student/.
"""

from given import tiny
from student import bpe, cache, generate, pairs, sampling, split, tokenizer

split_gpt2 = split.split_gpt2
split_gpt4 = split.split_gpt4
merge = pairs.merge
train = bpe.train
encode_piece = bpe.encode_piece
decode = tokenizer.decode
encode = tokenizer.encode
to_text = tokenizer.to_text
from_text = tokenizer.from_text
softmax = sampling.softmax
top_k = sampling.top_k
top_p = sampling.top_p
repetition_penalty = sampling.repetition_penalty
draw = sampling.draw
attend = cache.attend
speculative = generate.speculative


def count_pairs(words):
    """As a sorted list [left, right, how often], which can be handed over."""
    return sorted([left, right, often] for (left, right), often in pairs.count_pairs(words).items())


def generate_tiny(weights, prompt, uniforms, temperature, end):
    """The new tokens that given/tiny.py makes, and the tokens that it was given, call by call."""
    fed = []

    def model(tokens, past):
        fed.append(list(tokens))
        return tiny.forward(weights, tokens, past, cache.attend)

    return generate.generate(model, prompt, uniforms, temperature, end), fed


def speculative_often(p, q, drafted, u):
    """The first token of many rounds: drafted (rounds, n), u (rounds, n + 1)."""
    return [generate.speculative(p, q, one, numbers)[0] for one, numbers in zip(drafted, u, strict=True)]
