# %% [markdown]
# # 10. Layernorm and FlashAttention in CUDA
#
# **You will be able to** take a kernel from "a thread a row" to rows that live in registers, and count what each step
# saves; write the online softmax inside a kernel; say which lane of a warp holds which number of a matrix instruction;
# read every rung of `csrc/cuda/attention`, up to the tensor cores.
#
# **Needs:** a laptop with a C++ compiler, no GPU.  **Before:** [9](09_cuda_without_a_gpu.ipynb) for threads, sectors
# and banks, [8](08_flash_attention.ipynb) for the online softmax.  **Time:** about 90 minutes
#
# A text of 4096 tokens, 16 heads: written down, the scores of one layer's attention are $16 \cdot 4096^2$ floats, 1 GB.
# The simplest kernels below move each of them six times, to memory or back: on an H100 some 2 ms. The arithmetic, on
# its tensor cores, would take less than a twentieth of that. All of this tutorial is about not moving them.

# %%
import matplotlib.pyplot as plt
import numpy as np
from lesson import BLUE, GREEN, GREY, ORANGE, RED, case, check, check_kernel, count, cuda, source

from minigpt import emulator, ops
from minigpt.emulator.picture import banks
from minigpt.ops import budget, budget16

rng, emulated, numpy = np.random.default_rng(0), ops.load("emulated"), ops.load("numpy")
ways = {"the scores, six times": 6 * 16 * 4096**2 * 4 / 3.35e12, "the products": 16 * 4 * 4096**2 * 64 / 989e12}
print({name: f"{seconds * 1e3:.2f} ms" for name, seconds in ways.items()}, "at an H100's data sheet speeds")

# %% [markdown]
# ## Layernorm: a thread a row
#
# Layernorm takes each row of $C$ numbers, subtracts their mean, divides by the square root of their variance,
# multiplies by a weight and adds a bias for each column:
#
# $$y_c = \frac{x_c - \mu}{\sqrt{\sigma^2 + \varepsilon}}\, w_c + b_c$$
#
# The first kernel is the formula, with a thread for each row.

# %%
def layernorm(x, w, b):
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * w + b


# %%
NAIVE = """
__global__ void naive(const float* x, const float* w, const float* b, float* y, int rows, int C) {
  int r = blockIdx.x * blockDim.x + threadIdx.x;
  if (r >= rows) return;
  x += r * C, y += r * C;
  float mean = 0, var = 0;
  for (int c = 0; c < C; c++) mean += x[c] / C;
  for (int c = 0; c < C; c++) var += (x[c] - mean) * (x[c] - mean) / C;
  for (int c = 0; c < C; c++) y[c] = (x[c] - mean) * rsqrtf(var + 1e-5f) * w[c] + b[c];
}
extern "C" void run_naive(const float* x, const float* w, const float* b, float* y, int rows, int C) {
  naive<<<(rows + 31) / 32, 32>>>(x, w, b, y, rows, C);
}
"""

# %% [markdown]
# By hand, for $R = 64$ rows of $C = 256$ numbers. The 32 lanes of a warp stand in 32 rows, so each of their accesses to
# `x` and `y` touches 32 sectors, one a number: three reads and a write make $4RC$. `w[c]` is the same number for all
# lanes: one sector for a warp, so $2 \cdot C \cdot R / 32$. At best, `x` would be read once and `y` written once, 8
# numbers a sector: $2RC / 8$.

# %%
R, C = 64, 256
x = rng.normal(size=(R, C)).astype(np.float32)
w, b = (rng.normal(size=C).astype(np.float32) for _ in range(2))
y = np.empty_like(x)
report = emulator.run(cuda(NAIVE).run_naive, x, w, b, y, R, C)
print("largest difference from NumPy", np.abs(y - layernorm(x, w, b)).max())
hand, counted = 4 * R * C + 2 * C * R // 32, count(report, "sectors")
print(f"sectors by hand {hand}, counted {counted}, ratio {counted / hand}; the least {2 * R * C // 8}, "
      f"{counted / (2 * R * C // 8):.0f} times less")

# %% [markdown]
# ### Exercise 1 (25 minutes): a warp a row
#
# Write the kernel with one warp for each row, 4 warps a block. Lane $l$ takes the columns $l, l + 32, l + 64, \dots$,
# so that the lanes read neighbours; a sum over the row is a sum in each lane, and then five shuffles. Compute the
# variance in a pass of its own, from the differences to the mean. By hand, the sectors: three passes over `x`, one over
# `y`, and `w` and `b` once for each row: $6 RC / 8$. The check wants no more.

# %%
WARP = """
__global__ void warp_a_row(const float* x, const float* w, const float* b, float* y, int rows, int C) {
  ...
}
extern "C" void run_warp(const float* x, const float* w, const float* b, float* y, int rows, int C) {
  warp_a_row<<<(rows + 3) / 4, 128>>>(x, w, b, y, rows, C);
}
"""

# %%
few, far = x[:3, :100].copy(), x + 3000
check_kernel(WARP, "run_warp",
             case(few, w[:100], b[:100], np.full_like(few, np.nan), 3, 100, want=layernorm(few, w[:100], b[:100]),
                  why="3 rows and 4 warps: one is idle; 100 columns: in the last round not all lanes have one"),
             case(far, w, b, np.full_like(far, np.nan), R, C,
                  want=layernorm(far.astype(np.float64), w, b),
                  why="the mean is 3000: E[x^2] - E[x]^2 loses all digits, subtract the mean first"),
             case(x, w, b, np.full_like(x, np.nan), R, C, want=layernorm(x, w, b)),
             most={"sectors": 6 * R * C // 8}, tolerance=1e-3)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `int lane = threadIdx.x % 32, r = blockIdx.x * 4 + threadIdx.x / 32;` and loops
# `for (int c = lane; c < C; c += 32)`. After the shuffles (`sum += __shfl_xor_sync(0xffffffff, sum, d)` for d = 16, 8,
# 4, 2, 1) every lane has the sum, and nobody needs to tell the others. A warp whose row does not exist returns as a
# whole.
# </details>
# <details><summary>Solution</summary>
#
# ```python
# WARP = """
# __device__ float warp_sum(float v) {
#   for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffff, v, d);
#   return v;
# }
# __global__ void warp_a_row(const float* x, const float* w, const float* b, float* y, int rows, int C) {
#   int lane = threadIdx.x % 32, r = blockIdx.x * 4 + threadIdx.x / 32;
#   if (r >= rows) return;
#   x += r * C, y += r * C;
#   float sum = 0, squares = 0;
#   for (int c = lane; c < C; c += 32) sum += x[c];
#   float mean = warp_sum(sum) / C;
#   for (int c = lane; c < C; c += 32) squares += (x[c] - mean) * (x[c] - mean);
#   float scale = rsqrtf(warp_sum(squares) / C + 1e-5f);
#   for (int c = lane; c < C; c += 32) y[c] = (x[c] - mean) * scale * w[c] + b[c];
# }
# extern "C" void run_warp(const float* x, const float* w, const float* b, float* y, int rows, int C) {
#   warp_a_row<<<(rows + 3) / 4, 128>>>(x, w, b, y, rows, C);
# }
# """
# ```
# </details>

# %% [markdown]
# ## The package's ladder
#
# minigpt has this ladder in `csrc/cuda/layernorm`, one file a rung: `naive`, `warp_per_row`, and `vectorised`. The last
# reads 16 bytes a lane (four floats in one access), and keeps the row in registers, so that the second and third pass
# read nothing. They also write the mean and the inverse of the standard deviation of each row, for the backward pass.
# By hand:
#
# | rung | x | y | w and b | mean and rstd |
# |---|---|---|---|---|
# | naive | $3RC$ | $RC$ | $2C \cdot R / 32$ | $2R / 8$ |
# | warp_per_row | $3RC/8$ | $RC/8$ | $2RC/8$ | $2R$: one lane writes 4 bytes, a sector each |
# | vectorised | $RC/8$ | $RC/8$ | $2RC/8$ | $2R$ |
#
# All must give what NumPy gives. How far may they be off? minigpt measures that: NumPy in float64 is the truth, NumPy
# in float32 makes some error, and a kernel may make at most a small multiple of it, its *budget*
# (`minigpt/ops/budget.py`).

# %%
def share(op, got, dtype="float32", **arguments):
    """How much of the error budget the worst number of a result uses, from 0 to 1; more is wrong."""
    allowed = budget.budget(op, arguments) if dtype == "float32" else budget16.budget(op, arguments, dtype)
    return max(verdict.share for verdict in budget.judge(op, allowed, got))


by_hand = {"naive": 4 * R * C + C * R // 16 + R // 4, "warp_per_row": 6 * R * C // 8 + 2 * R,
           "vectorised": 4 * R * C // 8 + 2 * R}
reports = {}
for rung in by_hand:
    with emulator.watch(trace=5000) as reports[rung]:
        got = emulated.layernorm_forward(x, w, b, kernel=rung)
    used = share("layernorm_forward", got, x=x, weight=w, bias=b, eps=1e-5)
    print(f"{rung:12} sectors by hand {by_hand[rung]:6}, counted {count(reports[rung], 'sectors'):6}; "
          f"{used:.0%} of the error budget")

# %% [markdown]
# **Predict:** which of the four arrays takes most of what `vectorised` moves?

# %%
parts = {rung: dict.fromkeys(("x", "y", "weight", "bias"), 0) for rung in reports}
for rung, report in reports.items():
    for access in report.trace:
        if access["array"] in parts[rung]:
            parts[rung][access["array"]] += len({offset // 32 for offset in access["offsets"]})
fig, ax = plt.subplots(figsize=(8, 2.4))
left = np.zeros(3)
for array, colour in zip(("x", "y", "weight", "bias"), (BLUE, GREEN, ORANGE, GREY), strict=True):
    sectors = np.array([parts[rung][array] for rung in parts])
    ax.barh(list(parts), sectors, left=left, color=colour, label=array)
    left += sectors
ax.axvline(2 * R * C / 8, color=RED, linestyle="--", label="the least: x once, y once"), ax.invert_yaxis()
ax.set(xlabel="sectors of global memory", title="Layernorm of 64 rows of 256 numbers: what each rung asks for")
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# All four the same: weight and bias are asked for again in each row. On a GPU they come from the cache, since they are
# 1 KB each and all rows want them, while x and y are new in each row. So the last rung is at the least that counts: the
# memory's 8 bytes a number. The real lines of the second rung are the exercise's:

# %%
source("csrc/cuda/layernorm/forward_2_warp_per_row.cu", "  float sum = 0;", "  float scale")

# %% [markdown]
# ## Backward: a sum over all rows
#
# With $\hat x = (x - \mu)/\sigma$, the gradient of the weight is a sum down each column,
# $dw_c = \sum_r dy_{rc}\, \hat x_{rc}$. Rows belong to warps, so here all warps meet. Three ways, three rungs:
#
# - `atomics`: each warp adds its row to $dw$ with `atomicAdd`. One kernel, but additions queue up, in any order.
# - `two_passes`: a second kernel walks down the columns. A fixed order, but `x` and `dy` are read once more.
# - `partials`: a block keeps the columns' sums of its rows in registers, writes them down once, and a small second
#   kernel adds these up. One pass *and* a fixed order.
#
# By hand, in units of $RC/8$ sectors: at least, `x` and `dy` are read and `dx` is written, 3. The first two rungs go
# over a row twice, for two sums and for `dx`: `x`, `dy` and the weight twice and `dx` once, 7. `atomics` adds two
# additions a number (the bias has a gradient, too), `two_passes` another reading of `x` and `dy`: 9 each. `partials`
# keeps the row in registers, and reads only the weight again: 5. On top of these come partial sums, means and
# deviations.
#
# **Predict:** run each with the blocks in four different orders. Which rungs give the same bits each time?

# %%
dy, (_, mean, rstd) = rng.normal(size=(R, C)).astype(np.float32), numpy.layernorm_forward(x, w, b)
hand, traffic, different = {"atomics": 9 / 3, "two_passes": 9 / 3, "partials": 5 / 3}, {}, {}
for rung in emulated.kernels["layernorm_backward"]:
    results = []
    for seed in range(4):
        with emulator.watch(blocks="shuffled", seed=seed) as report:
            results.append(emulated.layernorm_backward(dy, x, w, mean, rstd, kernel=rung))
    traffic[rung] = count(report, "sectors") / (3 * R * C / 8)
    different[rung] = np.abs(np.array([dw - results[0][1] for _, dw, _ in results])).max(1)
    used = max(share("layernorm_backward", got, dy=dy, x=x, weight=w, mean=mean, rstd=rstd) for got in results)
    print(f"{rung:10} {traffic[rung]:.1f} times the least, by hand {hand[rung]:.1f}; "
          f"{len({dw.tobytes() for _, dw, _ in results})} results in 4 orders; {used:.0%} of the error budget")

# %%
fig, panels = plt.subplots(1, 2, figsize=(8, 2.6))
bars = panels[0].bar(list(traffic), list(traffic.values()), color=[RED, ORANGE, GREEN], width=0.6)
panels[0].bar_label(bars, fmt="%.1f"), panels[0].axhline(1, color=GREY, linestyle="--")
panels[0].set(title="sectors, in multiples of the least", ylabel="times"), panels[0].margins(y=0.15)
for (rung, values), colour, marker in zip(different.items(), (RED, ORANGE, GREEN), "osx", strict=True):
    panels[1].plot(range(4), 1e6 * values, marker, color=colour, label=rung)
panels[1].set(title="dw: largest difference from the first run", ylabel="millionths", xlabel="order of the blocks",
              xticks=range(4))
panels[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Attention: the scores, stored
#
# For a head of $T$ tokens with $D$ numbers each: $S = QK^T / \sqrt D$, of which token $i$ sees the keys $j \le i$; a
# softmax over each row; times $V$. Our head has $T = 256$, $D = 64$. What token $i$ needs from memory is $q_i$ and all
# keys and values up to its own; what is lost by each rung is in how often they are fetched.

# %%
T, D = 256, 64
q, k, v = (rng.normal(size=(1, 1, T, D)).astype(np.float32) for _ in range(3))


def attention(q, k, v):                                       # (T, D) each
    s = np.where(np.tri(len(q), dtype=bool), q @ k.T / np.sqrt(D), -np.inf)     # (T, T)
    p = np.exp(s - s.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True) @ v                                      # (T, D)


want = attention(*(array[0, 0].astype(np.float64) for array in (q, k, v)))
with emulator.watch() as report:
    out, lse = emulated.attention_forward(q, k, v, kernel="naive")
print("largest difference from the definition", np.abs(out[0, 0] - want).max())
for line in sorted(report.lines, key=lambda line: -line.sectors)[:4]:
    print(f"{line.place.split('/')[-1]:22} {line.kind:5} {line.sectors:8} sectors, {line.waste:.1f} times too many")

# %% [markdown]
# Three kernels, one for the scores, one for the softmax, one for the values. The line that dominates is the dot product
# of the first: a thread computes one score, its neighbour the next key's, and so the 32 lanes read 32 rows of `k`. By
# hand: $T^2/2$ scores of $D$ numbers, a sector each:

# %%
hand, worst = T * T // 2 * D, max(line.sectors for line in report.lines)
print(f"sectors of k by hand {hand}, the worst line, which also reads q, {worst}: {worst / hand:.2f} times")

# %% [markdown]
# ## No scores: the online softmax in a kernel
#
# The softmax of a row can be computed while its scores come by, one at a time. Keep the largest score so far, $m$, the
# sum $l$ of the exponentials and the sum $o$ of the values, both relative to $m$. When a score $s$ arrives:
#
# $$m' = \max(m, s),\quad c = e^{m - m'},\quad p = e^{s - m'},\quad l \leftarrow l\,c + p,\quad
# o \leftarrow o\,c + p\,v$$
#
# The factor $c$ rescales what was added up under the old maximum. At the end the output is $o / l$.
#
# ### Exercise 2 (15 minutes): the rescale
#
# Below, a warp works on one query; $D = 64$, so each lane holds two numbers of `q`, of the output (`o0`, `o1`), and of
# the value (`v0`, `v1`). The score `s` is complete, and the same in all lanes. Write what happens then: update `m`,
# `l`, `o0` and `o1`. `expf` and `fmaxf` are what you need.

# %%
FUSED = """
__global__ void fused(const float* q, const float* k, const float* v, float* out, float scale) {
  int lane = threadIdx.x, i = blockIdx.x;
  float q0 = scale * q[64 * i + lane], q1 = scale * q[64 * i + lane + 32];
  float m = -1e30f, l = 0, o0 = 0, o1 = 0;
  for (int j = 0; j <= i; j++) {
    float s = q0 * k[64 * j + lane] + q1 * k[64 * j + lane + 32];
    for (int d = 16; d > 0; d /= 2) s += __shfl_xor_sync(0xffffffff, s, d);
    float v0 = v[64 * j + lane], v1 = v[64 * j + lane + 32];
    ...
  }
  out[64 * i + lane] = o0 / l, out[64 * i + lane + 32] = o1 / l;
}"""

# %%
LAUNCH_FUSED = """
extern "C" void run_fused(const float* q, const float* k, const float* v, float* out, int T, float scale) {
  fused<<<T, 32>>>(q, k, v, out, scale);
}"""
short = [array[0, 0, :48] for array in (q, k, v)]
steep = [30 * short[0], *short[1:]]
check_kernel(FUSED + LAUNCH_FUSED, "run_fused",
             case(*short, np.full((48, D), np.nan, np.float32), 48, D**-0.5, want=attention(*short),
                  why="l and o were added up relative to the old m: both must be scaled by c = exp(m - m_new)"),
             case(*steep, np.full((48, D), np.nan, np.float32), 48, D**-0.5, want=attention(*steep),
                  why="scores above 100, of which expf is infinite: m must follow the largest of them"),
             tolerance=1e-4)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `float m_new = fmaxf(m, s), c = expf(m - m_new), p = expf(s - m_new);`, then three updates with `c` and `p`, and at
# the end `m = m_new`. In the first round `m` is so low that `c` is 0.
# </details>
# <details><summary>Solution</summary>
#
# ```python
# FUSED = """
# __global__ void fused(const float* q, const float* k, const float* v, float* out, float scale) {
#   int lane = threadIdx.x, i = blockIdx.x;
#   float q0 = scale * q[64 * i + lane], q1 = scale * q[64 * i + lane + 32];
#   float m = -1e30f, l = 0, o0 = 0, o1 = 0;
#   for (int j = 0; j <= i; j++) {
#     float s = q0 * k[64 * j + lane] + q1 * k[64 * j + lane + 32];
#     for (int d = 16; d > 0; d /= 2) s += __shfl_xor_sync(0xffffffff, s, d);
#     float v0 = v[64 * j + lane], v1 = v[64 * j + lane + 32];
#     float m_new = fmaxf(m, s), c = expf(m - m_new), p = expf(s - m_new);
#     l = l * c + p;
#     o0 = o0 * c + p * v0, o1 = o1 * c + p * v1;
#     m = m_new;
#   }
#   out[64 * i + lane] = o0 / l, out[64 * i + lane + 32] = o1 / l;
# }"""
# ```
# </details>

# %% [markdown]
# The rung `fused_rows` of the package is this, for any $D$ and grouped heads:

# %%
source("csrc/cuda/attention/forward_3_fused_rows.cu", "    s = warp_sum(s);", "o[n] = o[n] * c")

# %% [markdown]
# ## Tiles: a key read once for 64 queries
#
# In `fused_rows` each query still reads every key and value that it sees. In `tiled`, a block takes 64 queries; it
# copies 64 keys into shared memory, and all 64 queries use them there. Who reads which key from global memory? Drawn
# from the trace, for 80 tokens:
#
# **Predict:** how many rows of `k` does each of the two fetch?

# %%
first = [array[:, :, :80].copy() for array in (q, k, v)]
fetched = {}
for rung in ("fused_rows", "tiled"):
    with emulator.watch(trace=20000) as report:
        emulated.attention_forward(*first, kernel=rung)
    of_k = [access for access in report.trace if access["array"] == "k"]
    fetched[rung] = {((a["block"][0], a["warp"] if rung == "fused_rows" else 0), o // (4 * D))
                     for a in of_k for o in a["offsets"]}
    print(f"{rung:10} fetches {len(fetched[rung])} rows of k")
print("by hand", 80 * 81 // 2, "and", 64 + 80)

# %%
fig, panels = plt.subplots(1, 2, sharex=True, sharey=True, figsize=(8, 3.4))
keys, queries = zip(*((key, 4 * block + warp) for (block, warp), key in fetched["fused_rows"]), strict=True)
panels[0].scatter(keys, queries, s=1.5, marker="s", color=BLUE)
tiles = max(block for (block, _), _ in fetched["tiled"])
for (block, _), key in fetched["tiled"]:
    first_query = 64 * (tiles - block)            # the last queries have most to do, and start first
    height = min(64, 80 - first_query)
    panels[1].add_patch(plt.Rectangle((key, first_query), 0.9, height, color=GREEN, alpha=0.25))
    panels[1].plot(key, first_query, "s", color=BLUE, markersize=1.5)
titles = "fused_rows: a row of k for each point", "tiled: a row of k for each column"
for ax, title in zip(panels, titles, strict=True):
    ax.set(title=title, xlabel="key", xlim=(-1, 81), ylim=(81, -2))
panels[0].set_ylabel("query")
plt.show()

# %% [markdown]
# Each blue point is a row of `k` that comes from global memory, each green column the queries that it serves. Part of
# the green lies above the diagonal, where keys are not seen: those scores are computed and thrown away.
#
# ### Exercise 3 (20 minutes): mend a race
#
# Here is a small kernel of that kind: 64 threads, a thread for each query, $D = 32$, tiles of 16 keys. It is wrong in a
# way that a GPU may not show for weeks. Run it, read the report, and mend it. (The check only looks
# once the dots are gone.)

# %%
STEP = """
__device__ float dot(const float* x, const float* y) {
  float sum = 0;
  for (int d = 0; d < 32; d++) sum += x[d] * y[d];
  return sum;
}
__device__ void step(float s, const float* v, float& m, float& l, float* o) {
  float m_new = fmaxf(m, s), c = expf(m - m_new), p = expf(s - m_new);
  l = l * c + p, m = m_new;
  for (int d = 0; d < 32; d++) o[d] = o[d] * c + p * v[d];
}
__device__ void finish(float* out, const float* o, float l) {
  for (int d = 0; d < 32; d++) out[d] = o[d] / l;
}
"""

# %%
LAUNCH = """
extern "C" void run_tiles(const float* q, const float* k, const float* v, float* out, int T, float scale) {
  tiles<<<T / 64, 64>>>(q, k, v, out, T, scale);
}
"""

# %%
TILES = """
__global__ void tiles(const float* q, const float* k, const float* v, float* out, int T, float scale) {
  __shared__ float keys[16 * 32], values[16 * 32];
  int t = threadIdx.x, i = blockIdx.x * 64 + t;
  float m = -1e30f, l = 0, o[32] = {};  // ... delete these dots when it is mended
  for (int j0 = 0; j0 < blockIdx.x * 64 + 64; j0 += 16) {
    for (int n = t; n < 16 * 32; n += 64) keys[n] = k[32 * j0 + n], values[n] = v[32 * j0 + n];
    __syncthreads();
    for (int j = 0; j < 16 && j0 + j <= i; j++) {
      float s = scale * dot(q + 32 * i, keys + 32 * j);
      step(s, &values[32 * j], m, l, o);
    }
  }
  finish(out + 32 * i, o, l);
}"""

# %%
small = [array[0, 0, :128, :32].copy() for array in (q, k, v)]
result = np.empty_like(small[0])
report = emulator.run(cuda(STEP + TILES + LAUNCH).run_tiles, *small, result, 128, D**-0.5)
print("largest difference from NumPy:", np.abs(result - attention(*small)).max())
print(*report.findings, sep="\n\n")

# %% [markdown]
# (Lines are counted from the first of `STEP` on.) Whatever the difference above is, a thread that is done with its tile
# goes on and overwrites the keys that others still need.

# %%
check_kernel(STEP + TILES + LAUNCH, "run_tiles",
             case(*small, np.full_like(small[0], np.nan), 128, D**-0.5, want=attention(*small),
                  why="the copies of the next round and the reads of this one: what lies between them?"),
             tolerance=1e-4)

# %% [markdown]
# <details><summary>Hint</summary>
#
# A loop needs two barriers: one after the tile is written and before it is read, and one after it is read and before it
# is written again. All threads of the block must come to both, so none may stand inside the loop over `j`, which ends
# earlier for some.
# </details>
# <details><summary>Solution</summary>
#
# ```python
# TILES = """
# __global__ void tiles(const float* q, const float* k, const float* v, float* out, int T, float scale) {
#   __shared__ float keys[16 * 32], values[16 * 32];
#   int t = threadIdx.x, i = blockIdx.x * 64 + t;
#   float m = -1e30f, l = 0, o[32] = {};
#   for (int j0 = 0; j0 < blockIdx.x * 64 + 64; j0 += 16) {
#     for (int n = t; n < 16 * 32; n += 64) keys[n] = k[32 * j0 + n], values[n] = v[32 * j0 + n];
#     __syncthreads();  // the tile is here
#     for (int j = 0; j < 16 && j0 + j <= i; j++) {
#       float s = scale * dot(q + 32 * i, keys + 32 * j);
#       step(s, &values[32 * j], m, l, o);
#     }
#     __syncthreads();  // nobody reads it any more
#   }
#   finish(out + 32 * i, o, l);
# }"""
# ```
# </details>

# %% [markdown]
# ## Tensor cores: a matrix product as one instruction
#
# So far a multiply-add was one lane's affair: 32 for a warp's instruction. `mma.m16n8k16` is an instruction of the
# whole warp that multiplies a 16 x 16 matrix $A$ by a 16 x 8 matrix $B$ and adds the result to a 16 x 8 matrix $C$:
# 2048 multiply-adds. $A$ and $B$ are 16-bit numbers, $C$ is float32. None of them lies in memory: they are spread over
# the registers of the 32 lanes, in a fixed pattern; a register has 32 bits, so one of `a` or `b` has two numbers, h = 0
# and 1. With $g = \lfloor \text{lane} / 4 \rfloor$ and $t = \text{lane} \bmod 4$:
#
# | | rows | columns |
# |---|---|---|
# | $C$: `c[i]`, i = 0 .. 3 | $g$ for i = 0, 1; $g + 8$ for i = 2, 3 | $2t + i \bmod 2$ |
# | $B$: `b[i]`, i = 0, 1, of h = 0, 1 | $2t + h + 8i$ | $g$ |
# | $A$: `a[i]`, i = 0 .. 3, of h = 0, 1 | $g$ for i = 0, 2; $g + 8$ for i = 1, 3 | $2t + h$; $+ 8$ for i = 2, 3 |
#
# ### Exercise 4 (10 minutes): who holds what of A
#
# Return the row and the column of $A$ that lane `lane` holds in register `i`, half `h`.

# %%
def a_place(lane, i, h):
    ...


# %%
check(a_place,
      case(0, 0, 0, want=(0, 0)), case(5, 0, 1, want=(1, 3), why="lane 5 has g = 1 and t = 1"),
      case(5, 1, 0, want=(9, 2), why="a[1] is 8 rows below a[0], in the same columns"),
      case(5, 2, 0, want=(1, 10), why="a[2] is 8 columns to the right of a[0], in the same row"),
      case(31, 3, 1, want=(15, 15)))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `i % 2` says whether it is one of the lower rows, `i // 2` whether it is one of the right columns.
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def a_place(lane, i, h):
#     g, t = lane // 4, lane % 4
#     return g + 8 * (i % 2), 2 * t + h + 8 * (i // 2)
# ```
# </details>

# %% [markdown]
# Drawn, for all lanes: the number in a field is the lane that holds it, and lane 5 is framed.

# %%
lane, i, h = np.ogrid[:32, :4, :2]
g, t = lane // 4, lane % 4
places = {"A, 16 x 16": (g + 8 * (i % 2) + 0 * h, 2 * t + h + 8 * (i // 2)),                            # (32, 4, 2)
          "B, 16 x 8": ((2 * t + h + 8 * i)[:, :2], (g + 0 * i + 0 * h)[:, :2]),                        # (32, 2, 2)
          "C, 16 x 8": ((g + 8 * (i // 2))[:, :, 0], (2 * t + i % 2)[:, :, 0])}                         # (32, 4)

# %%
fig, panels = plt.subplots(1, 3, figsize=(8, 4), width_ratios=(2, 1, 1))
for ax, (title, (row, column)) in zip(panels, places.items(), strict=True):
    ax.imshow(np.zeros((16, column.max() + 1)), cmap="Greys", vmin=0, vmax=1)
    for number in np.ndindex(row.shape):
        at = column[number], row[number]
        colour = plt.cm.turbo(number[0] / 31)
        ax.add_patch(plt.Rectangle((at[0] - 0.5, at[1] - 0.5), 1, 1, facecolor=(*colour[:3], 0.3),
                                   edgecolor="black" if number[0] == 5 else "none", linewidth=2))
        ax.text(*at, number[0], ha="center", va="center", fontsize=7)
    ax.set(title=title, xticks=range(0, column.max() + 1, 2), yticks=range(0, 16, 2))
plt.show()

# %% [markdown]
# Now by hand. NumPy puts $A$ and $B$ into 32 lanes' registers as the table says; a kernel of one warp executes the one
# instruction; and the registers `c` come back. `ptx.cuh`, of the package, gives the instruction its C++ name.

# %%
MMA = """
#include "ptx.cuh"
__global__ void product(const uint32_t* a, const uint32_t* b, float* c) {
  int lane = threadIdx.x;
  uint32_t A[4], B[2];
  float C[4] = {};
  for (int i = 0; i < 4; i++) A[i] = a[4 * lane + i];
  for (int i = 0; i < 2; i++) B[i] = b[2 * lane + i];
  mma_m16n8k16<half>(C, A, B);
  for (int i = 0; i < 4; i++) c[4 * lane + i] = C[i];
}
extern "C" void run_product(const uint32_t* a, const uint32_t* b, float* c) { product<<<1, 32>>>(a, b, c); }
"""

# %%
A, B = rng.normal(size=(16, 16)).astype(np.float16), rng.normal(size=(16, 8)).astype(np.float16)
a = np.ascontiguousarray(A[places["A, 16 x 16"]]).view(np.uint32)[..., 0]   # (32, 4)
b_registers = np.ascontiguousarray(B[places["B, 16 x 8"]]).view(np.uint32)[..., 0]      # (32, 2)
c = np.empty((32, 4), np.float32)
report = emulator.run(cuda(MMA).run_product, a, b_registers, c)

by_numpy = np.zeros((16, 8), np.float32)
for n in range(16):                              # a column of A by a row of B
    by_numpy += A[:, n, None].astype(np.float32) * B[n].astype(np.float32)
C_matrix = np.empty((16, 8), np.float32)
C_matrix[places["C, 16 x 8"]] = c
print(f"equal to NumPy in every bit: {np.array_equal(C_matrix, by_numpy)}; "
      f"FLOPs on tensor cores {report.kernels[0].tensor_flops}, by hand {2 * 16 * 8 * 16}")

# %% [markdown]
# In every bit, because NumPy added up in the emulator's order. A GPU's tensor cores add in an order of their own, and
# give other last bits.
#
# The table has a pleasant property. Attention is two products: $S = QK^T$ comes out as pieces of $C$, becomes the
# probabilities $P$, and is then the *left* factor of $PV$, which must be laid out as $A$. Take two neighbouring pieces
# of $S$, 8 keys each. Does each lane already hold the numbers that it needs of $A$?

# %%
S_row, S_column = places["C, 16 x 8"]                                   # (32, 4), of a piece of 8 keys
A_row, A_column = places["A, 16 x 16"]                                  # (32, 4, 2)


def has(lane):
    return [(int(S_row[lane, i]), int(S_column[lane, i]) + 8 * piece) for piece in (0, 1) for i in range(4)]


def needs(lane):
    return [(int(A_row[lane, i, h]), int(A_column[lane, i, h])) for i in range(4) for h in (0, 1)]


print("lane 5 has of S:", has(5))
print("and needs for A:", needs(5))
print("the same for all lanes:", all(has(lane) == needs(lane) for lane in range(32)))

# %% [markdown]
# Lane for lane, and even in the order of the registers. So the probabilities never leave the lane that computed them:
# no shared memory, no barrier. The real lines that turn scores into a left factor:

# %%
source("csrc/cuda/attention/fragments.cuh", "// The 16 x 16 piece of P", "}")

# %% [markdown]
# ## Banks again, and the swizzle
#
# What a lane needs of $K$ lies in shared memory, in rows of 64 16-bit numbers: 128 bytes, exactly 32 banks. In the rung
# `tensor_cores`, lane $(g, t)$ reads the two numbers at row $g$, columns $2t$ and $2t + 1$: word $32g + t$, bank $t$. 8
# rows want each of 4 banks, so 7 turns are lost in each read. By hand, for a warp and a tile of 64 keys: $K$ takes 64
# reads that lose 7 turns each; $V$, whose pairs lie in two rows, takes 128 reads of single numbers that lose 3 each. A
# head of 256 tokens has $1 + 2 + 3 + 4$ tiles for 4 warps.
#
# `swizzled` puts each chunk $c$ of 8 numbers of row $r$ at place $c \oplus (r \bmod 8)$, and reads by `ldmatrix`, an
# instruction that fetches four 8 x 8 matrices, a row of 16 bytes for each lane. Eight rows then lie in eight different
# groups of banks.

# %%
hand, half = (64 * 7 + 128 * 3) * 4 * (1 + 2 + 3 + 4), [array.astype(np.float16) for array in (q, k, v)]
traces = {}
for rung in ("tensor_cores", "swizzled"):
    with emulator.watch(trace=900) as report:
        emulated.attention_forward(*half, kernel=rung)
    traces[rung] = [access for access in report.trace if access["space"] == "shared" and access["kind"] == "read"]
    print(f"{rung:12} turns lost {count(report, 'conflicts')}, by hand {hand if rung == 'tensor_cores' else 0}")

# %%
fig, panels = plt.subplots(1, 3, figsize=(8, 3.2), width_ratios=(1, 1, 1.1))
for ax, rung in zip(panels, traces, strict=False):
    wanted = banks([access for access in traces[rung] if access["array"] in ("k_tile", "v_tile")][:180])
    picture = ax.imshow(wanted.T, aspect="auto", cmap="magma", vmin=0, vmax=8, interpolation="nearest", origin="lower")
    ax.set(title=rung, xlabel="reads of a warp, in order", ylabel="bank")
fig.colorbar(picture, ax=panels[:2], label="words wanted at once", location="bottom", shrink=0.6)
r, c8 = np.mgrid[:8, :8]
panels[2].imshow(c8 ^ r, cmap="twilight", vmin=0, vmax=8, alpha=0.4)
for row, column in np.ndindex(8, 8):
    panels[2].text(column, row, (column ^ row), ha="center", va="center", fontsize=8,
                   color=RED if (column ^ row) == 0 else "black", weight="bold" if (column ^ row) == 0 else "normal")
panels[2].set(title="swizzled: chunk at each place", xlabel="place in the row (4 banks each)", ylabel="row")
plt.show()

# %% [markdown]
# On the left, four banks at a time are asked for eight words of $K$, or for four of $V$, while 28 are idle; in the
# middle, all 32 are asked for one. On the right is why: chunk 0 (red) of eight neighbouring rows is in eight different
# places. The real lines:

# %%
source("csrc/cuda/attention/swizzle.cuh", "// Where the number (row, d)", "}")

# %% [markdown]
# ## The copy that goes on meanwhile
#
# The last rung that the emulator runs, `pipelined`, copies the next tile while this one is multiplied. `cp.async`
# starts a copy from global to shared memory, and the thread goes on; `cp_async_wait` waits until its copies have come.
# There are two places for tiles, and in each round a single wait and a single barrier. The emulator can carry out each
# copy as late as it may, or as early. A correct kernel does not mind.
#
# **Predict:** take away the wait, or the barrier. With which copies, late or early, are the numbers wrong? With which
# is the mistake found?

# %%
sixteen = [array[:, :, :128].copy() for array in half]
with emulator.watch() as report:
    right, _ = emulated.attention_forward(*sixteen, kernel="pipelined")
print("nothing taken away:", [finding.kind for finding in report.findings])
for site in sorted(report.sites):
    for copies in ("late", "early"):
        with emulator.watch(copies=copies, skip=site) as report:
            got, _ = emulated.attention_forward(*sixteen, kernel="pipelined")
        numbers = "right" if np.array_equal(got, right) else "wrong"
        print(f"without {site.split('/')[-1]}, copies {copies:5}: numbers {numbers}, "
              f"found: {sorted({finding.kind for finding in report.findings})}")

# %%
source("csrc/cuda/attention/forward_7_pipelined.cu", "    cp_async_wait<0>();", "load(j0 + BK)")

# %% [markdown]
# Found each time, whether or not the numbers were right: the emulator remembers which copies are under way, and who may
# still be reading. A GPU would show wrong numbers on some days.
#
# ## The whole ladder
#
# The same head through all rungs. By hand, the sectors of global memory, with $n = T(T + 1)/2$ pairs of query and key:
#
# - `naive`: for each pair a sector of `k` for each of $D$ numbers, 64; 8 for a row of `v`; 4 for the softmax, which
#   reads the score three times and writes it once, a row away from its neighbours; `q` and, later, `p`, one number for
#   a whole warp, 2 each: $80 n$. In `online_softmax` the softmax takes 3 accesses, 8 numbers a sector: $76.4 n$.
# - `fused_rows`: a row of `k` and one of `v`, 8 sectors each, for each pair: $16 n$; `q` and `out` are $TD/8 = 2048$
#   each.
# - `tiled`: 16 sectors for each key that a block of 64 queries sees, which is $64 + 128 + 192 + 256 = 640$ keys in all.
# - In 16 bits rows are half as long. But `tensor_cores` reads `q` in single numbers of 2 bytes, 4 times the sectors
#   that hold them; and all three write `out` in pieces that fill half a sector.
# - A block of `pipelined` has 128 queries: $128 + 256 = 384$ keys.

# %%
n = T * (T + 1) // 2
by_hand = {"naive": 80 * n, "online_softmax": (76 + 3 / 8) * n, "fused_rows": 16 * n + 2 * 2048,
           "tiled": 16 * 640 + 2 * 2048, "tensor_cores": 8 * 640 + 4 * 1024 + 2 * 1024,
           "swizzled": 8 * 640 + 1024 + 2 * 1024, "pipelined": 8 * 384 + 1024 + 2 * 1024}

# %%
counted = {}
for rung, hand in by_hand.items():
    float16 = rung in ("tensor_cores", "swizzled", "pipelined")
    given, dtype = (half, "float16") if float16 else ((q, k, v), "float32")
    with emulator.watch() as report:
        got = emulated.attention_forward(*given, kernel=rung)
    wide = dict(zip("qkv", (array.astype(np.float32) for array in given), strict=True), causal=True, scale=D**-0.5)
    used = share("attention_forward", got, dtype, **wide)
    counted[rung] = [count(report, "sectors")] + [count(report, of, space="shared") for of in ("requests", "conflicts")]
    print(f"{rung:15} sectors by hand {hand:9,.0f}, counted {counted[rung][0]:9,}: "
          f"{counted[rung][0] / hand:.3f} times; {used:4.0%} of the error budget")

# %%
fig, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
rungs = list(counted)
panels[0].barh(rungs, [of[0] for of in counted.values()], color=BLUE, label="counted"), panels[0].invert_yaxis()
panels[0].plot(list(by_hand.values()), rungs, "|", color=RED, markersize=14, markeredgewidth=2, label="by hand")
panels[0].set(xscale="log", xlim=(1e3, 6e6), xlabel="sectors", title="global memory"), panels[0].legend(fontsize=8)
panels[1].barh(rungs, [of[1] for of in counted.values()], color=GREEN, label="accesses of warps")
panels[1].barh(rungs, [of[2] for of in counted.values()], left=[of[1] for of in counted.values()], color=RED,
               label="turns lost to bank conflicts")
panels[1].set(xlabel="turns", title="shared memory"), panels[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# All rungs are within the budget that NumPy's own error gives them. Two steps carry most of it: not reading one number
# at a time (rows instead of scattered numbers), and reading a key once for 64 queries. The tensor cores then shift the
# trouble to shared memory, and the swizzle ends it.
#
# `fused_rows` is a warning: it stores no score, which is the famous idea, and still moves 37 times as much as `tiled`
# (by hand, 530,432 sectors to 14,336). What makes FlashAttention fast is the tile; the online softmax is what makes the
# tile possible.
#
# ## What Hopper adds
#
# An H100 has instructions that no emulator here runs. `wgmma` multiplies for four warps at once and takes its right
# factor straight from shared memory, while the warps go on; TMA is a copy engine that fetches a whole tile, swizzled,
# at the request of a single thread. So the work is divided by kind: one thread asks for tiles (the *producer*),
# eight warps multiply (the *consumers*), and they meet at barriers that count bytes. The producer's loop:

# %%
source("csrc/cuda/attention/forward_8_hopper.cu", "  for (int n = 0; n < tiles; n++) {", "tma_load(shared.v")

# %% [markdown]
# Wait until the place is free, say how many bytes will come, ask for them, go on to the next. The producer never
# touches a key itself.
#
# ## What a GPU would change
#
# The numbers above are asked-for sectors. On a GPU caches would catch part of them: the repeated reads of `fused_rows`
# would come mostly from the L2 cache, so do not expect it to be 37 times slower than `tiled`. The emulator does not
# know how many registers a kernel takes, which is what limits the size of tiles, nor when a copy overlaps with a
# product. The headers in `csrc/cuda` say what was counted, and what is still to be measured on a GPU.
#
# ## Summary
#
# - Layernorm, a thread a row, asks for a sector of 32 bytes for each 4 that it uses; a warp a row for 8 times less;
#   with the row in registers `x` is read once instead of three times.
# - A sum over all rows is deterministic and takes one pass if blocks keep partial sums of columns; atomics are neither
#   ordered nor free.
# - The online softmax: when the maximum grows, scale $l$ *and* $o$ by $e^{m - m'}$.
# - Tiles of 64 queries read a key once instead of 64 times. A loop over tiles needs two barriers a round.
# - One `mma` is 4096 FLOPs by 32 lanes, and a lane's scores are already where the next product wants them.
# - Rows of 128 bytes put a column of $K$ into one bank for 8 rows: 7 turns lost in 8. The swizzle loses none.
#
# Next: the assignment [A3](assignments/a3_cuda), in which you write such kernels from the beginning; and
# [the kernels in the order in which to read them](../csrc/README.md), with the backward pass of attention.
#
# ## Papers
#
# - T. Dao, D. Y. Fu, S. Ermon, A. Rudra, C. Ré, *FlashAttention: Fast and Memory-Efficient Exact Attention with
#   IO-Awareness*, 2022, [arXiv:2205.14135](https://arxiv.org/abs/2205.14135)
# - T. Dao, *FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning*, 2023,
#   [arXiv:2307.08691](https://arxiv.org/abs/2307.08691)
# - J. Shah, G. Bikshandi, Y. Zhang, V. Thakkar, P. Ramani, T. Dao, *FlashAttention-3: Fast and Accurate Attention with
#   Asynchrony and Low-precision*, 2024, [arXiv:2407.08608](https://arxiv.org/abs/2407.08608)
# - M. Milakov, N. Gimelshein, *Online normalizer calculation for softmax*, 2018,
#   [arXiv:1805.02867](https://arxiv.org/abs/1805.02867)
# - J. L. Ba, J. R. Kiros, G. E. Hinton, *Layer Normalization*, 2016,
#   [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)
# - NVIDIA, *Parallel Thread Execution ISA* (mma, ldmatrix, cp.async, wgmma):
#   <https://docs.nvidia.com/cuda/parallel-thread-execution/>
