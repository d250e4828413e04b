# %% [markdown]
# # 2. Attention from its definition
#
# **You will be able to** write attention in ten lines of NumPy and say why each is there; count its FLOPs and bytes and
# find where a long text becomes expensive; look into a trained model and say in numbers what its heads do.
#
# **Needs:** a laptop; NumPy and matplotlib; the product of two matrices, and what a mean and a variance are.
# **Before:** [1](01_text_to_tokens.ipynb)  **Time:** about 60 minutes

# %%
import functools
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
from lesson import BLUE, GREEN, GREY, attention_map, case, check, here, seconds, source

from minigpt import GPT, ModelConfig, TextDataset, Tokenizer, ops
from minigpt.ops import numpy_ops

rng = np.random.default_rng(0)

# %% [markdown]
# *GREMIO: Good morrow, neighbour Baptista. BAPTISTA: Good morrow, neighbour* — and now? You look back in the text, find
# who spoke before, and say *Gremio*. **Attention** is the part of a language model that looks back: for each token it
# decides how much to take from each token before it. Everything else in the model handles one token at a time.
#
# ## 1. A soft dictionary
#
# A Python dictionary maps keys to values, and knows nothing between the keys:

# %%
exact = {0: 18.0, 90: 9.0, 180: 14.0, 270: 25.0}       # direction of the wind: temperature it brings
print(exact[90], exact.get(45))

# %% [markdown]
# For wind from 45 degrees there is no answer, though something between 18 and 9 would do. So make the look-up soft:
# compare the **query** with every **key**, turn the similarities into weights, and answer with the weighted mean of all
# **values**. That is attention, the whole of it.
#
# Directions become arrows, vectors of two numbers. The similarity of two vectors is their dot product: large if they
# point the same way, 0 at a right angle, negative if they are opposed. Weights must be positive and add up to 1; the
# **softmax** makes such numbers of any: it takes the exponential of each and divides by the sum of all.

# %%
def arrow(degrees):
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


keys = np.array([arrow(direction) for direction in exact])            # (4, 2)
values = np.array(list(exact.values()))                               # (4,)
query = 4 * arrow(45)                                                 # (2,)
scores = keys @ query                                                 # (4,)  similarities
weights = np.exp(scores) / np.exp(scores).sum()                       # (4,)  softmax: positive, sum 1
print("scores ", scores.round(2))
print("weights", weights.round(3), "sum", weights.sum())
print("answer ", weights @ values)

# %% [markdown]
# The query above has length 4. The length says how sharp the look-up is: twice the length, twice the scores, and the
# largest exponential outgrows the others.

# %%
angles = np.arange(0, 361, 3)
figure, panel = plt.subplots()
for length in (1, 4, 30):
    e = np.exp(length * np.array([arrow(a) for a in angles]) @ keys.T)          # (angles, 4)
    panel.plot(angles, e @ values / e.sum(axis=1), label=f"query of length {length}")
panel.plot(list(exact), values, "o", color="black", label="the dictionary's entries")
panel.set(xlabel="direction of the query, degrees", ylabel="answer, degrees Celsius",
          title="A long query looks up one value, a short one takes a mean of all", xticks=range(0, 361, 45))
panel.legend()
plt.show()

# %% [markdown]
# All of it is smooth. So unlike in a real dictionary, one can take derivatives and learn by them what keys, values and
# queries should be (tutorial 4).

# %% [markdown]
# ### Exercise 1 (10 minutes): a softmax that does not overflow
#
# `np.exp(1000)` is infinite, and infinite by infinite is not a number. Yet softmax does not change when the same number
# is taken from all scores: exp(s - m) = exp(s) / exp(m), above and below the line alike. So take away the largest, and
# no exponent is above 0. Write the softmax of each *row* (along the last axis), for arrays of any shape.

# %%
def softmax(scores):                                                  # (..., T) -> (..., T)
    ...


# %%
two_rows = np.array([[0.0, np.log(3.0)], [5.0, 5.0]])
check(softmax, case(two_rows, want=np.array([[0.25, 0.75], [0.5, 0.5]]), why="each row adds up to 1 by itself"),
      case(np.array([[1000.0, 1000.0], [0.0, 0.0]]), want=np.full((2, 2), 0.5),
           why="take the largest of the row away first: of each row its own"),
      case(np.array([[0.0, -np.inf]]), want=np.array([[1.0, 0.0]]), why="exp(-inf) is 0: that is how to forbid"),
      case(np.zeros((2, 3, 4)), want=np.full((2, 3, 4), 0.25), why="the last axis, whatever comes before"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `scores.max(axis=-1, keepdims=True)` keeps the last axis with length 1, so that it can be subtracted from the rows.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def softmax(scores):
#     e = np.exp(scores - scores.max(axis=-1, keepdims=True))
#     return e / e.sum(axis=-1, keepdims=True)
# ```
# </details>

# %% [markdown]
# ## 2. A text asks itself
#
# In a model every token is a vector of C numbers (the next tutorial says where they come from). A text of T tokens is a
# matrix x, (T, C). From each token three vectors of D numbers are made, by three matrices that the model learns:
#
# - a query, **q** = x W_q, (T, D): what this token is looking for;
# - a key, **k** = x W_k, (T, D): what it has to offer, in the same language;
# - a value, **v** = x W_v, (T, D): what it hands over if it is chosen.
#
# All T look-ups at once are two matrix products. Row i of `q @ k.T` holds the similarities of query i with all keys.

# %%
T, C, D = 6, 16, 8
x = rng.standard_normal((T, C))                                       # (T, C)
wq, wk, wv = rng.standard_normal((3, C, D)) / np.sqrt(C)              # (C, D) each
q, k, v = x @ wq, x @ wk, x @ wv                                      # (T, D) each

one_by_one = np.zeros((T, D))
for i in range(T):
    e = np.exp([q[i] @ k[j] for j in range(T)])                       # (T,)
    one_by_one[i] = sum(e[j] / e.sum() * v[j] for j in range(T))      # (D,)

e = np.exp(q @ k.T)                                                   # (T, T)
at_once = e / e.sum(axis=-1, keepdims=True) @ v                       # (T, T) @ (T, D) -> (T, D)
print("largest difference:", np.abs(at_once - one_by_one).max())

# %% [markdown]
# ## 3. Why divide by the root of D
#
# Real attention divides the scores by √D. A hand count says why. Let the numbers in q and k be independent, of mean 0
# and variance 1. A product q_d k_d then has mean 0 and variance 1, and a score is the sum of D of them: variance D,
# standard deviation √D. With D = 64 the scores spread by 8, and exp turns a lead of 8 into a factor of 3,000.
#
# **Predict:** a query meets 64 random keys of D = 64 numbers. How large is the largest weight on average, without the
# division and with it?

# %%
for D in (4, 16, 64, 256):
    q, k = rng.standard_normal((200, D)), rng.standard_normal((200, 64, D))
    s = (k @ q[:, :, None])[:, :, 0]                                  # (200, 64): 64 keys for each query
    largest = []
    for scores in (s, s / np.sqrt(D)):
        e = np.exp(scores - scores.max(axis=1, keepdims=True))
        largest.append((e / e.sum(axis=1, keepdims=True)).max(axis=1).mean())
    print(f"D {D:3}: deviation {s.std():5.2f}, counted {np.sqrt(D):5.2f}, ratio {s.std() / np.sqrt(D):.3f}; "
          f"largest weight {largest[0]:.2f}, after the division {largest[1]:.2f}")

# %%
figure, panels = plt.subplots(1, 2, sharey=True)
for panel, (name, scores) in zip(panels, {"q·k": s[0], "q·k / √D": s[0] / np.sqrt(D)}.items(), strict=True):
    e = np.exp(scores - scores.max())
    panel.bar(range(64), np.sort(e / e.sum())[::-1])
    panel.set(title=f"softmax of {name}, D = {D}", xlabel="keys, the best first")
panels[0].set_ylabel("weight")
plt.show()

# %% [markdown]
# Without the division one key takes nearly everything, before anything has been learned, and the larger D the more so.
# Worse, a softmax that has decided does not learn: the derivative of a weight p by its score is p (1 - p), almost 0
# where p is almost 0 or 1. Divided by √D the scores have variance 1 for every D, and the model decides by itself how
# sharp to be: by the length of its queries, as in the picture of the winds.

# %% [markdown]
# ## 4. No looking ahead: the causal mask
#
# A language model learns to predict the next token, at all places of a text at once: from token 0 token 1, from tokens
# 0 and 1 token 2, and so on. At place i it must not see what comes after i, or it would copy the answer. So the scores
# of all j > i are set to minus infinity before the softmax; exp makes 0 of it, and the row still adds up to 1.
#
# `np.tri(T)` is the matrix with ones on the diagonal and below it. This function is all we need from here on; it works
# on whole stacks of heads, because `@` takes the last two axes and leaves the others alone.

# %%
def attention_weights(q, k, causal=True):                             # (..., T, D) twice -> (..., T, T)
    scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5              # (..., T, T)
    if causal:
        scores = np.where(np.tri(q.shape[-2], dtype=bool), scores, -np.inf)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


q, k, v = x @ wq, x @ wk, x @ wv                                      # (T, D), the small example again
before = attention_weights(q, k) @ v                                  # (T, D)
x[-1] += 10                                                           # another last token
after = attention_weights(x @ wq, x @ wk) @ (x @ wv)
print("change of each row:", np.abs(after - before).max(axis=1).round(3))

# %% [markdown]
# Only the last row has changed: no other could see it. One more question: which row is certain before any learning?
# Row 0 sees one key only, itself, so its weight is 1 whatever the score.
#
# Now a real text and a real model: the checkpoint that comes with these tutorials, 4 layers of 4 heads, C = 128,
# D = 32. Its first layer makes q, k and v from the tokens' vectors (a norm comes before, see tutorial 3).

# %%
model = GPT.from_pretrained(here("checkpoint"), ops="numpy")
tokenizer = Tokenizer.from_pretrained(here("checkpoint"))
passage = "BAPTISTA:\nGood morrow, sir.\nI have a son,\nAnd you a king:\nGood morrow,"
ids = np.array(tokenizer.encode(passage))                             # (T,)
words = [tokenizer.tokens[id].decode() for id in ids]

P = model.params
x = P["wte"][ids] + P["wpe"][:len(ids)]                               # (T, C)
y, _, _ = numpy_ops.layernorm_forward(x, P["h.0.norm1.weight"], P["h.0.norm1.bias"])
qkv = y @ P["h.0.attn.qkv.weight"].T + P["h.0.attn.qkv.bias"]         # (T, 3C): queries of all heads, then keys
q, k = qkv[:, 64:96], qkv[:, 128 + 64:128 + 96]                       # (T, D) of head 2

# %%
scores = q @ k.T / np.sqrt(32)                                        # (T, T)
masked = np.where(np.tri(len(ids), dtype=bool), scores, np.nan)       # nan is drawn white
figure, panels = plt.subplots(1, 3, figsize=(8, 3.1))
for panel, picture, title in zip(panels, (scores, masked, attention_weights(q, k)),
                                 ("scores q·k/√D", "causal mask", "weights"), strict=True):
    shown = panel.imshow(picture)
    figure.colorbar(shown, ax=panel, shrink=0.6)
    panel.set(title=title, xlabel="key: token looked at", ylabel="query: token that looks")
plt.show()

# %% [markdown]
# ### Exercise 2 (15 minutes): causal attention, one head
#
# Write the whole of it: scores, division, mask, softmax, weighted sum. From memory, if you can; do not call
# `attention_weights`.

# %%
def attend(q, k, v):                                                  # (T, D) each -> (T, D)
    ...


# %%
def example(T, D, size, why):
    q, k, v = size * np.random.default_rng(T).standard_normal((3, T, D))
    out, _ = numpy_ops.attention_forward(*(a[None, None] for a in (q, k, v)))
    return case(q, k, v, want=out[0, 0], why=why)


check(attend, example(1, 4, 1, "one token sees itself: the answer is its value"),
      example(5, 16, 1, "divide by the root of D; mask the scores, not the weights; row i sees j <= i"),
      example(7, 3, 1, "D is the last axis of q, not T"),
      example(4, 8, 30, "scores of hundreds must not overflow"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `np.where(condition, a, b)` takes a where the condition is true. The mask goes between the scores and the softmax: a
# weight set to 0 afterwards would be missing from the sum of the row.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def attend(q, k, v):
#     T, D = q.shape
#     scores = q @ k.T / np.sqrt(D)
#     scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
#     e = np.exp(scores - scores.max(axis=-1, keepdims=True))
#     weights = e / e.sum(axis=-1, keepdims=True)
#     return weights @ v
# ```
# </details>

# %% [markdown]
# ## 5. Many heads
#
# A softmax makes one choice. To look for the previous token and for the speaker's name at the same time takes two, so a
# layer has H **heads**: H small attentions of D = C / H numbers side by side, whose outputs are joined to C numbers and
# mixed by one more matrix, the *projection*.
#
# The queries of all heads come from one product, (T, C) @ (C, C): the first D columns belong to head 0, the next to
# head 1. No data moves to tell them apart. An array is memory plus *strides*, the bytes to the next element along
# each axis, so a **view** with other strides is enough:

# %%
T, H, D = len(ids), 4, 32
q = qkv[:, :128]                                                      # (T, C), the queries of all heads
heads = q.reshape(T, H, D).transpose(1, 0, 2)                         # (H, T, D)
print("q     shape", q.shape, "    strides", q.strides)
print("heads shape", heads.shape, "strides", heads.strides, " the same memory:", np.shares_memory(qkv, heads))
print("head 2 is columns 64 to 95:", np.array_equal(heads[2], q[:, 64:96]))

# %% [markdown]
# A hand check of the strides: a row of `qkv` has 3 × 128 numbers of 4 bytes, 1,536; the next number is 4 bytes away;
# the next head 32 × 4 = 128 bytes.

# %% [markdown]
# ### Exercise 3 (10 minutes): cut the packed projection into heads
#
# `qkv` is (T, 3C): all queries, then all keys, then all values, each in H heads of D. Return q, k and v, (H, T, D)
# each. The trap: `reshape(H, T, D)` gives the right shape and the wrong numbers, since it cuts the memory into pieces
# in the order in which it lies.

# %%
def split_heads(qkv, H):                                              # (T, 3C) -> three of (H, T, D)
    ...


# %%
def parts(T, H, D):
    qkv = np.arange(T * 3 * H * D, dtype=float).reshape(T, 3 * H * D)
    columns = [qkv[:, i * D:(i + 1) * D] for i in range(3 * H)]       # part p, head h: column p H + h
    cut = tuple(np.stack(columns[part * H:(part + 1) * H]) for part in range(3))
    return case(qkv, H, want=cut, why="part p, head h are the D columns from (p H + h) D on")


check(split_heads, parts(2, 1, 3), parts(5, 2, 3), parts(4, 4, 2))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Name each axis in the order of the memory first: `qkv.reshape(T, 3, H, D)`. Then put them in the order you want with
# `transpose`, and take the three parts.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def split_heads(qkv, H):
#     T = len(qkv)
#     q, k, v = qkv.reshape(T, 3, H, -1).transpose(1, 2, 0, 3)
#     return q, k, v
# ```
# </details>

# %% [markdown]
# ## 6. What it costs
#
# Count before measuring. A product of (a, b) by (b, c) takes 2abc FLOPs, one multiplication and one addition for each
# of b terms of ac sums. For one head: the scores 2T²D, the weighted sum 2T²D. For all H heads, with HD = C:
#
# - attention itself: **4T²C** FLOPs, and **4HT²** bytes for the weights in 32 bits;
# - the matrices around it: q, k, v take 2T·C·3C, the projection 2T·C·C, together **8TC²**.
#
# The first grows with the square of the text, the second does not. They are equal at T = 2C.

# %%
for name, T, C, H in (("our model", 128, 128, 4), ("GPT-2", 1024, 768, 12), ("long text", 131_072, 4096, 32)):
    print(f"{name}, a layer: attention {4 * T * T * C:.2g} FLOPs, matrices {8 * T * C * C:.2g}, "
          f"ratio {T / (2 * C):.2f}; weights {4 * H * T * T / 1e9:.2g} GB")

# %% [markdown]
# The last line is a text as long as many models accept. Nobody stores 2 terabytes per layer: FlashAttention computes
# the same numbers without ever having the matrix ([tutorial 8](08_flash_attention.ipynb)).
#
# **Predict:** the text becomes twice as long. How much longer does our `attention_weights(q, k) @ v` take, how much
# more memory?

# %%
lengths, times, memory = [128, 256, 512, 1024, 2048], [], []
for T in lengths:
    q, k, v = rng.standard_normal((3, 4, T, 32), dtype=np.float32)    # (H, T, D) each
    times.append(seconds(lambda q=q, k=k, v=v: attention_weights(q, k) @ v, repeats=3))
    tracemalloc.start()
    attention_weights(q, k) @ v
    memory.append(tracemalloc.get_traced_memory()[1])                 # the most that was in use at once, bytes
    tracemalloc.stop()
    print(f"T {T:4}: {times[-1] * 1e3:7.2f} ms, {4 * T * T * 128 / times[-1] / 1e9:5.1f} GFLOP/s; "
          f"{memory[-1] / 1e6:6.1f} MB, {memory[-1] / (4 * 4 * T * T):.1f} times the counted 4HT²")

# %%
figure, panels = plt.subplots(1, 2)
square = (np.array(lengths) / lengths[-1]) ** 2
for panel, values, unit in ((panels[0], np.array(times) * 1e3, "ms"), (panels[1], np.array(memory) / 1e6, "MB")):
    panel.loglog(lengths, values, "o-", label="measured")
    panel.loglog(lengths, values[-1] * square, "--", color=GREY, label="growing as T²")
    panel.set(xlabel="T, tokens", ylabel=unit, xticks=lengths, xticklabels=lengths)
    panel.minorticks_off()
panels[0].set_title("time of attention, 4 heads")
panels[1].set_title("memory")
panels[0].legend()
plt.show()

# %% [markdown]
# By the count four times for each doubling; more where the matrices outgrow the processor's caches. The memory is a few
# times what we counted, since NumPy makes a new matrix for each step: the scores, the masked scores, the exponentials,
# the weights. The last factor of each line says how many exist at the worst moment.

# %% [markdown]
# ## 7. Attention does not know the order
#
# **Predict:** take away the mask and shuffle the tokens of a text. What happens to the outputs?

# %%
x = rng.standard_normal((6, 16))                                      # (T, C)
order = rng.permutation(6)


def mix(x):
    return attention_weights(x @ wq, x @ wk, causal=False) @ (x @ wv)  # (T, D)


print("shuffled inputs give the shuffled outputs:", np.allclose(mix(x[order]), mix(x)[order]))

# %% [markdown]
# They are shuffled, too, and otherwise the same: a weighted sum does not depend on the order of its terms. To bare
# attention *dog bites man* and *man bites dog* are one text. (With the mask a token knows which are before it, but, in
# one layer, not in which order.) So the order is put in by hand: GPT-2 adds to each token's vector one that belongs to
# its place, from a learned table `wpe`.
#
# Take that table away from the trained model, and look at its loss, on text that it has not seen. (The loss is the
# mean of -log p of the true next token: lower is better. Tutorial 3 takes it apart.)

# %%
text = here("data/shakespeare.txt").read_text(encoding="utf-8")
_, unseen = TextDataset.from_tokens(tokenizer.encode(text), 129).split(0.1)                # the last tenth
blocks = np.array([unseen[n] for n in range(16)])                     # (16, 129)
inputs, targets = blocks[:, :-1], blocks[:, 1:]                       # (16, 128) each
wpe = P["wpe"].copy()
tables = {"as trained": wpe, "no positions": np.zeros_like(wpe), "shuffled": rng.permutation(wpe)}
for name, table in tables.items():
    P["wpe"][:] = table
    print(f"{name:13} loss {model.forward(inputs, targets):.2f}")
P["wpe"][:] = wpe

# %%
unit = wpe / np.linalg.norm(wpe, axis=1, keepdims=True)               # (128, C)
figure, panels = plt.subplots(1, 2, width_ratios=(1, 1.3))
shown = panels[0].imshow(unit @ unit.T, cmap="RdBu_r", vmin=-1, vmax=1)
figure.colorbar(shown, ax=panels[0], label="cosine")
panels[0].set(xlabel="place", ylabel="place", title="likeness of the vectors of 128 places")
for place in (10, 60, 110):
    panels[1].plot(unit @ unit[place], label=f"with place {place}")
panels[1].set(xlabel="place", ylabel="cosine", title="near places have like vectors", ylim=(-1, 1.05))
panels[1].legend(loc="lower center")
plt.show()

# %% [markdown]
# Nobody told the model that place 5 is next to place 6. It has found out, since the same words occur at all places and
# near ones should be treated alike; most clearly towards both ends of the table.

# %% [markdown]
# ## 8. What the heads of a trained model do
#
# The model has 16 heads. After a forward pass with targets, `model.saved` holds what the backward pass will need, the q
# and k of every layer among it. So here are the weights of all heads over 16 × 128 unseen tokens:

# %%
model.forward(inputs, targets)
layers = [model.saved[f"h.{i}.attn"][1:3] for i in range(4)]          # q and k, (B, H, T, D) each
weights = np.stack([attention_weights(q, k) for q, k in layers])      # (layer, B, H, T, T)
weights = weights.transpose(0, 2, 1, 3, 4).reshape(16, 16, 128, 128)  # (layer and head, B, T, T)
print("every row adds up to 1:", np.allclose(weights.sum(axis=-1), 1, atol=1e-5))

# %% [markdown]
# ### Exercise 4 (5 minutes): who looks at the previous token?
#
# Given the weights of several heads on one text, say for each head how much of a token's weight lies on the token
# directly before it, on average over all tokens that have one.

# %%
def on_previous(weights):                                             # (heads, T, T) -> (heads,)
    ...


# %%
uniform = np.tri(4) / np.tri(4).sum(axis=1, keepdims=True)            # each token looks at all before it alike
shift = np.eye(4, k=-1)
shift[0, 0] = 1
check(on_previous, case(shift[None], want=np.array([1.0]), why="token 0 has no previous one: leave it out"),
      case(np.stack([uniform, np.eye(4)]), want=np.array([(1 / 2 + 1 / 3 + 1 / 4) / 3, 0.0]),
           why="row i, column i - 1; the mean over T - 1 rows"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `np.diagonal(weights, offset=-1, axis1=1, axis2=2)` has one number for each row from 1 on.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def on_previous(weights):
#     return np.diagonal(weights, offset=-1, axis1=1, axis2=2).mean(axis=1)
# ```
# </details>

# %% [markdown]
# Now more such questions at once. Each is a table of True and False, which of the tokens j that token i can see are
# meant: the token before, a line's end, the first token of a line, capitals (names of speakers), an earlier copy of
# the token itself. A share means little by itself, since half of the tokens may be meant; so divide it by the share
# that equal weights on all visible tokens would have. 1 means no preference, 5 means five times as much as by chance.

# %%
spelling = np.array([token.decode(errors="replace") for token in tokenizer.tokens])
ends = (spelling == "\n")[inputs]                                     # (B, T)
begins = np.pad(ends, ((0, 0), (1, 0)))[:, :-1] & ~ends               # after an end
capitals = np.array([s.strip().isupper() and len(s.strip()) > 1 for s in spelling])[inputs]
i, j = np.arange(128)[:, None], np.arange(128)
meant = {"itself": (i == j)[None], "the one before": (i == j + 1)[None], "line end": ends[:, None],
         "line begin": begins[:, None], "name": capitals[:, None],
         "same token": (inputs[:, :, None] == inputs[:, None]) & (i > j)}
rows = slice(16, None)                                                # where there is something to choose from
lift = np.zeros((16, len(meant)))
for column, what in enumerate(meant.values()):
    what = what & (i >= j)                                            # (B, T, T)
    chance = (what / (i + 1)).sum(axis=-1)[..., rows].mean()
    lift[:, column] = (weights * what).sum(axis=-1)[..., rows].mean(axis=(1, 2)) / chance

# %%
figure, panel = plt.subplots(figsize=(8, 5.2))
panel.imshow(np.log2(lift), cmap="RdBu_r", vmin=-3.5, vmax=3.5, aspect="auto")
for (row, column), value in np.ndenumerate(lift):
    color = "white" if abs(np.log2(value)) > 2.2 else "black"
    panel.text(column, row, f"{value:.1f}", ha="center", va="center", color=color, fontsize=9)
panel.set_xticks(range(len(meant)), meant)
panel.set_yticks(range(16), [f"layer {h // 4}, head {h % 4}" for h in range(16)])
panel.set_title("Weight on these tokens, as a multiple of chance (red: more, blue: less)")
plt.show()

# %% [markdown]
# Some heads are specialists: look for the reddest field of each column. The next picture draws three of them, chosen by
# these numbers, on our passage, and a fourth that looks at nearly everything. How widely a head looks is measured by
# the **entropy** of its weights, -Σ p log p: 0 if one token has all the weight, log n if n tokens share it alike. Its
# exponential is the number of tokens that it looks at, so to speak.

# %%
entropy = -(weights * np.log(weights + 1e-30)).sum(axis=-1)[..., rows].mean(axis=(1, 2))     # (16,)
chosen = {"the one before": lift[:, 1].argmax(), "line end": lift[:, 2].argmax(), "name": lift[:, 4].argmax(),
          "widest": entropy.argmax()}
model.forward(ids[None], ids[None])
figure, panels = plt.subplots(2, 2, figsize=(8, 8.4))
for panel, (what, head) in zip(panels.flat, chosen.items(), strict=True):
    q, k = model.saved[f"h.{head // 4}.attn"][1:3]                    # (1, H, T, D)
    attention_map(panel, attention_weights(q, k)[0, head % 4], words,
                  f"{what}: layer {head // 4}, head {head % 4}, exp(entropy) {np.exp(entropy[head]):.0f}")
plt.show()

# %% [markdown]
# The head of the names looks back at the speaker's name from nearly everywhere. The one of line ends looks back at
# where its line began, and so can know how long it is already; where there is none yet it looks at the name. The one
# before builds words from tokens.
#
# **Predict:** cut out a head (set the columns of the projection that read it to 0). By how much does the loss rise:
# about the same for all 16?

# %%
whole = model.forward(inputs, targets)
without = []
for head in range(16):
    proj = P[f"h.{head // 4}.attn.proj.weight"]                       # (C, C): D columns for each head
    columns = slice(head % 4 * 32, head % 4 * 32 + 32)
    kept = proj[:, columns].copy()
    proj[:, columns] = 0
    without.append(model.forward(inputs, targets) - whole)
    proj[:, columns] = kept
figure, panel = plt.subplots()
panel.bar(range(16), without, color=np.repeat([BLUE, GREEN], 4).tolist() * 2)
panel.set_xticks(range(16), [f"{h // 4}.{h % 4}" for h in range(16)])
panel.set(xlabel="layer.head that is cut out", ylabel="loss rises by", title="Few are hard to do without")
plt.show()

# %% [markdown]
# Far from it. Two heads of the first layer, which look at the tokens just before, do most of what cannot be done
# elsewhere; of most others each can be cut out almost without harm, because more heads have learned the same. Larger
# models behave in the same way (Michel, Levy and Neubig 2019), which is why heads can be pruned.

# %% [markdown]
# ## 9. Shared keys and values
#
# When a model writes, it keeps the keys and values of all tokens so far (tutorial 12). Per token that is 2 × C numbers
# in each layer. If several query heads share one head of keys and values, **grouped heads**, it is less. By hand, in 16
# bits: Llama 2 70B has 80 layers and 64 heads of D = 128; with 8 heads of keys and values instead of 64, a token takes
# 2 × 8 × 128 × 80 × 2 bytes = 328 kB instead of 2.6 MB.

# %%
q = rng.standard_normal((1, 8, 5, 16))                                # (B, H, T, D)
k, v = rng.standard_normal((2, 1, 2, 5, 16))                          # (B, Hkv, T, D): each for 4 heads
repeated = attention_weights(q, np.repeat(k, 4, axis=1)) @ np.repeat(v, 4, axis=1)
grouped, lse = numpy_ops.attention_forward(q, k, v)
print("grouped heads are repeated ones:", np.abs(repeated - grouped).max())
llama = ModelConfig.preset("llama2-70b")
print(f"{2 * llama.n_kv_head * llama.head_size * llama.n_layer * 2:,} bytes a token")

# %% [markdown]
# ## 10. The real lines
#
# This is the package's specification of attention. It is your function, with grouped heads, a mask for fewer queries
# than keys, and rows that see nothing at all. It also returns `lse`, the logarithm of each row's sum of exponentials,
# from which the weights can be had again: p = exp(s - lse). Tutorials 4 and 8 live on that.

# %%
source("minigpt/ops/numpy_ops.py", "qg = q.reshape(B, Hkv, H // Hkv, Tq, D)", "return _store(o, o_out)")
q, k, v = rng.standard_normal((3, 2, 4, 128, 32), dtype=np.float32)   # (B, H, T, D) each
out, lse = numpy_ops.attention_forward(q, k, v)
print("\nours and the package's, largest difference:", np.abs(attention_weights(q, k) @ v - out).max())

# %% [markdown]
# And the same as loops in C++, the first rung of a ladder: for each query, all scores, their maximum, the sum of the
# exponentials, the weighted sum of the values. Only one row of scores ever exists, so it needs T floats, not T².

# %%
source("csrc/cpp/attention/forward_1_naive.cpp", "for (int64_t i = 0; i < shape.Tq", "oi[d] += p[j] * norm")

# %%
T = 1024
q, k, v = rng.standard_normal((3, 1, 4, T, 32), dtype=np.float32)     # (B, H, T, D) each
why_not = ops.available()["cpp"]
print(f"NumPy, ours    {seconds(lambda: attention_weights(q, k) @ v, repeats=3) * 1e3:7.1f} ms")
for kernel in () if why_not else ("naive", "online_softmax", "tiled", None):
    attend_fast = functools.partial(ops.load("cpp").attention_forward, q, k, v, kernel=kernel)
    off = np.abs(attend_fast()[0] - attention_weights(q, k) @ v).max()
    print(f"{kernel or 'the fastest':14} {seconds(attend_fast, repeats=3) * 1e3:7.1f} ms, off by {off:.1e}")
if why_not:
    print("the C++ kernels do not load here:", why_not)

# %% [markdown]
# The plain loops need far less memory than NumPy, and skip what the mask forbids, half of the FLOPs. But they do one
# multiplication at a time, where NumPy's products use the processor's vectors; so does the second rung, which keeps not
# even a row of scores. The last two use the vectors, and on most machines leave all others far behind. How, is told in
# tutorials 6 to 8.
#
# ## Summary
#
# - Attention is a soft look-up: softmax(q·k/√D) weights the values. The root keeps the scores' variance at 1; without
#   it their deviation is √D, and one key takes all.
# - The causal mask sets scores of later tokens to -∞ before the softmax; then one pass trains all T predictions.
# - Heads are views of one (T, C) array, D = C / H columns each; nothing is copied.
# - It costs 4T²C FLOPs and, done naively, several arrays of 4HT² bytes: as much as the matrices around it at T = 2C.
# - Attention alone does not see the order; positions are added. In the trained model a few heads are specialists, and
#   most can be cut out singly almost without harm.
#
# What to try next: a passage with two speakers in section 4, and the heads' picture again: which name is looked at?
# Then [the whole GPT](03_gpt_forward.ipynb), in which attention has its place. The assignment
# [A1](assignments/a1_ops/README.md) asks for these operations with their gradients.
#
# ## Papers
#
# - A. Vaswani et al.: Attention is all you need. 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762)
# - D. Bahdanau, K. Cho, Y. Bengio: Neural machine translation by jointly learning to align and translate. 2014,
#   [arXiv:1409.0473](https://arxiv.org/abs/1409.0473). Where it began.
# - P. Michel, O. Levy, G. Neubig: Are sixteen heads really better than one? 2019,
#   [arXiv:1905.10650](https://arxiv.org/abs/1905.10650)
# - J. Ainslie et al.: GQA: Training generalized multi-query transformer models from multi-head checkpoints. 2023,
#   [arXiv:2305.13245](https://arxiv.org/abs/2305.13245)
