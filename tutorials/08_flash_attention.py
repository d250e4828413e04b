# %% [markdown]
# # 8. FlashAttention from nothing
#
# **You will be able to** compute a softmax in one pass over numbers that you have not all seen yet; write attention,
# forward and backward, that never holds the T x T matrix of weights; say how many bytes it moves, and why a tile that
# is a little too large ruins it; read this project's C++ kernels and hold them against the machine's peak.
#
# **Needs:** a laptop; a C++ compiler for the last part.  **Before:** [2](02_attention.ipynb) for attention,
# [4](04_backpropagation.ipynb) for gradients, [7](07_matmul.ipynb) for register tiles.  **Time:** about 75 minutes

# %%
import functools
import tracemalloc
from collections import OrderedDict

import matplotlib.pyplot as plt
import numpy as np
from lesson import BLUE, GREEN, GREY, ORANGE, RED, case, check, check_cpp, seconds, source

import minigpt
from minigpt.ops import numpy_ops

rng = np.random.default_rng(0)
np.set_printoptions(precision=4)

# %% [markdown]
# ## The square that does not fit
#
# In attention every token looks at every token before it. Each has three vectors of D numbers: a *query* (what it looks
# for), a *key* (what it offers) and a *value* (what it gives). The *score* of query i and key j is their dot product
# over the square root of D; a softmax turns a row of scores into weights that add up to 1; the output of token i is the
# sum of the values with these weights.
#
# A text of T tokens has T x T scores for each head. In 4 bytes each, a hand count, beside all that goes in and out:

# %%
D = 64
for T in (1024, 4096, 16384, 65536, 131072):
    scores, in_and_out = 4 * T * T, 4 * 4 * T * D       # bytes: one head's scores; its q, k, v and out
    print(f"T = {T:7,}: scores {scores / 1e6:10,.1f} MB, q k v out {in_and_out / 1e6:6.1f} MB, "
          f"{scores / in_and_out:5.0f} times as much")

# %% [markdown]
# At 131,072 tokens (the "128k" of many models) one head of one layer has 69 GB of scores, and the inputs and the output
# together 134 MB. The scores are only in between: nobody wants to have them, and yet for years nobody saw how to do
# without. This tutorial does without.
#
# First the definition, for one head, and what it takes. Count at its worst moment, in the line of `np.exp`: the scores
# `s`, the difference `s - max` and the exponentials are three arrays of T x T numbers: **12 T² bytes**.

# %%
def attention(q, k, v):
    """q, k, v (T, D) -> out (T, D): causal attention by its definition."""
    T, D = q.shape
    s = q @ k.T * D**-0.5                                        # (T, T)
    s = np.where(np.tri(T, dtype=bool), s, -np.inf)              # token i sees the tokens 0 to i
    p = np.exp(s - s.max(axis=1, keepdims=True))                 # (T, T)
    return p @ v / p.sum(axis=1, keepdims=True)                  # (T, D)


def peak_bytes(function, *arguments):
    """The most memory that a call of the function has in use at a time, beside its arguments."""
    tracemalloc.start()
    function(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak

# %%
def random_head(T, D=64, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((3, T, D)).astype(dtype)      # q, k, v


lengths = [512, 1024, 2048, 4096]
naive_peaks = [peak_bytes(attention, *random_head(T)) for T in lengths]
for T, peak in zip(lengths, naive_peaks, strict=True):
    print(f"T = {T:5}: {peak / 1e6:7.1f} MB measured, {12 * T * T / 1e6:7.1f} MB counted, "
          f"ratio {peak / (12 * T * T):.3f}")

# %% [markdown]
# ## Why the softmax wants the whole row first
#
# The weights of a row of scores $s_0 ... s_{n-1}$ are $e^{s_j} / \sum_i e^{s_i}$. Nothing in this asks for a maximum.
#
# **Predict:** what does this formula give in float32 for the scores 90, 99 and 100, as it stands?

# %%
scores = np.array([90, 99, 100], np.float32)
with np.errstate(over="ignore", invalid="ignore"):
    exponentials = np.exp(scores)
    print("exponentials", exponentials, " weights", exponentials / exponentials.sum())
largest = np.log(np.finfo(np.float32).max)
print(f"float32 ends at {np.finfo(np.float32).max:.3g}, which is e to the {largest:.2f}")
shifted = np.exp(scores - scores.max())
print("exponentials of s - max", shifted, " weights", shifted / shifted.sum())

# %% [markdown]
# A score of 89 is enough for infinity, and infinity over infinity is not a number. Since
# $e^{s_j} / \sum e^{s_i} = e^{s_j - m} / \sum e^{s_i - m}$ for any $m$, one takes the row's maximum: then the largest
# exponential is 1 and nothing overflows. The price: three passes over the row, each of which needs the end of the one
# before.
#
# 1. the maximum $m$ of all scores
# 2. the sum $l = \sum_j e^{s_j - m}$
# 3. the output $\frac{1}{l} \sum_j e^{s_j - m} v_j$
#
# So a row of scores has to be kept, or computed three times. Can it be one pass?
#
# ## One pass: the maximum so far
#
# Walk along the row with the largest score *so far*, m, and the sum l of $e^{s_i - m}$ *so far*. As long as no score
# is above m, just add. When a score raises the maximum from $m$ to $m'$, every term that was added is too large, all
# by the same factor:
#
# $$e^{s_i - m'} = e^{s_i - m} \cdot e^{m - m'}$$
#
# so the whole sum is put right by one multiplication with the **correction** $e^{m - m'}$, without looking back at any
# score. Number by number:

# %%
row = np.array([1.0, 3.0, 2.0, 2.5, 5.0, 4.0, 4.5, 6.0, 2.0, 5.5])
m, l, history = -np.inf, 0.0, []
print("score  maximum  correction    sum")
for s in row:
    m_new = max(m, s)
    correction = np.exp(m - m_new)              # 1 where the maximum stays; 0 at the first score, as m is -inf
    history.append((m_new, l, l * correction))
    l = l * correction + np.exp(s - m_new)
    m = m_new
    print(f"{s:5.1f} {m:8.1f} {correction:11.4f} {l:8.4f}")
print("at once:", row.max(), np.exp(row - row.max()).sum())

# %%
maxima, before, after = np.array(history).T
sums, at = after + np.exp(row - maxima), np.arange(len(row))
figure, (left, right) = plt.subplots(1, 2)
left.bar(at, row, color=BLUE, label="score")
left.step(at, maxima, where="mid", color=RED, label="maximum so far, m")
left.set(title="the row, and its running maximum", xlabel="position in the row", ylim=(0, 8))
right.plot(at, sums, "o-", color=BLUE, label="sum so far, l")
rises = np.flatnonzero(before > after + 1e-12)
right.vlines(rises, after[rises], before[rises], color=RED, lw=3, label="taken away by the correction")
right.set(title="the running sum shrinks where m rises", xlabel="position in the row", ylim=(0, 4))
left.legend(frameon=False, loc="upper left")
right.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# ### Exercise 1 (5 minutes): one score more
#
# Write the step: the running maximum and sum, and a new score, give the new maximum and sum. At the start of a row they
# are minus infinity and 0.

# %%
def add_score(m, l, s):
    """m, l: maximum and sum of exp(s - m) of the scores before s -> the same with s."""
    ...

# %%
check(add_score, case(2.0, 1.5, 1.0, want=(2.0, 1.5 + np.exp(-1.0)), why="the maximum stays: no correction"),
      case(1.0, 1.5, 3.0, want=(3.0, 1.5 * np.exp(-2.0) + 1), why="the terms before were made for a smaller maximum"),
      case(-np.inf, 0.0, -7.0, want=(-7.0, 1.0), why="the first score is the maximum, whatever it is"),
      case(100.0, 2.0, 900.0, want=(900.0, 1.0), why="no exponential may be of a positive number: it would overflow"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# First the new maximum; then what was summed up has to be multiplied by exp(old maximum - new maximum).
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def add_score(m, l, s):
#     m_new = max(m, s)
#     return m_new, l * np.exp(m - m_new) + np.exp(s - m_new)
# ```
#
# </details>

# %% [markdown]
# ## How often is anything corrected?
#
# **Predict:** a row has 4096 scores in random order. How often does the maximum rise on the way: about 2000 times, 64
# times, or fewer than 10?

# %%
lengths_of_rows = [16, 64, 256, 1024, 4096]
rises = []
for n in lengths_of_rows:
    maxima = np.maximum.accumulate(rng.standard_normal((200, n)), axis=1)             # of 200 rows
    rises.append(1 + (np.diff(maxima, axis=1) > 0).sum(axis=1).mean())
expected = [sum(1 / j for j in range(1, n + 1)) for n in lengths_of_rows]             # 1 + 1/2 + ... + 1/n
for n, measured, counted in zip(lengths_of_rows, rises, expected, strict=True):
    print(f"{n:5} scores: the maximum rises {measured:.2f} times on average; counted: {counted:.2f}")
plt.figure(figsize=(6, 2.6))
plt.semilogx(lengths_of_rows, expected, color=GREY, label="1 + 1/2 + ... + 1/n")
plt.semilogx(lengths_of_rows, rises, "o", color=BLUE, label="measured, mean of 200 rows")
plt.gca().set(title="the maximum rises ever more rarely", xlabel="scores in a row", ylabel="rises of the maximum")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# The j-th score is the largest of the first j with probability 1/j, so there are $1 + 1/2 + ... + 1/n \approx \ln n +
# 0.58$ rises. Corrections are rare, but a program that asks "did it rise?" at each score pays for the question; the
# fast kernels below multiply always, once for many scores.
#
# ## The output on the way too
#
# The output is a sum with the same weights: $o = \sum_j e^{s_j - m} v_j$, a vector of D numbers. It is corrected by
# the same factor, and divided by $l$ at the end. One query, one pass over the keys, and of the scores only the current
# one exists:

# %%
def one_query(q, k, v):
    """q (D,), k and v (n, D) -> out (D,), lse: one query over its n keys."""
    m, l, o = -np.inf, 0.0, np.zeros_like(q)
    for kj, vj in zip(k, v, strict=True):
        s = q @ kj * len(q)**-0.5
        m_new = max(m, s)
        correction, p = np.exp(m - m_new), np.exp(s - m_new)
        l = l * correction + p
        o = o * correction + p * vj
        m = m_new
    return o / l, m + np.log(l)


q, k, v = random_head(256)
out, lse = one_query(q[-1], k, v)
print(f"largest difference from the definition: {np.abs(out - attention(q, k, v)[-1]).max():.1e}")

# %% [markdown]
# It returns a second number, $\text{lse} = m + \ln l = \ln \sum_j e^{s_j}$: the *log-sum-exp*, all that the backward
# pass will need to know of this row. With it a weight is $e^{s_j - \text{lse}}$, in one step.
#
# ## Two parts become one
#
# What a walk carries, $(m, l, o)$, can be had from any part of the keys, and two parts can be joined: the one with the
# smaller maximum is corrected. So keys can be taken in pieces of any size, in any order, by different threads.

# %%
def part(s, v):
    """The triple (m, l, o) of some scores s (n,) and their values v (n, D)."""
    m = float(s.max())
    return m, float(np.exp(s - m).sum()), np.exp(s - m) @ v


s, values = np.sort(rng.standard_normal(12) * 3), rng.standard_normal((12, 4))
low, high, both = part(s[:7], values[:7]), part(s[7:], values[7:]), part(s, values)
for name, (m, l, o) in {"low": low, "high": high, "both": both}.items():
    print(f"{name:4}: m = {m:5.2f}, l = {l:.3f}, o = {o.round(2)}")

# %% [markdown]
# ### Exercise 2 (10 minutes): join two parts
#
# `a` and `b` are triples (m, l, o) of two different parts of the keys; write the triple of both together.

# %%
def join(a, b):
    """a, b: (m, l, o) with numbers m, l and o (D,), unnormalised -> (m, l, o) of all keys of both."""
    ...

# %%
empty = -np.inf, 0.0, np.zeros(4)
check(join, case(high, low, want=both, why="here b has the smaller maximum"),
      case(low, high, want=both, why="here a has the smaller maximum"),
      case(empty, both, want=both, why="a part without keys changes nothing"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# The new maximum is the larger of the two. Each part gets a correction of its own, exp(its maximum - the new one).
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def join(a, b):
#     m = max(a[0], b[0])
#     ca, cb = np.exp(a[0] - m), np.exp(b[0] - m)
#     return m, a[1] * ca + b[1] * cb, a[2] * ca + b[2] * cb
# ```
#
# </details>

# %% [markdown]
# ## Tiles
#
# One score at a time is slow in NumPy and slow everywhere: each key is fetched again for each query. Take a **tile**
# instead: r queries and c keys. Its r x c scores come from one small matrix product, they are turned into exponentials
# and multiplied with the c values while they are still at hand, and then they are forgotten. The r queries carry their
# (m, l, o) from tile to tile.

# %%
def forward_tile(s, v, m, l, o):
    """Adds a tile of scores s (r, c) and values v (c, D) to what r queries carry: m and l (r, 1), o (r, D)."""
    m_new = np.maximum(m, s.max(axis=1, keepdims=True))                              # (r, 1)
    p = np.exp(s - m_new)                                                            # (r, c)
    correction = np.exp(m - m_new)                                                   # (r, 1)
    return m_new, l * correction + p.sum(axis=1, keepdims=True), o * correction + p @ v

# %%
def flash_forward(q, k, v, tile=32):
    """q, k, v (T, D) -> out (T, D), lse (T,), and the tiles in the order in which they were visited."""
    (T, D), visited = q.shape, []
    out, lse = np.empty_like(q), np.empty(T, q.dtype)
    for i in range(0, T, tile):
        o = np.zeros_like(q[i:i + tile])                                             # (r, D)
        m, l = np.full_like(o[:, :1], -np.inf), np.zeros_like(o[:, :1])              # (r, 1)
        for j in range(0, i + 1, tile):             # keys after the last query of the tile are never looked at
            s = q[i:i + tile] @ k[j:j + tile].T * D**-0.5                            # (r, c)
            if i == j:                              # on the diagonal each query sees another number of keys
                s[np.triu_indices_from(s, 1)] = -np.inf
            m, l, o = forward_tile(s, v[j:j + tile], m, l, o)
            visited.append((i, j))
        out[i:i + tile], lse[i:i + tile] = o / l, (m + np.log(l))[:, 0]
    return out, lse, visited

# %% [markdown]
# A causal mask hides the tiles above the diagonal altogether. They cost nothing: the loop ends before them. Only those
# on the diagonal are masked inside. The picture is drawn from the loop's own list of visits:

# %%
def draw_tiles(panel, visited, T, tile, title):
    """The tiles numbered in the order of their visits; grey if there was none, framed on the diagonal."""
    order = np.full((T // tile, T // tile), np.nan)
    for number, (i, j) in enumerate(visited):
        order[i // tile, j // tile] = number
        if i == j:
            corner = j // tile - 0.45, i // tile - 0.45
            panel.add_patch(plt.Rectangle(corner, 0.9, 0.9, facecolor="none", edgecolor=RED, lw=2))
        panel.text(j // tile, i // tile, number, ha="center", va="center", fontsize=8,
                   color="black" if number > len(visited) * 0.6 else "white")
    panel.imshow(np.where(np.isnan(order), 0, np.nan), cmap="Greys", vmin=-1, vmax=3)
    panel.imshow(order)
    panel.set(title=title, xlabel="tile of keys", ylabel="tile of queries")


q, k, v = random_head(256)
out, lse, visited = flash_forward(q, k, v)

# %%
figure, panel = plt.subplots(figsize=(4.6, 4))
draw_tiles(panel, visited, 256, 32, "order of visits; grey: never; framed: masked inside")
plt.show()
print(f"{len(visited)} of {8 * 8} tiles visited; counted: 1 + 2 + ... + 8 = {8 * 9 // 2}")
print(f"largest difference from the definition: {np.abs(out - attention(q, k, v)).max():.1e}")

# %% [markdown]
# The same numbers, up to rounding: the sums are the same sums in another order.
#
# ### Exercise 3 (10 minutes): which tiles
#
# With r rows and c columns a tile need not be square, and the last ones may be cut off. Say how many tiles have to be
# visited, and how many of these have to be masked inside (because a query of the tile does not see all of its keys).

# %%
def count_tiles(T, r, c):
    """-> (visited, masked), for tiles of r queries and c keys of a text of T tokens, causal."""
    ...

# %%
def by_looking(T, r, c):
    mask = np.tri(T, dtype=bool)
    tiles = [mask[i:i + r, j:j + c] for i in range(0, T, r) for j in range(0, T, c)]
    return int(sum(tile.any() for tile in tiles)), int(sum(tile.any() and not tile.all() for tile in tiles))


why = ("query i sees the keys j <= i: a tile is needed if its last query sees its first key, "
       "and masked unless its first query sees its last key")
sizes = [(64, 16, 16), (64, 32, 8), (64, 8, 32), (49, 16, 12), (7, 16, 4)]
check(count_tiles, *(case(*size, want=by_looking(*size), why=why) for size in sizes))

# %% [markdown]
# <details><summary>Hint</summary>
#
# A tile holds the queries i to min(i + r, T) - 1 and the keys j to min(j + c, T) - 1. Which query of it sees most,
# which sees least?
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def count_tiles(T, r, c):
#     visited = masked = 0
#     for i in range(0, T, r):
#         last_query = min(i + r, T) - 1
#         for j in range(0, last_query + 1, c):
#             last_key = min(j + c, T) - 1
#             visited += 1
#             masked += int(last_key > i)
#     return visited, masked
# ```
#
# </details>

# %% [markdown]
# ## What it takes now
#
# Count: the output, 4 T D bytes, the log-sum-exp, 4 T, and for one tile of r = 128 rows a handful of arrays of r x r or
# r x D numbers, which do not grow with T (count six of the larger kind). Measured again, beside the definition:

# %%
flash_peaks = [peak_bytes(flash_forward, *random_head(T), 128) for T in lengths]
counted = [4 * T * 64 + 4 * T + 6 * 4 * 128 * 128 for T in lengths]
for T, peak, count, naive in zip(lengths, flash_peaks, counted, naive_peaks, strict=True):
    print(f"T = {T:5}: {peak / 1e6:5.2f} MB measured, {count / 1e6:5.2f} MB counted, "
          f"the definition takes {naive / peak:5.0f} times as much")
far = np.geomspace(512, 131072)
plt.loglog(far, 12 * far**2 / 1e6, color=RED, lw=1, label="12 T² bytes")
plt.loglog(lengths, np.array(naive_peaks) / 1e6, "o", color=RED, label="definition, measured")
plt.loglog(far, (4 * far * 65 + 393216) / 1e6, color=BLUE, lw=1, label="4 T (D + 1) bytes and a few tiles")
plt.loglog(lengths, np.array(flash_peaks) / 1e6, "s", color=BLUE, label="tiles, measured")
plt.axhline(16e3, color=GREY, ls="--", lw=1, label="16 GB, a laptop's memory")
plt.gca().set(title="memory of one head", xlabel="T (tokens)", ylabel="MB")
plt.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## Bytes that travel
#
# Memory that is not used is one gain. The other is speed, and that is about bytes too. A processor has a small fast
# memory (the caches; on a GPU, shared memory and registers) before a large slow one. The definition writes all scores
# to the slow memory and reads them again, the probabilities as well: at least $4 T^2$ numbers travel, and $4 T D$ for
# the inputs and the output.
#
# Tiles of r queries: the queries and the output travel once, $2 T D$ numbers; keys and values once for each of the
# $T / r$ tiles of queries, $2 T D \cdot T / r$ numbers. A larger tile is better, as long as four tiles (of q, k, v, o)
# fit in the fast memory of M numbers: $4 r D \le M$. With the largest, $r = M / 4 D$, it is
#
# $$2 T D + \frac{8 T^2 D^2}{M}$$
#
# numbers, which is theorem 2 of the FlashAttention paper, $\Theta(T^2 D^2 / M)$, with its constants. Let us hold that
# against a fast memory that counts: it has room for a number of packets of 8 rows, and throws out the one that was
# not used for longest, as caches do.

# %%
class FastMemory:
    def __init__(self, packets):
        self.room, self.held, self.loads = packets, OrderedDict(), 0

    def touch(self, packet):
        if packet in self.held:
            self.held.move_to_end(packet)
            return
        self.loads += 1
        self.held[packet] = True
        if len(self.held) > self.room:
            self.held.popitem(last=False)                # the one that was not touched for longest

# %%
def numbers_loaded(T, D, tile, M):
    """The numbers that travel into a fast memory of M numbers; tiles of `tile` queries and keys, no mask."""
    memory = FastMemory(M // (8 * D))
    for i in range(0, T, tile):
        for j in range(0, T, tile):
            for a in range(i, i + tile, 8):              # 8 queries ...
                for b in range(j, j + tile, 8):          # ... meet 8 keys
                    for packet in ("q", a), ("k", b), ("v", b), ("o", a):
                        memory.touch(packet)
    return memory.loads * 8 * D

# %% [markdown]
# **Predict:** T = 1024, D = 64, a fast memory of 131 kB (M = 32,768 numbers, so r may be up to 128). How do tiles of 8,
# 16, 32, 64, 128 compare? And what happens with tiles of 256, which are too large?

# %%
T, M = 1024, 32768
tiles = [8, 16, 32, 64, 128, 256]
loaded = [numbers_loaded(T, D, tile, M) for tile in tiles]
counted = [2 * T * D + 2 * T * D * T // tile for tile in tiles]
for tile, measured, count in zip(tiles, loaded, counted, strict=True):
    print(f"tiles of {tile:3}: {4 * measured / 1e6:6.1f} MB loaded, {4 * count / 1e6:6.1f} MB counted, "
          f"ratio {measured / count:5.2f}")
print(f"the definition: {4 * (4 * T * T + 4 * T * D) / 1e6:.1f} MB or more; "
      f"theorem 2 with its constants: {4 * (2 * T * D + 8 * (T * D)**2 / M) / 1e6:.1f} MB")

# %%
plt.loglog(tiles, np.array(counted) * 4e-6, color=GREY, label="2 T D (1 + T / r) numbers")
plt.loglog(tiles, np.array(loaded) * 4e-6, "o-", color=BLUE, label="loaded into the fast memory")
plt.axvline(M / (4 * D), color=RED, ls="--", lw=1, label="four tiles fill the fast memory")
plt.axhline(4e-6 * (4 * T * T + 4 * T * D), color=ORANGE, lw=1, label="definition, at least")
plt.gca().set(title=f"bytes that travel, T = {T}, D = {D}, fast memory {4 * M // 1000} kB",
              xlabel="rows r of a tile", ylabel="MB")
plt.xticks(tiles, tiles)
plt.yticks([3, 5, 10, 20, 50], [3, 5, 10, 20, 50])
plt.minorticks_off()
plt.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Each doubling of the tile halves the traffic, until the fast memory is full (just full, it throws out a few packets
# that it will need again). One step further it is as bad as with the smallest tiles: by the time the keys of a tile
# come round again they have all been thrown out. Tile sizes are therefore the first thing that kernels are tuned by,
# and they differ from machine to machine.
#
# ## Backward, without having kept the weights
#
# Now the gradients: given `dout` (T, D), the derivative of the loss by the output, find those by q, k and v. If the
# weights P (T, T) were there, each line of the forward pass would have its line backward
# ([4](04_backpropagation.ipynb)):
#
# | forward | backward |
# |---|---|
# | $O = P V$ | $dV = P^T dO$, $\quad dP = dO\, V^T$ |
# | $P = \text{softmax}(S)$ | $dS_{ij} = P_{ij} (dP_{ij} - \sum_k P_{ik} dP_{ik})$ |
# | $S = Q K^T / \sqrt D$ | $dQ = dS\, K / \sqrt D$, $\quad dK = dS^T Q / \sqrt D$ |
#
# P is not there, and two things make it unnecessary. $P_{ij} = e^{S_{ij} - \text{lse}_i}$ can be computed again, tile
# by tile, in any order, since lse was kept: T numbers in place of T². And the sum over a whole row in the second line
# is known before the walk begins:
#
# $$\delta_i = \sum_k P_{ik}\, dP_{ik} = \sum_k P_{ik} \, (dO_i \cdot V_k)
# = dO_i \cdot \sum_k P_{ik} V_k = dO_i \cdot O_i$$
#
# ### Exercise 4 (10 minutes): the softmax of a tile, backward
#
# From the scores of a tile (masked ones are minus infinity), the rows' lse, dP and delta: P and dS.

# %%
def backward_tile(s, lse, dp, delta):
    """s, dp (r, c), lse and delta (r,) -> p (r, c), ds (r, c)."""
    ...

# %%
s, dp = rng.standard_normal((2, 4, 6))
s[0, 3:] = -np.inf
P = np.exp(s - s.max(axis=1, keepdims=True))
P /= P.sum(axis=1, keepdims=True)
row_lse, delta = np.log(np.exp(s).sum(axis=1)), (P * dp).sum(axis=1)
first, second = np.s_[:, :4], np.s_[:, 4:]          # a row in two tiles
dS = P * (dp - delta[:, None])
check(backward_tile, case(s, row_lse, dp, delta, want=(P, dS), why="p = exp(s - lse), ds = p (dp - delta), row by row"),
      *(case(s[t], row_lse, dp[t], delta, want=(P[t], dS[t]),
             why="lse and delta are of the whole row: do not sum over the tile") for t in (first, second)))

# %% [markdown]
# <details><summary>Hint</summary>
#
# lse and delta have one number a row: lse[:, None] has shape (r, 1) and spreads over the columns.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def backward_tile(s, lse, dp, delta):
#     p = np.exp(s - lse[:, None])
#     return p, p * (dp - delta[:, None])
# ```
#
# </details>

# %% [markdown]
# Now all tiles. The walk is turned round: a tile of *keys* stays, its dk and dv are summed up at hand, and the queries
# that see it pass by.

# %%
def tile_gradients(q, k, v, dout, lse, delta, diagonal):
    s = q @ k.T * q.shape[1]**-0.5                                                   # (r, c)
    if diagonal:
        s[np.triu_indices_from(s, 1)] = -np.inf
    p = np.exp(s - lse[:, None])
    return p, p * (dout @ v.T - delta[:, None])

# %%
def flash_backward(dout, q, k, v, out, lse, tile=32):
    """-> dq, dk, dv (T, D), and the tiles in the order in which they were visited."""
    (T, D), visited = q.shape, []
    delta = (dout * out).sum(axis=1)                                                 # (T,)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for j in range(0, T, tile):
        c = slice(j, j + tile)
        for i in range(j, T, tile):                                                  # queries before j see none of it
            r = slice(i, i + tile)
            p, ds = tile_gradients(q[r], k[c], v[c], dout[r], lse[r], delta[r], i == j)
            dv[c] += p.T @ dout[r]                                                   # (c, D)
            dk[c] += ds.T @ q[r] * D**-0.5
            dq[r] += ds @ k[c] * D**-0.5                                             # (r, D)
            visited.append((i, j))
    return dq, dk, dv, visited

# %% [markdown]
# Two judges: the definition, with P in full, and finite differences, which know no formula at all. In float64, so that
# rounding hides no mistake.

# %%
def definition_backward(dout, q, k, v):
    T, D = q.shape
    s = np.where(np.tri(T, dtype=bool), q @ k.T * D**-0.5, -np.inf)
    p = np.exp(s - s.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)                                                # (T, T)
    dp = dout @ v.T
    ds = p * (dp - (p * dp).sum(axis=1, keepdims=True)) * D**-0.5
    return ds @ k, ds.T @ q, p.T @ dout


q, k, v = random_head(96, D=16, dtype=np.float64)
dout = rng.standard_normal(q.shape)
out, lse, _ = flash_forward(q, k, v)
*grads, visited_backward = flash_backward(dout, q, k, v, out, lse)
for name, tiled, whole in zip(("dq", "dk", "dv"), grads, definition_backward(dout, q, k, v), strict=True):
    print(f"{name}: largest difference from the definition {np.abs(tiled - whole).max():.1e}")

# %%
def slope(array, place, h=1e-5):
    """The derivative of sum(dout * attention(q, k, v)) by one number of q, k or v, by moving it a little."""
    kept, losses = array[place], []
    for moved in (kept + h, kept - h):
        array[place] = moved
        losses.append((dout * attention(q, k, v)).sum())
    array[place] = kept
    return (losses[0] - losses[1]) / (2 * h)


for name, array, grad in zip(("dq", "dk", "dv"), (q, k, v), grads, strict=True):
    places = [tuple(rng.integers(0, array.shape)) for _ in range(20)]
    print(f"{name}: largest difference from finite differences "
          f"{max(abs(slope(array, place) - grad[place]) for place in places):.1e}, at 20 places")

# %%
q8, k8, v8 = random_head(256)
out8, lse8, forward_visits = flash_forward(q8, k8, v8)
backward_visits = flash_backward(np.ones_like(q8), q8, k8, v8, out8, lse8)[-1]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4))
draw_tiles(left, forward_visits, 256, 32, "forward: a tile of queries stays")
draw_tiles(right, backward_visits, 256, 32, "backward: a tile of keys stays")
plt.show()

# %% [markdown]
# The backward pass computes the scores a second time. Count the products: forward has two ($Q K^T$, $P V$), backward
# five (scores again, dP, dV, dK, dQ) where four would do with P at hand: a quarter more arithmetic. It is
# faster all the same on most machines, as reading P from slow memory takes longer than making it anew.
#
# ## Where it breaks, and the guards
#
# **Predict:** with 6 queries over 4 keys, aligned at the end (the last query sees the last key), the first two queries
# see no key at all. What does our `forward_tile` make of a row in which every score is minus infinity?

# %%
hidden = np.full((1, 4), -np.inf)
start = np.full((1, 1), -np.inf), np.zeros((1, 1)), np.zeros((1, 8))
with np.errstate(invalid="ignore"):
    print("l =", forward_tile(hidden, np.ones((4, 8)), *start)[1], ", as -inf - -inf =", np.subtract(-np.inf, -np.inf))
q6, kv = rng.standard_normal((1, 1, 6, 8)), rng.standard_normal((2, 1, 1, 4, 8))
out6, lse6 = numpy_ops.attention_forward(q6, *kv, kernel="tiled")
print("the package: sum of |out| by query", np.abs(out6).sum(axis=-1)[0, 0].round(2), " lse", lse6[0, 0].round(2))
grads6 = numpy_ops.attention_backward(np.ones_like(out6), q6, *kv, out6, lse6, kernel="tiled")
print("gradients are finite:", all(np.isfinite(grad).all() for grad in grads6))

# %% [markdown]
# The guard is one line forward (where m is still minus infinity, 0 is subtracted, so that $e^{-\infty - 0} = 0$) and
# one backward (lse = -inf is read as 0); the row's output is 0 by agreement. Here they are in the package, with grouped
# heads and cut-off tiles, and otherwise as you know it:

# %%
source("minigpt/ops/numpy_ops.py", "            for k0 in range(0, last_key, BLOCK_K):", "m = m_new")

# %%
q4, k4, v4 = (rng.standard_normal((2, 3, 200, 16)).astype(np.float32) for _ in range(3))
ours = np.stack([[flash_forward(q4[b, h], k4[b, h], v4[b, h])[0] for h in range(3)] for b in range(2)])
theirs, _ = numpy_ops.attention_forward(q4, k4, v4, kernel="tiled")
print(f"largest difference between the package's tiles and ours: {np.abs(ours - theirs).max():.1e}")

# %% [markdown]
# The other danger is large scores. Nothing overflows any more, but a score of 1000 in float32 is known to 1000 x 6e-8,
# and so is the exponent: the weights get a relative error of 6e-5. Count: the error grows as the size of the
# scores does. Is the one pass worse at it than the definition, with all its corrections?

# %%
sizes, errors = [1, 4, 16, 64, 256], {"definition": [], "tiles": []}
for size in sizes:
    exact = random_head(512, dtype=np.float64) * np.array([size, 1, 1])[:, None, None]
    q, k, v = exact.astype(np.float32)
    truth = attention(*(x.astype(np.float64) for x in (q, k, v)))
    errors["definition"].append(np.abs(attention(q, k, v) - truth).max())
    errors["tiles"].append(np.abs(flash_forward(q, k, v)[0] - truth).max())
plt.figure(figsize=(6, 2.8))
for (name, values), mark in zip(errors.items(), "os", strict=True):
    plt.loglog(sizes, values, mark + "-", label=name)
plt.loglog(sizes, 6e-8 * 6 * np.array(sizes), color=GREY, ls="--", lw=1, label="6e-8 times the largest scores")
plt.gca().set(title="error in float32 against float64", xlabel="standard deviation of the scores",
              ylabel="largest error")
plt.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Both grow with the scores, and close together: one pass costs no accuracy. (Tests in this project hold every kernel
# to a budget of this kind, made of the error of the definition in the same precision.)

# %% [markdown]
# ## In C++: one idea a rung
#
# The folder `csrc/cpp/attention` climbs from the definition to the machine's peak, one idea a file:
#
# | rung | idea |
# |---|---|
# | `naive` | the three passes over a row; the row of scores is the only one that exists |
# | `online_softmax` | one pass, your exercise 1: no score is stored |
# | `tiled` | 16 queries over tiles of 64 keys; vectors instead of single numbers; one correction a tile |
# | `register_tile` | both products in tiles of registers, as in [7](07_matmul.ipynb), from packed keys and values |
#
# Count the FLOPs (additions and multiplications): a pair of query and key takes 2 D for the score and 2 D for the
# value, and the causal mask leaves half of the T² pairs: $2 T^2 D$ a head forward. Backward, with five products for
# two: $5 T^2 D$. Exponentials are not counted.
#
# **Predict:** how much faster than three passes is the one pass, `online_softmax`? And then the tiles?

# %%
ops = minigpt.ops.load("cpp")                            # says in one line why, if the C++ was not built
H, T, D = 4, 1024, 64
q, k, v, dout = np.random.default_rng(1).standard_normal((4, 1, H, T, D)).astype(np.float32)
out, lse = ops.attention_forward(q, k, v)
ours = flash_forward(q[0, 0], k[0, 0], v[0, 0])[0]
print(f"the fastest kernel and our tiles: largest difference {np.abs(out[0, 0] - ours).max():.1e}")
forward, backward = {}, {}                               # kernel: GFLOP/s
for kernel in ops.kernels["attention_forward"]:
    took = seconds(functools.partial(ops.attention_forward, q, k, v, kernel=kernel), repeats=3)
    forward[kernel] = 2 * T * T * D * H / took / 1e9
for kernel in ops.kernels["attention_backward"]:
    took = seconds(functools.partial(ops.attention_backward, dout, q, k, v, out, lse, kernel=kernel), repeats=2)
    backward[kernel] = 5 * T * T * D * H / took / 1e9

# %% [markdown]
# And the machine's two limits: FLOPs (multiply-adds in vector registers and nothing else) and bytes (reading an array
# much larger than the caches).

# %%
rounds, large = 1 << 23, np.ones(1 << 25, np.float32)
peak = ops._C.limit_fma(1) * rounds / seconds(ops._C.limit_fma, rounds, repeats=10) / 1e9
bandwidth = large.nbytes / seconds(ops._C.limit_read, large, repeats=20) / 1e9
print(f"{ops.num_threads()} threads, {peak:.0f} GFLOP/s, {bandwidth:.0f} GB/s")
for name, rates in (("forward", forward), ("backward", backward)):
    for kernel, rate in rates.items():
        print(f"{name:8} {kernel:14} {rate:6.1f} GFLOP/s, {rate / peak:4.0%} of the peak")

# %%
figure, panels = plt.subplots(1, 2, sharey=True, width_ratios=(4, 3))
for panel, (name, rates) in zip(panels, (("forward", forward), ("backward", backward)), strict=True):
    colours = {"naive": GREY, "online_softmax": ORANGE, "tiled": BLUE, "register_tile": GREEN}
    panel.bar(list(rates), list(rates.values()), color=[colours[kernel] for kernel in rates])
    panel.axhline(peak, color=RED, ls="--", lw=1)
    panel.set_title(f"{name}; dashed: peak of the arithmetic")
    for at, rate in enumerate(rates.values()):
        panel.text(at, rate, f"{rate:.0f}", ha="center", va="bottom", fontsize=9)
    panel.tick_params(axis="x", labelsize=8)
panels[0].set_ylabel("GFLOP/s")
plt.show()

# %% [markdown]
# One pass alone is no faster on most machines: it does the same products number by number, each waiting for the one
# before, and asks at every score whether the maximum rose. What it gives is the *permission* to take tiles, and those
# give the speed: vectors, keys that are read once for many queries, one exponential a score and one correction a tile.
#
# The heart of `tiled`: `j0` walks over the tiles of keys, `i` over the 16 queries that share each of them.

# %%
source("csrc/cpp/attention/forward_3_tiled.cpp", "j0 < shape.visible_keys(end - 1)", "add_values(p, keys")

# %%
source("csrc/cpp/attention/softmax.h", "inline vec online_softmax", "return correction;")

# %% [markdown]
# Beside your exercise 1: a whole tile of scores at once, `vec` is 4 to 16 numbers side by side; powers of 2 in place
# of e, since processors are built for them (the scores come multiplied by log2 e); what a query does not see becomes
# minus infinity; and m starts at the lowest finite number, which makes the guard for hidden rows needless.
#
# The backward pass, with the five lines of the derivation. `LOG2E` again, and `first_query` skips what the mask hides:

# %%
source("csrc/cpp/attention/backward_2_tiled.cpp", "const float delta = dot(doi", "add(dq.row(b, h, i)")

# %% [markdown]
# ## The roofline
#
# A program that makes I FLOPs for each byte from memory runs at most at min(peak, I x bandwidth): a roof with a slope
# and a flat part ([6](06_layernorm_in_cpp.ipynb)). Count I for the forward pass. The definition in NumPy moves at least
# $4 T^2$ numbers, each of the T² products of pairs at D = 64 makes 4 D FLOPs: $4 T^2 D / 16 T^2 = D / 4 = 16$ FLOPs a
# byte, however long the text (NumPy does not use the mask). The kernels move q, k, v and out, 16 T D bytes, for
# $2 T^2 D$ FLOPs: $T / 8$, which grows with the text.
#
# **Predict:** which part of the roof is each under?

# %%
def rate(function, flops):
    return flops / seconds(function, q[0, 0], k[0, 0], v[0, 0], repeats=3) / 1e9


points = {"definition, NumPy": (D / 4, rate(attention, 4 * T * T * D)),
          "tiles of 128, NumPy": (T / 8, rate(lambda *head: flash_forward(*head, 128), 2 * T * T * D)),
          **{f"{kernel}, C++": (T / 8, forward[kernel]) for kernel in forward}}
intensity = np.array([0.5, 1024])
corner = peak / bandwidth
plt.loglog([0.5, corner, 1024], [0.5 * bandwidth, peak, peak], color=RED, label="roof")
for (name, point), mark in zip(points.items(), "osv^Dh", strict=True):
    plt.loglog(*point, mark, label=name, markersize=8)
plt.gca().set(title="attention forward, T = 1024, D = 64", xlabel="FLOPs for each byte from memory", ylabel="GFLOP/s")
plt.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# On most CPUs with few cores all lie under the flat part: memory is not what holds the definition back, but its many
# passes over T² numbers (mask, maximum, exponentials), which are no FLOPs of this count, and at longer texts the memory
# that it needs. On a GPU the corner of the roof is at a hundred FLOPs a byte and more, and D / 4 is deep under the
# slope: that is the case that FlashAttention was made for. From rung to rung the intensity stays what it is: what
# grows is how much of the peak is reached with the same bytes.
#
# ### Exercise 5 (20 minutes): the inner loop, in C++
#
# Write the heart of `online_softmax`: what happens to m, l and o at each score. `o` comes as zeros, and m starts at the
# lowest finite number.

# %%
WALK = r"""
#include <cmath>
#include <limits>
// One query q (D) walks over n keys k (n, D) with values v (n, D); its scores are scale q . k_j.
extern "C" void walk(const float* q, const float* k, const float* v, int n, int D,
                     float scale, float* o, float* lse) {
  float m = std::numeric_limits<float>::lowest(), l = 0;
  for (int j = 0; j < n; j++) {
    float s = 0;
    for (int d = 0; d < D; d++) s += q[d] * k[j * D + d];
    s *= scale;
    ...  // your lines: put l and o right if s is a new maximum, then add what this key gives to both
  }
  for (int d = 0; d < D; d++) o[d] /= l;
  *lse = m + std::log(l);
}
"""

# %%
def call_walk(library, q, k, v):
    o, lse = np.zeros_like(q), np.empty(1, np.float32)
    library.walk(q, k, v, len(k), len(q), len(q)**-0.5, o, lse)
    return o, float(lse[0])


q1, (k1, v1) = q[0, 0, 0], random_head(50, seed=2)[:2]
whys = ["one key: the output is its value", "l and o are both sums of exp(s - m), and both have to follow m",
        "scores of hundreds: exp(s) alone overflows"]
check_cpp(WALK, call_walk, *(case(q1 * size, k1[:n], v1[:n], why=why,
                                  want=one_query(q1.astype(np.float64) * size, k1[:n], v1[:n]))
                             for n, size, why in zip([1, 50, 50], [1, 1, 80], whys, strict=True)))

# %% [markdown]
# <details><summary>Hint</summary>
#
# In the branch `if (s > m)` the correction is `std::exp(m - s)`; l and every o[d] are multiplied by it, and m becomes
# s. After the branch, p = `std::exp(s - m)` goes to l, and p times row j of v to o.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# WALK = r"""
# #include <cmath>
# #include <limits>
# // One query q (D) walks over n keys k (n, D) with values v (n, D); its scores are scale q . k_j.
# extern "C" void walk(const float* q, const float* k, const float* v, int n, int D,
#                      float scale, float* o, float* lse) {
#   float m = std::numeric_limits<float>::lowest(), l = 0;
#   for (int j = 0; j < n; j++) {
#     float s = 0;
#     for (int d = 0; d < D; d++) s += q[d] * k[j * D + d];
#     s *= scale;
#     if (s > m) {
#       const float correction = std::exp(m - s);
#       l *= correction;
#       for (int d = 0; d < D; d++) o[d] *= correction;
#       m = s;
#     }
#     const float p = std::exp(s - m);
#     l += p;
#     for (int d = 0; d < D; d++) o[d] += p * v[j * D + d];
#   }
#   for (int d = 0; d < D; d++) o[d] /= l;
#   *lse = m + std::log(l);
# }
# """
# ```
#
# </details>

# %% [markdown]
# The real one, to lay beside yours:

# %%
source("csrc/cpp/attention/forward_2_online_softmax.cpp", "float m = std::numeric_limits", "lse[head")

# %% [markdown]
# ## Summary
#
# - A softmax needs the row's maximum to be safe, but not in advance: when it rises from m to m', everything summed up
#   is multiplied by exp(m - m'). The output, a weighted sum, is corrected alike, so one pass suffices and no row of
#   scores is ever kept.
# - Memory falls from 12 T² bytes to 4 T (D + 1) and a few tiles: at 131,072 tokens from 206 GB a head to 34 MB.
# - Traffic is 2 T D (1 + T / r) numbers with tiles of r rows, $\Theta(T^2 D^2 / M)$ with the largest that fit in a fast
#   memory of M numbers; tiles that do not fit lose all of it.
# - Backward keeps one number a row, the log-sum-exp, computes the weights again, and replaces the sum over the row by
#   delta = dO . O: five products instead of four, and still no T x T matrix.
# - One pass is not what makes the kernel fast; it is what allows the tiles and registers that do.
#
# Next: [9](09_cuda_without_a_gpu.ipynb) and [10](10_cuda_kernels.ipynb) write the same kernel for a GPU. To do it by
# yourself in C++: assignment [a2_cpp](assignments/a2_cpp/README.md).
#
# ## Papers
#
# - Milakov, Gimelshein 2018, *Online normalizer calculation for softmax*,
#   [arXiv:1805.02867](https://arxiv.org/abs/1805.02867)
# - Rabe, Staats 2021, *Self-attention does not need O(n²) memory*, [arXiv:2112.05682](https://arxiv.org/abs/2112.05682)
# - Dao, Fu, Ermon, Rudra, Ré 2022, *FlashAttention*, [arXiv:2205.14135](https://arxiv.org/abs/2205.14135); theorem 2 is
#   the traffic
# - Dao 2023, *FlashAttention-2*, [arXiv:2307.08691](https://arxiv.org/abs/2307.08691): queries outside, keys inside, as
#   here
# - Shah et al. 2024, *FlashAttention-3*, [arXiv:2407.08608](https://arxiv.org/abs/2407.08608)
# - Williams, Waterman, Patterson 2009, *Roofline: an insightful visual performance model*, Communications of the ACM 52
