"""The tests that you have. More are run when your work is graded, on other texts and other numbers: see README.md."""

import numpy as np
import pytest

from minigpt.course.judging import as_tuple, equals, near, short
from minigpt.generate.sampling import probabilities
from minigpt.ops import numpy_ops as spec
from minigpt.text import bpe


def calls(adapters, name, expected, **arguments):
    """adapters.<name>(...) must give exactly this."""
    of = ", ".join(f"{key}={short(value)}" for key, value in arguments.items())
    equals(name, getattr(adapters, name)(**arguments), expected, of)


@pytest.mark.task("1.1", points=3, look="which rule takes the space, and what becomes of several")
def test_split_gpt2(adapters):
    calls(adapters, "split_gpt2", ["I", "'ll", " pay", " $", "7", ",", " don", "'t", " I", "?"],
          text="I'll pay $7, don't I?")
    calls(adapters, "split_gpt2", ["a", "  ", " b", "\n", "c", "  "], text="a   b\nc  ")
    calls(adapters, "split_gpt2", [], text="")


@pytest.mark.task("1.2", points=3, look="numbers in threes, and what may stand before a word")
def test_split_gpt4(adapters):
    calls(adapters, "split_gpt4", ["I", "'LL", " pay", " $", "123", "456", "7", ",\n", "ok", "(yes", ")"],
          text="I'LL pay $1234567,\nok(yes)")
    calls(adapters, "split_gpt4", ["a", " \n\n", " ", " b"], text="a \n\n  b")


@pytest.mark.task("2.1", points=2, look="how often a piece occurs counts for each of its pairs")
def test_count_pairs(adapters):
    calls(adapters, "count_pairs", [[1, 2, 7], [2, 1, 5], [2, 3, 2]], words=[([1, 2, 1], 5), ([1, 2, 3], 2)])


@pytest.mark.task("2.2", points=2, look="from the left, and after a merge past both of its tokens")
def test_merge(adapters):
    calls(adapters, "merge", [256, 3, 256], tokens=[1, 2, 3, 1, 2], pair=(1, 2), new=256)
    calls(adapters, "merge", [300, 7], tokens=[7, 7, 7], pair=(7, 7), new=300)


@pytest.mark.task("3.1", points=5, look="ties: the smaller left token first; when to stop")
def test_train(adapters):
    pieces = {"low": 5, " lower": 2, " newest": 6, " widest": 3}
    calls(adapters, "train", bpe.train(pieces, 8), pieces=pieces, count=8)
    calls(adapters, "train", [(64, 64)], pieces={"aaa": 1, "b": 9}, count=5)


@pytest.mark.task("3.2", points=4, look="the pair that was learned first, not the one that stands first")
def test_encode_piece(adapters):
    a, b, c = 64, 65, 66                                                      # the tokens of "a", "b" and "c"
    calls(adapters, "encode_piece", [a, 256], piece="abc", merges=[(b, c), (a, b)])
    calls(adapters, "encode_piece", [a, 256, 257], piece="aabaa", merges=[(a, b), (a, a)])


@pytest.mark.task("4.1", points=2, look="join the bytes of all tokens before they become text")
def test_decode(adapters):
    tokens = [bpe.BYTE_ORDER.index(byte) for byte in "naïve 🙂".encode()]
    calls(adapters, "decode", "naïve 🙂", tokens=tokens, merges=[], special=[])
    calls(adapters, "decode", "naïve �", tokens=tokens[:-1], merges=[], special=[])


@pytest.mark.task("4.2", points=3, look="text that looks like a special token, allowed and not")
def test_encode(adapters):
    given = dict(text="ab<|end|>ab", merges=[(64, 65)], special=["<|end|>"])
    calls(adapters, "encode", [256, 257, 256], allowed=True, **given)
    not_allowed = [256, *(bpe.BYTE_ORDER.index(byte) for byte in b"<|end|>"), 256]
    calls(adapters, "encode", not_allowed, allowed=False, **given)


@pytest.mark.task("4.3", points=2, look="the visible characters of bytes that are not printable; the first line")
def test_file(adapters):
    text = "#version: 0.2\nĠ t\nh e\nĠt he\n"
    calls(adapters, "to_text", text, merges=[(220, 83), (71, 68), (256, 257)])
    calls(adapters, "from_text", [(220, 83), (71, 68), (256, 257)], text=text)


@pytest.mark.task("5.1", points=2, look="what the temperature divides; temperature 0")
def test_softmax(adapters, rng):
    logits = rng.normal(size=11)
    for temperature in (1.0, 0.5, 3.0):
        near("softmax", "p", adapters.softmax(logits=logits, temperature=temperature),
             probabilities(logits, temperature))
    near("softmax", "p at temperature 0", adapters.softmax(logits=np.array([1.0, 4.0, 4.0]), temperature=0),
         np.array([0.0, 1.0, 0.0]))


@pytest.mark.task("5.2", points=2, look="whose probabilities stay, and that they add up to 1")
def test_top_k(adapters):
    near("top_k", "p", adapters.top_k(p=np.array([0.1, 0.4, 0.2, 0.3]), k=2), np.array([0, 4, 0, 3]) / 7)


@pytest.mark.task("5.3", points=2, look="the token that takes the sum to the share stays in, too")
def test_top_p(adapters):
    p = np.array([0.125, 0.5, 0.125, 0.25])
    near("top_p", "p for share 0.6", adapters.top_p(p=p, share=0.6), np.array([0, 2, 0, 1]) / 3)
    near("top_p", "p for share 0.3", adapters.top_p(p=p, share=0.3), np.array([0.0, 1, 0, 0]))


@pytest.mark.task("5.4", points=1, look="a negative logit becomes less likely by a multiplication")
def test_repetition_penalty(adapters):
    got = adapters.repetition_penalty(logits=np.array([1.0, -1.0, 2.0, -2.0]), previous=[2, 3], penalty=2.0)
    near("repetition_penalty", "logits", got, np.array([1.0, -1.0, 1.0, -4.0]))


@pytest.mark.task("5.5", points=2, look="the first token whose end lies beyond u")
def test_draw(adapters):
    p = np.array([0.25, 0.5, 0.25])
    for u, token in ((0.1, 0), (0.3, 1), (0.7, 1), (0.8, 2)):
        calls(adapters, "draw", token, p=p, u=u)


def all_at_once(q, k, v):
    """Attention over the whole text, (H, T, D)."""
    return spec.attention_forward(q[None], k[None], v[None])[0][0]


@pytest.mark.task("6.1", points=4, look="the keys of the past stand before the new ones, and which a new token sees")
def test_attention_with_a_cache(adapters, rng):
    """Seven tokens at once, and the same in two calls."""
    q, k, v = rng.normal(size=(3, 2, 7, 4))
    expected, past = all_at_once(q, k, v), None
    for name, part in (("of the first 4", slice(0, 4)), ("of the next 3", slice(4, 7))):
        given = [np.ascontiguousarray(x[:, part]) for x in (q, k, v)]
        out, past = as_tuple("attend", ("out", "past"),
                             adapters.attend(q=given[0], k=given[1], v=given[2], past=past))
        near("attend", f"out {name}", out, expected[:, part])
        for what, got, all_of_it in zip(("keys", "values"), as_tuple("attend", ("keys", "values"), past), (k, v),
                                        strict=True):
            near("attend", f"the {what} kept {name}", got, all_of_it[:, :part.stop])


def tiny_weights(rng, V=13, P=40, C=8, H=2, D=4):
    shapes = dict(wte=(V, C), wpe=(P, C), query=(H, C, D), key=(H, C, D), value=(H, C, D), out=(H, D, C))
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def generated(weights, prompt, uniforms, temperature):
    """Computes the whole text again for each token."""
    tokens = list(prompt)
    for u in uniforms:
        x = weights["wte"][tokens] + weights["wpe"][:len(tokens)]
        q, k, v = (x @ weights[name] for name in ("query", "key", "value"))
        x = x + (all_at_once(q, k, v) @ weights["out"]).sum(axis=0)
        p = probabilities(x[-1:] @ weights["wte"].T, temperature)[0]
        tokens.append(int(np.argmax(p.cumsum() > u)))
    return tokens[len(prompt):]


@pytest.mark.task("7.1", points=4, look="what the model has seen already: after the first call, only the newest token")
def test_generate(adapters, rng):
    weights, prompt, uniforms = tiny_weights(rng), [3, 1, 4, 1, 5], rng.random(12).tolist()
    expected = generated(weights, prompt, uniforms, 0.8)
    new, fed = adapters.generate_tiny(weights=weights, prompt=prompt, uniforms=uniforms, temperature=0.8, end=-1)
    equals("generate", new, expected, of="a model of random weights")
    equals("generate: what the model was given, call by call", fed, [prompt, *([token] for token in expected[:-1])])


@pytest.mark.task("7.2", points=4, look="when a draft is accepted, and from what is drawn when it is not")
def test_speculative(adapters):
    p = np.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [0.25, 0.25, 0.5]])
    q = np.array([[0.25, 0.5, 0.25], [0.75, 0.125, 0.125]])
    for drafted, u, expected in (([0, 1], [0.9, 0.9, 0.3], [0, 1, 1]),        # both are accepted
                                 ([0, 0], [0.9, 0.5, 0.3], [0, 2]),           # 0.5 >= 1/6: from (0, 0, 0.625)
                                 ([1, 0], [0.6, 0.1, 0.9], [0])):             # 0.6 >= 1/2: from (0.25, 0, 0)
        calls(adapters, "speculative", expected, p=p, q=q, drafted=drafted, u=u)
