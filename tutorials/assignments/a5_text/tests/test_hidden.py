"""The tests that stay with the grader: texts in other scripts, ties, edges, infinite logits, and chance."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from test_public import all_at_once, calls, generated, tiny_weights

from minigpt.course.judging import as_tuple, equals, near
from minigpt.course.student import Failed
from minigpt.generate.sampling import probabilities
from minigpt.text import bpe

GPT2 = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
GPT4 = re.compile(r"'(?i:[sdmt]|ll|ve|re)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d{1,3}| ?(?:[^\s\w]|_)+[\r\n]*"
                  r"|\s*[\r\n]+|\s+(?!\S)|\s+")
# words and signs that rules meet at: emoji joined by U+200D, an accent of its own, U+200B, U+00A0, Arabic numbers
BITS = ["the", "Ünï", "e\u0301", "日本語", "हिन्दी", "👩\u200d👩\u200d👧", "\u200b", "\u00a0", "7", "2024", "٣٤",
        "_", "...", "'s", "'S", "'", "'ll", "'RE", " ", "  ", "   ", "\n", "\r\n", "\t", "$", "(", "x"]


def text_of(rng, count):
    return "".join(BITS[i] for i in rng.integers(0, len(BITS), count))


def by_gpt2(text):
    return GPT2.findall(text)


@pytest.mark.task("1.1", points=2, look="signs, numbers and letters of other scripts; white space at the end",
                  visibility="hidden")
def test_split_gpt2_of_any_text(adapters, rng):
    for text in (" ", "x", "\u200b", *(text_of(rng, count) for count in (5, 20, 200))):
        calls(adapters, "split_gpt2", by_gpt2(text), text=text)


@pytest.mark.task("1.2", points=2, look="signs before a word, newlines after signs, capitals after '",
                  visibility="hidden")
def test_split_gpt4_of_any_text(adapters, rng):
    for text in ("", "\r\n", *(text_of(rng, count) for count in (5, 20, 200))):
        calls(adapters, "split_gpt4", GPT4.findall(text), text=text)


@pytest.mark.task("2.1", points=2, look="pieces of one token, and pairs of two equal tokens", visibility="hidden")
def test_count_pairs_of_edges(adapters, rng):
    words = [([int(t) for t in rng.integers(0, 4, length)], int(rng.integers(1, 9))) for length in (0, 1, 2, 9, 30)]
    expected = Counter()
    for tokens, often in [*words, ([7, 7, 7], 1)]:
        for pair in zip(tokens, tokens[1:], strict=False):
            expected[pair] += often
    calls(adapters, "count_pairs", sorted([*pair, n] for pair, n in expected.items()), words=[*words, ([7, 7, 7], 1)])


@pytest.mark.task("2.2", points=3, look="a pair of equal tokens in a row of them; no token, one token",
                  visibility="hidden")
def test_merge_of_edges(adapters):
    for tokens, expected in (([], []), ([7], [7]), ([7] * 4, [9, 9]), ([7] * 5, [9, 9, 7]), ([8, 7, 7, 8], [8, 9, 8])):
        calls(adapters, "merge", expected, tokens=tokens, pair=(7, 7), new=9)


@pytest.mark.task("3.1", points=3, look="ties: the smaller left token, then the smaller right one; bytes beyond ASCII",
                  visibility="hidden")
def test_train_with_ties(adapters, rng):
    letters = list("abcd") + ["é", "🙂"]
    pieces = {"".join(letters[i] for i in rng.integers(0, 6, rng.integers(1, 6))): 2 for _ in range(40)}
    calls(adapters, "train", bpe.train(pieces, 60), pieces=pieces, count=60)
    calls(adapters, "train", [], pieces={}, count=3)
    calls(adapters, "train", [], pieces={"ab": 1, "c": 50}, count=3)


@pytest.mark.task("3.1", points=3, look="time: count over the different pieces, not over the text", visibility="hidden")
def test_train_on_a_long_text(adapters, rng):
    letters = np.array(list("etaoinshrdlu"))
    words = [" " + "".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(1500)]
    pieces = {word: int(50 * 1500 / (rank + 1)) for rank, word in enumerate(words)}    # 600 000 words, as Zipf has them
    calls(adapters, "train", bpe.train(pieces, 100), pieces=pieces, count=100)


def tokens_of(piece, merges):
    ranks = {tuple(pair): (rank, 256 + rank) for rank, pair in enumerate(merges)}
    return bpe.encode_piece([bpe.BYTE_ORDER.index(byte) for byte in piece.encode()], ranks)


def trained(rng):
    text = text_of(rng, 400) + "the theme of them all, aaaa " * 4
    return bpe.train(Counter(by_gpt2(text)), 60), text


@pytest.mark.task("3.2", points=6, look="rows of one letter, characters of several bytes, one byte, none",
                  visibility="hidden")
def test_encode_pieces(adapters, rng):
    merges, text = trained(rng)
    for piece in ("", "a", "aaaaaaa", *by_gpt2(text_of(rng, 12)), *by_gpt2(text)[:8]):
        calls(adapters, "encode_piece", tokens_of(piece, merges), piece=piece, merges=merges)


@pytest.mark.task("4.1", points=3, look="tokens that end inside a character; special tokens", visibility="hidden")
def test_decode_anything(adapters, rng):
    merges, _ = trained(rng)
    known = [bytes([byte]) for byte in bpe.BYTE_ORDER]
    for left, right in merges:
        known.append(known[left] + known[right])
    known += [b"<|end|>", "<|fin é|>".encode()]
    for count in (0, 1, 40):
        tokens = rng.integers(0, len(known), count).tolist()
        calls(adapters, "decode", b"".join(known[t] for t in tokens).decode(errors="replace"), tokens=tokens,
              merges=merges, special=["<|end|>", "<|fin é|>"])


@pytest.mark.task("4.2", points=4, look="special tokens side by side, one that begins another, signs that re knows",
                  visibility="hidden")
def test_encode_with_special_tokens(adapters, rng):
    merges, text = trained(rng)
    special = ["<|a|>", "<|a|>+", "[.*]"]
    number = {word: 256 + len(merges) + i for i, word in enumerate(special)}
    parts = ["<|a|>+", text[:30], "[.*]", "<|a|>", " the  ", "<|a|>+", "<|a|>"]
    expected = [token for part in parts for token in
                ([number[part]] if part in number else [t for p in by_gpt2(part) for t in tokens_of(p, merges)])]
    given = dict(merges=merges, special=special)
    calls(adapters, "encode", expected, text="".join(parts), allowed=True, **given)
    for plain in ("", "<|a|>x", text):
        calls(adapters, "encode", [t for p in by_gpt2(plain) for t in tokens_of(p, merges)], text=plain, **given)


@pytest.mark.task("4.3", points=3, look="every byte has its character", visibility="hidden")
def test_file_of_a_trained_tokenizer(adapters, rng):
    merges = [(int(a), int(b)) for a, b in rng.permutation(256).reshape(-1, 2)]         # every byte once
    merges += [(256 + i, 257 + i) for i in range(0, 60, 2)]
    known = [bpe.BYTE_TO_CHAR[byte] for byte in bpe.BYTE_ORDER]
    for left, right in merges:
        known.append(known[left] + known[right])
    lines = "".join(f"{known[left]} {known[right]}\n" for left, right in merges)
    calls(adapters, "to_text", "#version: 0.2\n" + lines, merges=merges)
    calls(adapters, "from_text", merges, text="#version: 0.2\n" + lines)


@pytest.mark.task("5.1", points=2, look="subtract the largest logit; -inf is the logit of what must not come",
                  visibility="hidden")
def test_softmax_of_large_logits(adapters, rng):
    logits = rng.normal(size=9) * 1e4
    logits[2:5] = -np.inf
    for temperature in (1.0, 1e3, 1e-3):
        near("softmax", "p", adapters.softmax(logits=logits, temperature=temperature),
             probabilities(logits, temperature))
    near("softmax", "p at temperature 0", adapters.softmax(logits=logits, temperature=0),
         np.eye(9)[np.argmax(logits)])


def kept(p, tokens):
    """p of these tokens alone."""
    result = np.zeros_like(p)
    result[tokens] = p[tokens]
    return result / result.sum()


def likeliest(p):
    return sorted(range(len(p)), key=lambda token: (-p[token], token))


@pytest.mark.task("5.2", points=2, look="equal probabilities: exactly k stay; k = 1, and k above V",
                  visibility="hidden")
def test_top_k_with_ties(adapters, rng):
    p = rng.permutation([0.125, 0.125, 0.125, 0.25, 0.25, 0.125])
    for k in (1, 2, 3, 4, 6, 100):
        near("top_k", f"p for k {k}", adapters.top_k(p=p, k=k), kept(p, likeliest(p)[:k]))


@pytest.mark.task("5.3", points=3, look="the share reached exactly: then no token more; equal probabilities",
                  visibility="hidden")
def test_top_p_at_the_edge(adapters, rng):
    p = rng.permutation([0.5, 0.125, 0.125, 0.0625, 0.0625, 0.125, 0.0])
    for share, count in ((1e-9, 1), (0.5, 1), (0.501, 2), (0.625, 2), (0.75, 3), (0.8, 4), (0.9375, 5), (1.0, 6)):
        near("top_p", f"p for share {share}", adapters.top_p(p=p, share=share), kept(p, likeliest(p)[:count]))


@pytest.mark.task("5.4", points=2, look="a token that occurs twice; the argument stays as it is", visibility="hidden")
def test_repetition_penalty_once(adapters, rng):
    logits, previous = rng.normal(size=8) * 3, [1, 5, 1, 1, 6, 5]
    expected = logits.copy()
    for token in set(previous):
        expected[token] = logits[token] / 1.3 if logits[token] > 0 else logits[token] * 1.3
    for of, wanted in ((previous, expected), ([], logits)):
        got = adapters.repetition_penalty(logits=logits, previous=of, penalty=1.3)
        near("repetition_penalty", "logits", got, wanted)


@pytest.mark.task("5.5", points=3, look="u = 0, u on an edge, u a hair under 1, probabilities of 0",
                  visibility="hidden")
def test_draw_at_the_edges(adapters, rng):
    p = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    for u, token in ((0.0, 1), (0.25, 3), (0.75, 4), (np.nextafter(1, 0), 4)):
        calls(adapters, "draw", token, p=p, u=float(u))
    tenths = np.array([0.1] * 10 + [0.0])                                     # their sum is 1 - 1.1e-16
    calls(adapters, "draw", 9, p=tenths, u=float(np.nextafter(1, 0)))
    p = rng.dirichlet(np.ones(50))
    for u in rng.random(20):
        calls(adapters, "draw", int(np.argmax(p.cumsum() > u)), p=p, u=float(u))


@pytest.mark.task("6.1", points=3, look="token by token; large scores", visibility="hidden")
def test_attention_token_by_token(adapters, rng):
    q, k, v = rng.normal(size=(3, 3, 6, 5))
    expected, past = all_at_once(30 * q, 30 * k, v), None
    for t in range(6):
        given = [np.ascontiguousarray(x[:, t:t + 1]) for x in (30 * q, 30 * k, v)]
        out, past = as_tuple("attend", ("out", "past"), adapters.attend(q=given[0], k=given[1], v=given[2], past=past))
        near("attend", f"out of token {t}", out, expected[:, t:t + 1])


@pytest.mark.task("7.1", points=4, look="the end token is the last; no token, one token; temperature 0",
                  visibility="hidden")
def test_generate_up_to_the_end(adapters, rng):
    weights, uniforms = tiny_weights(rng), rng.random(20).tolist()
    expected = generated(weights, [7], uniforms, 1.5)
    end = expected[9]
    expected = expected[:expected.index(end) + 1]
    for given, wanted in ((uniforms, expected), (uniforms[:1], expected[:1]), ([], [])):
        new, fed = adapters.generate_tiny(weights=weights, prompt=[7], uniforms=given, temperature=1.5, end=end)
        equals("generate", new, wanted, of="a model of random weights")
        equals("generate: what the model was given, call by call", fed,
               ([[7]] + [[token] for token in wanted[:-1]])[:len(given)])
    greedy = generated(weights, [7, 2], [0.5] * 5, 1e-9)
    new, _ = adapters.generate_tiny(weights=weights, prompt=[7, 2], uniforms=[0.5] * 5, temperature=0, end=-1)
    equals("generate", new, greedy, of="temperature=0")


@pytest.mark.task("7.2", points=3, look="the tokens must come as if the large model had drawn them",
                  visibility="hidden")
def test_speculative_decoding_keeps_the_distribution(adapters, rng):
    """Each token's share of `rounds` first tokens is within `allowed` of its probability. By Hoeffding's inequality,
    P(|share - p| > allowed) <= 2 exp(-2 rounds allowed^2); `allowed` makes that 1e-9 for all tokens together."""
    order = rng.permutation(5)
    p, q = np.array([0.4, 0.3, 0.2, 0.1, 0])[order], np.array([0.1, 0.1, 0.3, 0.3, 0.2])[order]
    rounds = 20_000
    allowed = math.sqrt(math.log(2 * len(p) / 1e-9) / (2 * rounds))           # 0.024
    drafted = rng.choice(5, (rounds, 1), p=q)
    first = adapters.speculative_often(p=np.stack([p, p]), q=q[None], drafted=drafted, u=rng.random((rounds, 2)))
    share = np.array([first.count(token) for token in range(5)]) / rounds
    worst = np.abs(share - p).argmax()
    if abs(share[worst] - p[worst]) > allowed:
        raise Failed(f"speculative: token {worst} came in {share[worst]:.3f} of {rounds} rounds, its probability is "
                     f"{p[worst]:.3f} +- {allowed:.3f}")
