# %% [markdown]
# # 7. The matrix product, towards the machine's peak
#
# **You will be able to** measure the peak of your processor's arithmetic, and say what share of it a piece of code
# reaches; choose an order of loops and a register tile by counting loads; write a matrix product in C++ that comes
# near the peak, with packed panels and cache blocks; and say where the rest goes.
#
# **Needs:** a laptop with a C++ compiler (g++ or clang++).  **Before:** [6](06_layernorm_in_cpp.ipynb)  **Time:**
# about 70 minutes

# %%
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from lesson import BLUE, GREEN, GREY, ORANGE, RED, case, check, check_cpp, cpp, seconds, source

from minigpt import ops
from minigpt.ops.memory import aligned_empty

rng, cores = np.random.default_rng(0), os.cpu_count()
n = 960
A, B, C = (aligned_empty((n, n)) for _ in range(3))
for matrix in (A, B):
    matrix[:] = rng.standard_normal((n, n), np.float32)
want = A.astype(np.float64) @ B

# %% [markdown]
# ## Count first
#
# Nearly all of a GPT's time goes into matrix products: every *linear layer* multiplies a matrix of activations by a
# matrix of weights. The definition, for A of M x K numbers and B of K x N:
#
# $$C_{ij} = \sum_k A_{ik} B_{kj}$$
#
# M · N outputs, each a sum of K products: M · N · K multiplications and as many additions. A processor does both in
# one instruction, a *fused multiply-add* or FMA, and people count it as two operations: **2 M N K FLOPs**. What has to
# move at least: each matrix once, 4 bytes a number.

# %%
flops, least_bytes = 2 * n ** 3, 3 * 4 * n ** 2
print(f"{flops / 1e9:.2f} GFLOP, {least_bytes / 1e6:.1f} MB: {flops / least_bytes:.0f} FLOPs per byte")

# %% [markdown]
# Layernorm had half a FLOP per byte, and memory was its limit. Here each number could be used 960 times once it has
# been brought in. So the limit should be arithmetic, and the question is only how to get the numbers to it.
#
# How much arithmetic is there? The loop below does nothing else. `vec` (from `csrc/cpp/simd.h`) is a *vector*, a
# register with as many numbers side by side as the processor has in one: 4, 8 or 16. `a * b + c` on vectors is one FMA
# instruction where the processor has it. `CHAINS` of them run side by side, each waiting for its own last result only.
# (`template <int CHAINS>` makes a function of its own for each number of chains that is asked for.)

# %%
PEAK = r"""
#include "simd.h"
using namespace minigpt;
template <int CHAINS> float chains(int64_t rounds) {
  vec a[CHAINS], factor = broadcast(0.999f), term = broadcast(0.001f), total{};
  for (int j = 0; j < CHAINS; j++) a[j] = broadcast(j);     // all different
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 12
    for (int j = 0; j < CHAINS; j++) a[j] = a[j] * factor + term;
  for (int j = 0; j < CHAINS; j++) total += a[j];
  return sum(total);
}
"""

# %%
CALL = r"""
extern "C" float fma(int64_t rounds, int how_many) {
  using F = float(int64_t);
  static F* const all[] = {chains<1>, chains<2>, chains<3>, chains<4>, chains<5>, chains<6>,
                           chains<7>, chains<8>, chains<9>, chains<10>, chains<11>, chains<12>};
  return all[how_many - 1](rounds);
}
extern "C" int lanes() { return LANES; }
"""
fma, LANES = cpp(PEAK + CALL).fma, cpp(PEAK + CALL).lanes()
print(f"a vector holds {LANES} numbers here")

# %% [markdown]
# **Predict:** an FMA takes about 4 cycles until its result is there, and a processor starts one or two in each cycle.
# With how many chains is the peak reached?

# %%
counts, rounds = np.arange(1, 13), 5_000_000
rates = [2 * LANES * c * rounds / seconds(fma, rounds, int(c)) / 1e9 for c in counts]
peak = max(rates)
plt.plot(counts, rates, "o-"), plt.axhline(peak, color=GREY, ls=":")
plt.title(f"one core's arithmetic: at most {peak:.0f} GFLOP/s")
plt.xlabel("chains of FMAs side by side"), plt.ylabel("GFLOP/s"), plt.ylim(0)
plt.show()

# %% [markdown]
# The line rises as long as the units wait for results, and is flat where they are busy all the time. (4 cycles and one
# FMA a cycle: 4 chains; two a cycle: 8.) Its height is the *peak* of one core, against which everything below is held.
#
# ## Three loops, in six orders
#
# The definition, written down: for each i and j, a sum over k. But the three loops may stand in any order; each adds
# the same products into C.

# %%
LOOPS = r"""
#include <cstdint>
#define I for (int64_t i = 0; i < n; i++)
#define J for (int64_t j = 0; j < n; j++)
#define K for (int64_t k = 0; k < n; k++)
extern "C" void product(const float* a, const float* b, float* c, int64_t n) {
  for (int64_t i = 0; i < n * n; i++) c[i] = 0;
  ORDER c[i * n + j] += a[i * n + k] * b[k * n + j];
}
"""
def loops(order):
    return cpp(LOOPS, f"-DORDER={' '.join(order)}").product

loops("IJK")(A, B, C, n)
print(f"the largest difference from NumPy in float64: {np.abs(C - want).max():.1e}")

# %% [markdown]
# A matrix lies in memory row by row: neighbours in a row are neighbours in memory, neighbours in a column are n
# numbers apart. Memory comes in *cache lines* of 64 bytes, 16 numbers. Here is what the innermost loop touches, for
# each of the three that may be innermost:

# %%
figure, panels = plt.subplots(3, 3, figsize=(6, 4.6))
touched = {"j": "one row row", "k": "row column one", "i": "column one column"}     # of A, B, C
for row, (inner, what) in zip(panels, touched.items(), strict=True):
    for panel, name, shape in zip(row, "ABC", what.split(), strict=True):
        picture = np.zeros((12, 12))
        picture[4 if shape != "column" else slice(None), 7 if shape != "row" else slice(None)] = 1
        panel.imshow(picture, cmap="Blues", vmax=1.3), panel.set_xticks([]), panel.set_yticks([])
        panel.set_title(f"{name}: {shape if shape != 'one' else 'one number'}", fontsize=9)
    row[0].set_ylabel(f"innermost: {inner}")
plt.show()

# %% [markdown]
# Innermost j walks along two rows. Innermost k needs a column of B, a new cache line for every number, and adds into
# one sum, a chain. Innermost i walks down two columns.
#
# **Predict:** sort the three by speed. How far apart are the fastest and the slowest?

# %%
m, orders = 480, ("IKJ", "KIJ", "IJK", "JIK", "JKI", "KJI")      # smaller
parts = [x[:m, :m].copy() for x in (A, B, C)]
rates = [2 * m ** 3 / seconds(loops(o), *parts, m, repeats=2) / 1e9 for o in orders]
plt.barh(orders, rates, color=[GREEN, GREEN, ORANGE, ORANGE, RED, RED]), plt.gca().invert_yaxis()
for i, rate in enumerate(rates):
    plt.text(rate, i, f" {rate:.1f}", va="center")
plt.title(f"three loops, {m} x {m}: the last letter is the innermost loop; the peak is {peak:.0f}")
plt.xlabel("GFLOP/s")
plt.show()

# %% [markdown]
# The same arithmetic, and on most machines an order of magnitude or more between best and worst. With j innermost the
# compiler also uses vectors by itself: 16 (or 8, or 4) neighbours of C are independent sums, so no order of additions
# changes.
#
# And yet it is far from the peak. Count what one vector FMA of that loop needs: load a vector of B, load a vector of
# C, store the vector of C. Two loads and a store for every FMA, where the processor could do as many FMAs as loads.
#
# ## Keep the sums in registers
#
# The fix is in the count. Take a *tile* of C, R rows by V vectors, and keep it in registers while k runs. Each step of
# k loads V vectors of a row of B and R numbers of a column of A (each spread over a whole vector), and does R · V FMAs
# with them: every product of the two.

# %% [markdown]
# ### Exercise 1 (5 minutes): count the tile
#
# Write `tile_cost`: for a tile of R rows and V vectors, the loads per FMA, and the registers needed: the tile itself,
# V vectors of B, and one more for the number of A.

# %%
def tile_cost(R, V):                       # -> loads per FMA (a float), registers (an int)
    ...

# %%
check(tile_cost, case(1, 1, want=(2.0, 3), why="one vector of B and one number of A for one FMA"),
      case(4, 3, want=(7 / 12, 16), why="3 + 4 loads for 12 FMAs; 12 registers for sums, 3 + 1 for operands"),
      case(8, 3, want=(11 / 24, 28), why="11 loads for 24 FMAs"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Loads: R + V. FMAs: R · V. The sums take R · V registers.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def tile_cost(R, V):
#     return (R + V) / (R * V), R * V + V + 1
# ```
#
# </details>

# %%
R, V = np.meshgrid(np.arange(1, 17), np.arange(1, 7), indexing="ij")
loads, registers = (R + V) / (R * V), R * V + V + 1
plt.figure(figsize=(8, 4))
plt.pcolormesh(np.arange(1, 17), np.arange(1, 7), loads.T, cmap="Blues", vmin=0.2, vmax=2.2)
plt.colorbar(label="loads per FMA")
for r, v, needed in zip(R.flat, V.flat, registers.flat, strict=True):
    plt.text(r, v, needed, ha="center", va="center", color="black" if needed <= 32 else RED, fontsize=9,
             fontweight="bold" if needed <= 16 else "normal")
plt.title("registers needed: bold fits in 16 (AVX2), black in 32 (AVX-512, arm64), red in none")
plt.xlabel("R, rows of the tile"), plt.ylabel("V, vectors of the tile")
plt.show()

# %% [markdown]
# A larger tile loads less per FMA, until the registers run out. With 32 registers, 8 x 3 has 24 independent chains
# (more than the 8 that the units need) and under half a load per FMA; with 16 registers, 4 x 3.
#
# ### Exercise 2 (12 minutes): a tile of 2 x 2 numbers
#
# Do it by hand once, without vectors: compute the four outputs in rows i, i + 1 and columns j, j + 1 together. Each
# step of k reads two numbers of A and two of B, and does four multiply-adds. n is even.

# %%
TWO_BY_TWO = r"""
#include <cstdint>
extern "C" void product(const float* a, const float* b, float* c, int64_t n) {
  for (int64_t i = 0; i < n; i += 2) {
    for (int64_t j = 0; j < n; j += 2) {
      ...
    }
  }
}
"""

# %%
def call_product(library, a, b):
    c = np.full_like(a, np.nan)
    library.product(a, b, c, len(a))
    return c

a2, b2 = np.float32([[1, 2], [3, 4]]), np.float32([[10, 20], [30, 40]])
check_cpp(TWO_BY_TWO, call_product,
          case(a2, b2, want=a2 @ b2, why="c[0] = 1*10 + 2*30; all four outputs are written"),
          case(parts[0], parts[1], want=parts[0] @ parts[1], why="480 x 480: row i of A begins at a[i * n]"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Four sums `c00, c01, c10, c11`, which begin at 0. In the loop over k: `float a0 = a[i * n + k], a1 = a[(i + 1) * n +
# k]`, and likewise `b0`, `b1` from row k of B. After the loop, write the four.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# TWO_BY_TWO = r"""
# #include <cstdint>
# extern "C" void product(const float* a, const float* b, float* c, int64_t n) {
#   for (int64_t i = 0; i < n; i += 2) {
#     for (int64_t j = 0; j < n; j += 2) {
#       float c00 = 0, c01 = 0, c10 = 0, c11 = 0;
#       for (int64_t k = 0; k < n; k++) {
#         float a0 = a[i * n + k], a1 = a[(i + 1) * n + k];
#         float b0 = b[k * n + j], b1 = b[k * n + j + 1];
#         c00 += a0 * b0, c01 += a0 * b1, c10 += a1 * b0, c11 += a1 * b1;
#       }
#       c[i * n + j] = c00, c[i * n + j + 1] = c01;
#       c[(i + 1) * n + j] = c10, c[(i + 1) * n + j + 1] = c11;
#     }
#   }
# }
# """
# ```
#
# </details>

# %% [markdown]
# Now with vectors, R rows by V = 3 vectors. The strides are arguments (how far apart the rows of A lie, its columns,
# the rows of B), since the same lines will serve another layout soon. `#pragma GCC unroll` asks the compiler to write
# the small loops out, so that `sums` becomes registers. `vec (&c)[R][V]` is an array of the caller, which is written.

# %%
TILE = r"""
#include "simd.h"
using namespace minigpt;
constexpr int V = 3, W = V * LANES;              // the tile's width in vectors and in numbers
template <int R> void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_column,
                           const float* b, int64_t b_row, vec (&c)[R][V]) {
  vec sums[R][V] = {};
  for (int64_t k = 0; k < depth; k++, a += a_column, b += b_row) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[r][v] += a[r * a_row] * load(b + v * LANES);
  }
  for (int r = 0; r < R; r++) for (int v = 0; v < V; v++) c[r][v] = sums[r][v];
}
"""

# %%
IN_PLACE = TILE + r"""
template <int R>
void tiles(const float* a, const float* b, float* c, int64_t M, int64_t N, int64_t K) {
  for (int64_t i = 0; i < M; i += R)
    for (int64_t j = 0; j < N; j += W) {
      vec t[R][V];
      tile<R>(K, a + i * K, K, 1, b + j, N, t);
      for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(c + (i + r) * N + j + v * LANES, t[r][v]);
    }
}
"""

# %%
SWITCH = r"""
extern "C" void product(const float* a, const float* b, float* c, int64_t M, int64_t N, int64_t K,
                        int height) {
  (height == 1 ? tiles<1> : height == 2 ? tiles<2> : height == 4 ? tiles<4> : height == 6 ? tiles<6>
   : height == 8 ? tiles<8> : height == 12 ? tiles<12> : tiles<16>)(a, b, c, M, N, K);
}
"""

# %% [markdown]
# **Predict:** with V = 3, which number of rows R is the fastest? What happens with R = 16, which needs 52 registers?

# %%
heights, in_place = [1, 2, 4, 6, 8, 12, 16], cpp(IN_PLACE + SWITCH).product
rates = [flops / seconds(in_place, A, B, C, n, n, n, R, repeats=3) / 1e9 for R in heights]
print(f"largest difference: {np.abs(C - want).max():.1e}")
plt.plot(heights, rates, "o-"), plt.axhline(peak, color=GREY, ls=":", label="peak of one core")
plt.xticks(heights, [f"{R}\n({3 * R + 4})" for R in heights])
plt.title("a register tile of R rows and 3 vectors"), plt.legend()
plt.xlabel("R, rows of the tile (registers that it needs)"), plt.ylabel("GFLOP/s"), plt.ylim(0, peak * 1.15)
plt.show()

# %% [markdown]
# Where the tile no longer fits, the compiler puts sums back to memory in every step: a few of them cost little, many
# cost much. (A processor with AVX2 or plain SSE has 16 registers, and falls earlier.)
#
# ## The same tile, a larger matrix
#
# These matrices had 3.7 MB each. The second product of a GPT's MLP sums over 4 times as many terms as the layer is
# wide: take K = 3840, so that B has 14.7 MB.
#
# **Predict:** the tile is the same, with the same loads per FMA. Is the speed?

# %%
M, N, K = 480, 960, 3840
deep = [aligned_empty(shape) for shape in ((M, K), (K, N), (M, N))]
for matrix in deep[:2]:
    matrix[:] = rng.standard_normal(matrix.shape, np.float32)
height = 8 if LANES == 16 else 4
deep_in_place = 2 * M * N * K / seconds(in_place, *deep, M, N, K, height, repeats=3) / 1e9
print(f"960 x 960 x 960: {rates[heights.index(height)]:.0f} GFLOP/s, 480 x 960 x 3840: {deep_in_place:.0f}")

# %% [markdown]
# Count what is read from where. Every 8 rows of A meet all of B: 60 times 14.7 MB are 885 MB (with tiles of 4 rows,
# twice that). No L1 or L2 cache holds so much in between; it comes from L3 or from memory, each time. The processor
# also has to look up where each page (4 KB) of memory lies, and in a column of B every row is in another page. How fast
# is reading?

# %%
READ = r"""
#include "simd.h"
using namespace minigpt;
extern "C" float read(const float* x, int64_t n, int64_t times) {
  vec sums[8] = {}, total{};
  for (int64_t t = 0; t < times; t++)
    for (int64_t i = 0; i < n; i += 8 * LANES)
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++) sums[j] += load(x + i + j * LANES);
  for (int j = 0; j < 8; j++) total += sums[j];
  return sum(total);
}
"""

# %%
read, large = cpp(READ).read, aligned_empty((2 ** 24,))
large.fill(1)
l1 = 16384 * 2000 / seconds(read, large, 4096, 2000) / 1e9             # 16 KB, 2000 times
memory = large.nbytes / seconds(read, large, large.size, 1) / 1e9
asked = M / height * deep[1].nbytes / 1e9
print(f"from L1: {l1:.0f} GB/s, from memory: {memory:.1f} GB/s")
print(f"{asked:.2f} GB of B: {asked / memory * 1e3:.0f} ms from memory; arithmetic at the peak: "
      f"{2 * M * N * K / peak / 1e6:.0f} ms")

# %% [markdown]
# ## Panels and blocks: what is used again stays near
#
# The cure has two parts. First, copy. A *panel* of B is W columns, stored so that row k of the panel follows row k - 1
# at once; a panel of A is R rows, stored column by column. The inner loop then reads two streams, each without a gap.
# The copy costs 8 bytes a number, once, and each number is then used hundreds of times.
#
# ### Exercise 3 (10 minutes): pack a panel
#
# Write `pack`: copy the columns j to j + W - 1 of B, which is K x N, into `panel`, K x W: `panel[k * W + w]`. Put 0
# where the column is beyond the last one: that is how the edges of matrices are made harmless.

# %%
PACK = r"""
#include <cstdint>
extern "C" void pack(const float* b, int64_t K, int64_t N, int64_t j, int64_t W, float* panel) {
  ...
}
"""

# %%
def call_pack(library, b, j, W):
    panel = np.full((len(b), W), np.nan, np.float32)
    library.pack(b, *b.shape, j, W, panel)
    return panel

b7 = np.arange(14, dtype=np.float32).reshape(2, 7)
check_cpp(PACK, call_pack, case(b7, 0, 3, want=b7[:, :3], why="the first panel: row k of B begins at b[k * N]"),
          case(b7, 3, 3, want=b7[:, 3:6], why="the second panel begins at column j = 3"),
          case(b7, 6, 3, want=np.float32([[6, 0, 0], [13, 0, 0]]), why="beyond the last column: 0"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Two loops, over k and w. C++ has Python's `x if condition else y` as `condition ? x : y`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# PACK = r"""
# #include <cstdint>
# extern "C" void pack(const float* b, int64_t K, int64_t N, int64_t j, int64_t W, float* panel) {
#   for (int64_t k = 0; k < K; k++) {
#     for (int64_t w = 0; w < W; w++) panel[k * W + w] = j + w < N ? b[k * N + j + w] : 0;
#   }
# }
# """
# ```
#
# </details>

# %% [markdown]
# Second, blocks. Cut the sum over k in blocks of `DEPTH` = 320 terms, and count what each loop uses again and again:
#
# - a panel of A: 8 rows x 320 x 4 bytes = 10 KB. It stays in L1 while it meets the panels of B, one after the other;
# - a panel of B: 320 x 48 x 4 bytes = 61 KB. All 20 of them are 1.2 MB, so they are taken in groups of 6, 369 KB,
#   which stay in L2 while all panels of A pass by.
#
# (With vectors of 8 or 4 numbers the panels are narrower, and all fits more easily.)

# %%
PACKED = TILE + r"""
constexpr int R = LANES == 16 ? 8 : 4;           // the rows for 32 registers, or for 16
constexpr int DEPTH = 320, GROUP = 6 * W;
static void pack_a(const float* a, int64_t K, int64_t rows, float* to) {
  for (int64_t i = 0; i < rows; i += R)
    for (int64_t k = 0; k < DEPTH; k++)
      for (int r = 0; r < R; r++) *to++ = a[(i + r) * K + k];
}
static void pack_b(const float* b, int64_t N, float* to) {
  for (int64_t j = 0; j < N; j += W)
    for (int64_t k = 0; k < DEPTH; k++)
      for (int w = 0; w < W; w++) *to++ = b[k * N + j + w];
}
"""

# %%
BLOCKS = r"""
#include <vector>
static void multiply(const float* a, const float* b, float* c, int64_t rows, int64_t N, bool first) {
  for (int64_t group = 0; group < N; group += GROUP)             // panels of B that stay in L2
    for (int64_t i = 0; i < rows; i += R)                        // a panel of A, which stays in L1
      for (int64_t j = group; j < std::min(group + GROUP, N); j += W) {
        vec t[R][V];
        tile<R>(DEPTH, a + i * DEPTH, 1, R, b + j * DEPTH, W, t);
        for (int r = 0; r < R; r++)
          for (int v = 0; v < V; v++) {
            float* to = c + (i + r) * N + j + v * LANES;
            store(to, first ? t[r][v] : load(to) + t[r][v]);
          }
      }
}
"""

# %% [markdown]
# And with threads: each takes a share of the rows of C, and packs for itself what it needs. Nobody waits for anybody.

# %%
BLOCKED = PACKED + BLOCKS + r"""
static void part(const float* a, const float* b, float* c, int64_t rows, int64_t N, int64_t K) {
  std::vector<float> a_panels(rows * DEPTH), b_panels(N * DEPTH);
  for (int64_t k = 0; k < K; k += DEPTH) {
    pack_a(a + k, K, rows, a_panels.data());
    pack_b(b + k * N, N, b_panels.data());
    multiply(a_panels.data(), b_panels.data(), c, rows, N, k == 0);
  }
}
"""

# %%
BLOCKED += r"""
#include <thread>
extern "C" void product(const float* a, const float* b, float* c, int64_t M, int64_t N, int64_t K,
                        int threads) {
  std::vector<std::thread> team;
  for (int t = 0; t < threads; t++) {
    int64_t begin = M / R * t / threads * R, end = M / R * (t + 1) / threads * R;
    team.emplace_back(part, a + begin * K, b, c + begin * N, end - begin, N, K);
  }
  for (std::thread& t : team) t.join();
}
"""

# %% [markdown]
# **Predict:** which share of one core's peak will this reach?

# %%
blocked = cpp(BLOCKED).product
steps = {"dot products (ijk)": flops / seconds(loops("IJK"), A, B, C, n, repeats=1) / 1e9,
         "rows (ikj)": flops / seconds(loops("IKJ"), A, B, C, n, repeats=2) / 1e9,
         "register tile": max(rates),
         "panels and blocks": flops / seconds(blocked, A, B, C, n, n, n, 1) / 1e9}
print(f"largest difference: {np.abs(C - want).max():.1e}")
for name, rate in steps.items():
    print(f"{name:20} {rate:6.1f} GFLOP/s, {rate / peak:4.0%} of the peak of one core")

# %%
blocked(*deep, M, N, K, 1)
deep_error = np.abs(deep[2] - deep[0].astype(np.float64) @ deep[1]).max()
deep_blocked = 2 * M * N * K / seconds(blocked, *deep, M, N, K, 1, repeats=3) / 1e9
print(f"largest difference: {deep_error:.1e}")
shapes = ["960 x 960 x 960", "480 x 960 x 3840"]
plt.bar([-0.2, 0.8], [max(rates), deep_in_place], 0.38, color=ORANGE, label="tile, in place")
plt.bar([0.2, 1.2], [steps["panels and blocks"], deep_blocked], 0.38, color=GREEN, label="panels and blocks")
plt.axhline(peak, color=GREY, ls=":", label="peak of one core"), plt.xticks([0, 1], shapes)
plt.title("what panels and blocks are for: matrices that no small cache holds"), plt.ylabel("GFLOP/s")
plt.xlim(-0.6, 2.2), plt.legend()
plt.show()

# %% [markdown]
# ## On the roofline
#
# The roofline of [6](06_layernorm_in_cpp.ipynb) has one slope, that of memory. The inner loop mostly reads from L1, so
# draw that slope too, and place each version at the FLOPs it does per byte that it *loads*: ijk 2 FLOPs for two
# numbers; ikj 2 FLOPs for a number of B and one of C, and a number stored; the tile 2 · R · W FLOPs for W + R numbers.

# %%
W, R = 3 * LANES, height
at = {"dot products (ijk)": 2 / 8, "rows (ikj)": 2 / 12, "register tile": 2 * R * W / (4 * (R + W)),
      "panels and blocks": 2 * R * W / (4 * (R + W))}
plt.figure(figsize=(8, 4))
for speed, label, color in ((l1, "L1", GREY), (memory, "memory", ORANGE)):
    plt.loglog([0.05, peak / speed, 1000], [0.05 * speed, peak, peak], color=color, label=f"roof of {label}")
for (name, rate), mark in zip(steps.items(), "osD^", strict=True):
    plt.plot(at[name], rate, mark, ms=8, label=name)
plt.axvline(flops / least_bytes, color=GREY, ls=":", label="each matrix moved once")
plt.title("one core: what the inner loop does per byte that it loads")
plt.xlabel("FLOPs per byte"), plt.ylabel("GFLOP/s"), plt.legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# The tile moved the point to the right, to where L1 no longer limits it. The memory's roof cuts in at a few FLOPs per
# byte, and the blocks see to it that memory is asked far less often than L1 is.
#
# Why not all of the peak? Estimate the copy: packing reads and writes 8 bytes for every number of A and B, once here.
# Its time is that of moving those bytes through the caches, beside n / 8 FLOPs for each of them. Then C is read and
# written again for every block of k, at the ends of tiles the registers are filled and emptied while no FMA starts,
# and the first panel of a group has to come from further away.

# %%
packing = cpp(PACKED + r"""
extern "C" void pack_both(const float* a, const float* b, int64_t n, float* to_a, float* to_b) {
  for (int64_t k = 0; k < n; k += DEPTH) pack_a(a + k, n, n, to_a), pack_b(b + k * n, n, to_b);
}
""").pack_both
to_a, to_b = (np.empty(n * 320, np.float32) for _ in range(2))
t_pack = seconds(packing, A, B, n, to_a, to_b)
t_all, t_peak = flops / steps["panels and blocks"] / 1e9, flops / peak / 1e9
print(f"{t_all * 1e3:.1f} ms in all: arithmetic at the peak would take {t_peak * 1e3:.1f}, "
      f"packing takes {t_pack * 1e3:.1f}, the rest is {(t_all - t_peak - t_pack) * 1e3:.1f}")

# %% [markdown]
# Packing costs n² steps and the product n³: for larger matrices it matters less, for small ones more. Add the packing
# of every thread for itself, which grows with the number of threads.
#
# ## Edges
#
# Real matrices are no multiples of 8 rows and 48 columns. The panels are filled up with zeros, the tile is computed
# whole, and only what belongs to C is written. That is right, and wastes the FLOPs on zeros.
#
# ### Exercise 4 (5 minutes): the useful share
#
# For an M x N output in tiles of R x W, which share of the computed outputs is useful?

# %%
def useful_share(M, N, R, W):
    ...

# %%
check(useful_share, case(16, 96, 8, 48, want=1.0, why="whole tiles only: nothing is wasted"),
      case(16, 49, 8, 48, want=49 / 96, why="a 49th column costs a second tile: round up"),
      case(9, 48, 8, 48, want=9 / 16, why="rows are rounded up as well, each direction for itself"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `-(-M // R)` is M / R, rounded up.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def useful_share(M, N, R, W):
#     rows, columns = -(-M // R) * R, -(-N // W) * W
#     return M * N / (rows * columns)
# ```
#
# </details>

# %% [markdown]
# The package looks at fewer vectors in the last panel of B, so its waste is up to the next vector, not the next panel.
# `linear_forward` multiplies by the transposed weight: y (M, N) = x (M, K) weight (N, K)ᵀ.
#
# **Predict:** from N = 96 to N = 97, what happens to the GFLOP/s?

# %%
fast = ops.load("cpp")
fast.set_num_threads(1)
widths, rates = list(range(88, 133)), []
for N in widths:
    out = aligned_empty((480, N))
    run = partial(fast.linear_forward, parts[0], np.ascontiguousarray(B[:N, :480]), out=out)
    rates.append(2 * 480 * 480 * N / seconds(run, repeats=20) / 1e9)
shares = np.array([N / (-(-N // LANES) * LANES) for N in widths])
plt.plot(widths, rates, "o-", ms=4, label="measured")
plt.plot(widths, shares * max(rates), color=GREY, ls=":", label="the useful share of whole vectors")
plt.title("480 x 480 times 480 x N, one core: the teeth of the saw"), plt.legend()
plt.xlabel("N"), plt.ylabel("GFLOP/s that count"), plt.ylim(0)
plt.show()

# %% [markdown]
# This is why vocabularies are padded to multiples of 64: GPT-2's 50257 tokens become 50304.
#
# ## The real lines
#
# The package's innermost loop, in which a GPT spends most of its training:

# %%
source("csrc/cpp/linear/tile.h", "template <int ROWS, int VECTORS", "sum[r][v] += ")

# %% [markdown]
# It is your tile, with one more parameter for the last panel. Around it, in the file of the last rung, the same walk
# over blocks:

# %%
source("csrc/cpp/linear/4_blocked.cpp", "// A block of B's panels", "multiply_tile(p, s, i, j);")

# %% [markdown]
# What differs: the matrices may have any strides, because the backward pass needs dy W and dyᵀ x; packing transposes
# in registers where a matrix lies the other way; C is cut in a grid of parts, one a thread, not in rows alone; and
# `finish` writes what belongs to C, adds the bias and may apply the activation while the tile is still in registers.

# %%
source("csrc/cpp/linear/tile.h", "vec y = tile[r][v];", "if (last && p.gelu)")

# %% [markdown]
# Now all on one ladder, with all cores: the package's rungs, ours, and NumPy's `@`, which calls a library of this kind
# (a *BLAS*, usually OpenBLAS) written partly in assembly.

# %%
fast.set_num_threads(cores)
weight = np.ascontiguousarray(B.T)
ladder = {"ours, " + name: rate for name, rate in steps.items()}
ladder[f"ours, {cores} threads"] = flops / seconds(blocked, A, B, C, n, n, n, cores) / 1e9
for rung in fast.kernels["linear_forward"]:
    run = partial(fast.linear_forward, A, weight, kernel=rung, out=C)
    ladder["minigpt, " + rung] = flops / seconds(run, repeats=2 if rung == "naive" else 5) / 1e9
print(f"largest difference: {np.abs(C - want).max():.1e}")
ladder["NumPy @"] = flops / seconds(partial(np.matmul, A, B, out=C)) / 1e9

# %%
def busy():                                # the loop of FMAs on all cores at once
    with ThreadPoolExecutor(cores) as team:
        list(team.map(lambda _: fma(10_000_000, 10), range(cores)))

peak_of_all = cores * 2 * LANES * 10 * 10_000_000 / seconds(busy) / 1e9
last = "minigpt, " + fast.kernels["linear_forward"][-1]
print(f"the peak of {cores} cores together: {peak_of_all:.0f} GFLOP/s; {last}: {ladder[last] / peak_of_all:.0%} of it")

# %%
plt.figure(figsize=(8, 4))
colors = [GREEN] * (len(steps) + 1) + [BLUE] * len(fast.kernels["linear_forward"]) + [GREY]
plt.barh(list(ladder), list(ladder.values()), color=colors), plt.gca().invert_yaxis()
for i, rate in enumerate(ladder.values()):
    plt.text(rate, i, f" {rate:.0f}", va="center", fontsize=9)
plt.axvline(peak, color=RED, ls=":", label="peak of one core")
plt.axvline(peak_of_all, color=RED, ls="--", label=f"peak of {cores} cores, measured together")
plt.title(f"the matrix product, {n} x {n} x {n}"), plt.xlabel("GFLOP/s"), plt.legend()
plt.show()

# %% [markdown]
# The peak of all cores is less than that of one times their number, where a processor lowers its clock when all work,
# or where two "cores" are two halves of one (hyper-threading) and share its units.
#
# ## Summary
#
# - A product of M x K and K x N takes 2 M N K FLOPs. 960 x 960 could do 160 of them per byte: arithmetic is the limit.
# - The peak needs about 8 independent chains of vector FMAs, since each takes about 4 cycles and two start in each.
# - The order of the loops decides what is read with gaps: the same arithmetic, an order of magnitude apart.
# - A register tile of 8 x 3 vectors needs 11 loads for 24 FMAs, and 28 of 32 registers.
# - Panels make the inner loop read two streams in order; blocks keep a panel of A in L1 and a group of B's in L2.
# - Packing, edges and the ends of tiles keep it below the peak; packing's share falls as the matrices grow.
#
# Next: [8](08_flash_attention.ipynb), where a matrix product, a softmax and another product become one loop.
#
# ## Papers
#
# - K. Goto, R. A. van de Geijn, *Anatomy of high-performance matrix multiplication*, ACM Transactions on Mathematical
#   Software 34(3), 2008
# - F. G. Van Zee, R. A. van de Geijn, *BLIS: a framework for rapidly instantiating BLAS functionality*, ACM
#   Transactions on Mathematical Software 41(3), 2015
# - T. M. Low, F. D. Igual, T. M. Smith, E. S. Quintana-Orti, *Analytical modeling is enough for high-performance
#   BLIS*, ACM Transactions on Mathematical Software 43(2), 2016
# - S. Williams, A. Waterman, D. Patterson, *Roofline: an insightful visual performance model for multicore
#   architectures*, Communications of the ACM 52(4), 2009
