# %% [markdown]
# # 6. Making it fast in C++: layernorm, bytes and the roofline
#
# **You will be able to** count the bytes that a piece of NumPy moves, and say from them how fast it can be at best;
# write the same in C++, and find out what holds it back: memory, a chain of additions, or arithmetic; draw a roofline
# and put your own code on it; and sum over rows with several threads so that every run gives the same bits.
#
# **Needs:** a laptop with a C++ compiler (g++ or clang++); no C++ before, the lines are explained as they come.
# **Before:** [3](03_gpt_forward.ipynb)  **Time:** about 60 minutes

# %%
import functools
import os

import matplotlib.pyplot as plt
import numpy as np
from lesson import BLUE, GREEN, GREY, ORANGE, RED, case, check, check_cpp, cpp, here, seconds, source

from minigpt import ops
from minigpt.ops import numpy_ops
from minigpt.ops.memory import aligned_empty

rows, C = 8192, 1024                       # as many rows as tokens in a batch, each of C numbers
rng = np.random.default_rng(0)
x, y = aligned_empty((rows, C)), aligned_empty((rows, C))
x[:] = rng.standard_normal((rows, C), np.float32) * 2 + 1
weight, bias = (rng.standard_normal(C).astype(np.float32) for _ in range(2))
print(f"x has {x.size:,} numbers in float32: {x.nbytes / 1e6:.1f} MB")

# %% [markdown]
# ## What layernorm does, and what NumPy makes of it
#
# A GPT normalises every row (one token's numbers) before each of its blocks: it takes away the row's mean, divides by
# the row's standard deviation, and then scales and shifts each column by learned parameters:
#
# $$y = \frac{x - \text{mean}}{\sqrt{\text{variance} + \epsilon}} \cdot \text{weight} + \text{bias}$$
#
# That is about 7 additions and multiplications a number. They are called FLOPs, floating-point operations. A core of
# today does more than 10 thousand million of them in a second (10 GFLOP/s) without any cleverness.
#
# `seconds` (in `lesson.py`) calls a function once to warm up, then several times, and takes the shortest time: the one
# that other programs disturbed least.

# %%
def layernorm(x, weight, bias, eps=1e-5):
    mean = x.mean(axis=-1, keepdims=True)                           # (rows, 1)
    centred = x - mean                                              # (rows, C)
    variance = (centred * centred).mean(axis=-1, keepdims=True)     # (rows, 1)
    normed = centred * (1 / np.sqrt(variance + eps))                # (rows, C)
    return normed * weight + bias                                   # (rows, C)

flops = 7 * x.size
t_numpy = seconds(layernorm, x, weight, bias, repeats=3)
print(f"by arithmetic, at 10 GFLOP/s: {flops / 10e9 * 1e3:.1f} ms, measured: {t_numpy * 1e3:.1f} ms")

# %% [markdown]
# Arithmetic does not explain that time. So count something else: what is carried from memory to the processor and
# back.
#
# Each operation of NumPy is a *pass*: it reads whole arrays and writes a whole array, 33.6 MB each here, which is more
# than the caches of most machines hold. Line by line (the small arrays cost nothing beside these):
#
# | | arrays read | arrays written |
# |---|---|---|
# | `x.mean` | 1 | 0 |
# | `x - mean` | 1 | 1 |
# | `centred * centred` | 1 | 1 |
# | `.mean` | 1 | 0 |
# | `centred * rstd` | 1 | 1 |
# | `normed * weight` | 1 | 1 |
# | `... + bias` | 1 | 1 |
#
# Together 7 reads and 5 writes. One could do with 1 and 1: read x, write y. A write has a hidden part, too: most
# processors first read the piece of memory (the *cache line*, 64 bytes) that they are going to change. So a write
# counts twice.

# %%
def gigabytes(reads, writes):
    return (reads + 2 * writes) * x.nbytes / 1e9

moved, least = gigabytes(7, 5), gigabytes(1, 1)
print(f"NumPy:    {moved:.2f} GB, and it took {t_numpy * 1e3:.0f} ms: {moved / t_numpy:.1f} GB/s")
print(f"at least: {least:.2f} GB, {moved / least:.1f} times less")

# %% [markdown]
# Is that many GB/s or few? The machine must be asked. The loop below is the simplest one that reads an array and
# writes another. In C++ a function says the types of what it takes: `const float*` is an array that is only read,
# `float*` one that is written, `int64_t` a whole number. `extern "C"` makes it findable from Python. `cpp` (in
# `lesson.py`) gives the string to your compiler and loads what comes out.
#
# `times` repeats the whole: a small array is done too quickly to be timed once. The odd line keeps the compiler from
# noticing that all repetitions do the same.

# %%
COPY = r"""
#include <cstdint>
extern "C" void copy_plus_one(const float* from, float* to, int64_t n, int64_t times) {
  for (int64_t t = 0; t < times; t++) {
    for (int64_t i = 0; i < n; i++) to[i] = from[i] + 1;
    asm volatile("" ::: "memory");     // "memory may have changed": do not skip the next repetition
  }
}
"""
copy_plus_one = cpp(COPY).copy_plus_one
t_copy = seconds(copy_plus_one, x, y, x.size, 1)
bandwidth = least / t_copy
print(f"{t_copy * 1e3:.1f} ms: {bandwidth:.1f} GB/s; NumPy's passes at this speed: "
      f"{moved / bandwidth * 1e3:.0f} ms, measured {t_numpy * 1e3:.0f} ms")

# %% [markdown]
# So the bytes explain a part, and there is more. Time the passes one by one: as they stand above, with a new array for
# every result, and with `out=`, into an array that is there already.

# %%
mean, spare = x.mean(axis=-1, keepdims=True), y
passes = {
    "x.mean": (1, 0, lambda out: x.mean(axis=-1, keepdims=True)),
    "x - mean": (1, 1, lambda out: np.subtract(x, mean, out=out)),
    "x * x": (1, 1, lambda out: np.multiply(x, x, out=out)),
    "x * weight": (1, 1, lambda out: np.multiply(x, weight, out=out)),
}
bars = np.array([[gigabytes(reads, writes) / bandwidth, seconds(run, None), seconds(run, spare)]
                 for reads, writes, run in passes.values()])
labels = ("bytes / bandwidth", "into a new array", "with out=")
for i, color in enumerate((GREY, RED, BLUE)):
    plt.bar(np.arange(4) + 0.27 * (i - 1), bars[:, i] * 1e3, 0.25, color=color, label=labels[i])
plt.xticks(range(4), passes), plt.ylabel("time (ms)"), plt.legend()
plt.title("what a pass should take, and what it takes")
plt.show()

# %% [markdown]
# A new array of this size is memory that the operating system has to find and clear, page by page (4 KB or more), when
# it is first touched; that is the difference between red and blue. Grey is what blue cannot be much below, because the
# bytes have to move: code like this is *memory-bound*, the processor waits for data. Where blue stands well above grey,
# NumPy has work of its own to do for every row.
#
# **Predict:** the copy above works on arrays of 33.6 MB. How much faster, per byte, is the same loop on two arrays of
# 8 KB?

# %%
sizes = 2 ** np.arange(11, 24)                                      # numbers in one of the two arrays
speed = []
for n in sizes:
    times = max(1, 2 ** 23 // n)
    speed.append(12 * n * times / seconds(copy_plus_one, x, y, n, times, repeats=3) / 1e9)
kilobytes = 8 * sizes / 1024                                        # of both arrays
print(f"{kilobytes[0]:.0f} KB: {speed[0]:.0f} GB/s; {kilobytes[-1]:.0f} KB: {speed[-1]:.0f} GB/s; "
      f"{max(speed) / speed[-1]:.1f} times faster at best")

# %%
def caches():
    """{name: KB} of this machine's caches, where it tells (Linux does)."""
    found = {}
    for folder in sorted(here("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction":
            found["L" + level] = int(size.removesuffix("K"))
    return found

plt.semilogx(kilobytes, speed, "o-", base=2)
for name, size in caches().items():
    plt.axvline(size, color=GREY, ls=":")
    plt.text(size, max(speed) * 1.03, f" {name}: {size} KB", color=GREY, ha="right", fontsize=9)
plt.title("the same loop on arrays of different size", y=1.08)
plt.xlabel("both arrays together (KB)"), plt.ylabel("speed (GB/s)"), plt.ylim(0)
plt.show()

# %% [markdown]
# A *cache* is a small, fast memory inside the processor that keeps what was used last. As long as both arrays fit in
# the smallest one (L1, some 32 KB), the loop is several times as fast; every step down is a cache that overflows. The
# right end is main memory, and everything larger than the caches goes at that speed.
#
# This is the whole secret of layernorm. **A row of 1024 numbers is 4 KB.** Who finishes a row before going on to the
# next reads it from memory once, however often he looks at it, because it stays in L1. NumPy cannot: each of its
# passes walks over all rows.
#
# ## The formula as a loop
#
# Now the same in C++, row by row. Every variable has a type (`float sum`), and `x += C` on an array's name moves it on
# to the next row.

# %%
NAIVE = r"""
#include <cmath>
#include <cstdint>
extern "C" void layernorm(const float* x, const float* weight, const float* bias,
                          int64_t rows, int64_t C, float* y) {
  for (int64_t r = 0; r < rows; r++, x += C, y += C) {
    float sum = 0, squares = 0;
    for (int64_t i = 0; i < C; i++) sum += x[i];
    float mean = sum / C;
    for (int64_t i = 0; i < C; i++) squares += (x[i] - mean) * (x[i] - mean);
    float rstd = 1 / std::sqrt(squares / C + 1e-5f);
    for (int64_t i = 0; i < C; i++) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
  }
}
"""

# %%
want = layernorm(x, weight, bias)
cpp(NAIVE).layernorm(x, weight, bias, rows, C, y)
print(f"the largest difference from NumPy: {np.abs(y - want).max():.1e}")

# %% [markdown]
# **Predict:** NumPy moves 5.7 times the bytes of this loop. How long will the loop take: as long as the copy, or
# longer?

# %%
t_naive = seconds(cpp(NAIVE).layernorm, x, weight, bias, rows, C, y)
for name, t in [("NumPy", t_numpy), ("naive loop in C++", t_naive), ("copy", t_copy)]:
    print(f"{name:18} {t * 1e3:6.1f} ms  {t / t_copy:5.1f} times the copy")

# %% [markdown]
# Better than NumPy on most machines, and far from the copy. The bytes are right now, so something else holds it back.
#
# ## A chain of additions
#
# Look at `sum += x[i]`. Each addition needs the result of the one before, and an addition takes 3 or 4 steps of the
# processor's clock (*cycles*) until its result is there. Meanwhile the processor could start eight other additions, or
# more: today's processors start two additions in each cycle, and each of them can be on a *vector* of 4, 8 or 16
# numbers at once. The compiler knows all this. Why does it not use it? Because it must not change the result, and this
# changes it:

# %%
a, b, c = np.float32(1e8), np.float32(-1e8), np.float32(1)
print(f"(a + b) + c = {(a + b) + c}     a + (b + c) = {a + (b + c)}")

# %% [markdown]
# Addition of floating-point numbers is not associative: each result is rounded (to 24 bits here), so the order
# matters. The compiler keeps our order. We may choose another one. Below, `K` sums run side by side; number i goes to
# sum i % K, and in the end the K sums are added up. `-DK=8` on the compiler's command line puts 8 for K. A count of
# cycles first: with one sum, a number costs the 4 cycles of an addition, at 3 GHz 1.3 ns; with K sums it is K times
# less, until the processor cannot start more.
#
# **Predict:** from how many sums on will it become no faster?

# %%
SUMS = r"""
#include <cstdint>
extern "C" float total(const float* x, int64_t n, int64_t times) {
  float sums[K] = {};                                    // K zeros
  for (int64_t t = 0; t < times; t++) {
    for (int64_t i = 0; i < n; i += K) {
      for (int k = 0; k < K; k++) sums[k] += x[i + k];   // K is known when this is compiled: no loop is left
    }
  }
  float sum = 0;
  for (int k = 0; k < K; k++) sum += sums[k];
  return sum;
}
"""

# %%
many = [1, 2, 4, 8, 16, 32, 64, 128]
took = [seconds(cpp(SUMS, f"-DK={K}").total, x[0], C, 1000, repeats=3) / C * 1e6 for K in many]   # ns
print("  ".join(f"K = {K}: {t:.3f}" for K, t in zip(many, took, strict=True)))

# %%
plt.loglog(many, took, "o-", base=2)
plt.loglog(many, [took[0] / K for K in many], color=GREY, ls=":", label="1 / K")
plt.xticks(many, many), plt.legend()
plt.title("a sum over 1024 numbers in the L1 cache, as K sums side by side")
plt.xlabel("K, sums side by side"), plt.ylabel("time per number (ns)")
plt.show()

# %% [markdown]
# The dotted line is what K chains instead of one promise. Where the curve leaves it, something else is the limit: the
# number of vectors that can be loaded or added in a cycle. (It may lie above the line at K = 2 or 4, where the
# compiler has no good vector of that size, and with very many sums, when they no longer fit in the processor's
# registers, its 16 or 32 places for vectors that are being worked on.)
#
# ### Exercise 1 (10 minutes): a sum of any length
#
# `total` above reads beyond the end if n is no multiple of K. Write `sum_of` for any n, with 8 sums side by side. What
# does not fill a group of 8 is added afterwards, one by one. (An index beyond the array may end the notebook's kernel:
# then start it again and look at your limits.)

# %%
SUM_OF = r"""
#include <cstdint>
extern "C" float sum_of(const float* x, int64_t n) {
  float sums[8] = {};
  ...
}
"""

# %%
def call_sum(library, numbers):
    longer = np.r_[numbers, np.full(8, 1000, np.float32)]              # what lies beyond must not be added
    return library.sum_of(longer, len(numbers))

check_cpp(SUM_OF, call_sum,
          case(np.ones(16, np.float32), want=16.0, why="two whole groups: all eight sums count"),
          case(np.arange(19, dtype=np.float32), want=171.0, why="two groups, and 3 are left over"),
          case(np.full(5, 2, np.float32), want=10.0, why="fewer than 8 numbers: no group is full"),
          case(x[0], want=float(x[0].sum(dtype=np.float64)), why="1024 random numbers"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Declare `int64_t i = 0;` before the loop, so that it is still known after it: `for (; i + 8 <= n; i += 8)`. A second
# loop goes on where it stopped: `for (; i < n; i++)`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# SUM_OF = r"""
# #include <cstdint>
# extern "C" float sum_of(const float* x, int64_t n) {
#   float sums[8] = {};
#   int64_t i = 0;
#   for (; i + 8 <= n; i += 8) {
#     for (int k = 0; k < 8; k++) sums[k] += x[i + k];
#   }
#   for (; i < n; i++) sums[0] += x[i];
#   float sum = 0;
#   for (int k = 0; k < 8; k++) sum += sums[k];
#   return sum;
# }
# """
# ```
#
# </details>

# %% [markdown]
# ## One pass less, and a disaster
#
# The naive loop sums twice: first for the mean, then for the squared distances from it. Many books offer a formula
# that needs one pass: variance = E[x²] - E[x]², the mean of the squares minus the square of the mean. On paper the two
# are equal.
#
# **Predict:** take rows with standard deviation 1 and mean 1000, in float32, which keeps about 7 decimal digits. How
# many digits of the variance are right by each of the formulas?

# %%
def two_passes(x):
    mean = x.mean(axis=-1, keepdims=True)
    return ((x - mean) ** 2).mean(axis=-1)

def one_pass(x):
    return (x * x).mean(axis=-1) - x.mean(axis=-1) ** 2

noise = rng.standard_normal((200, 1000))
shifted = (noise + 1000).astype(np.float32)
print("exact     ", shifted.astype(np.float64).var(axis=-1)[:4])
print("two passes", two_passes(shifted)[:4])
print("one pass  ", one_pass(shifted)[:4])

# %%
means, errors = 10.0 ** np.arange(-1, 5), {two_passes: [], one_pass: []}
for m in means:
    row = (noise + m).astype(np.float32)
    exact = row.astype(np.float64).var(axis=-1)
    for formula, list_of in errors.items():
        list_of.append(np.abs(formula(row) / exact - 1).max())
for formula, color in ((two_passes, GREEN), (one_pass, RED)):
    plt.loglog(means, errors[formula], "o-", color=color, label=formula.__name__)
plt.axhline(1, color=GREY, ls=":"), plt.legend()
plt.title("relative error of the variance in float32; above the dotted line it means nothing")
plt.xlabel("mean of the row (its standard deviation is 1)"), plt.ylabel("relative error")
plt.show()

# %% [markdown]
# At mean 1000 the squares are about 1,000,000, float32 knows them to about 0.06, and the difference of two such
# numbers is to be 1: nearly everything has cancelled. At mean 10,000 many variances come out negative, and the square
# root of such a one is NaN. The second pass that would spare us this costs little: the row is in L1.
#
# ### Exercise 2 (8 minutes): one pass that works
#
# There is a way with one pass: take a guess of the mean from every x first. Any number near the mean will do, the
# first of the row is good enough. With d = x - guess, variance = E[d²] - E[d]², and nothing large is left to cancel.
# Write it.

# %%
def variance_by_guess(x):                  # (rows, C) -> (rows,)
    ...

# %%
small = np.array([[4.0, 6.0, 8.0], [1.0, 1.0, 4.0]])
check(variance_by_guess, case(small, want=np.array([8 / 3, 2.0]), why="row by row: each has its own guess"),
      case(shifted, want=shifted.astype(np.float64).var(axis=-1),
           why="mean 1000: subtract the guess from x before anything is squared"), tolerance=1e-4)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `x[:, :1]` is the first number of each row, of shape (rows, 1), which NumPy spreads over the columns.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def variance_by_guess(x):
#     d = x - x[:, :1]
#     return (d * d).mean(axis=-1) - d.mean(axis=-1) ** 2
# ```
#
# </details>

# %% [markdown]
# ## Many sums, many threads
#
# Now the loop again with 64 sums side by side, for the mean and for the squares. `sum_over` is a small function that
# sums any term; what begins with `[&]` is the lambda of C++. In the second version several *threads* (the cores of the
# processor) each take a share of the rows. Rows have nothing to do with each other, so threads need not talk.

# %%
WIDE = r"""
#include <cmath>
#include <cstdint>
template <class Term> float sum_over(int64_t C, Term term) {
  float sums[64] = {}, sum = 0;
  int64_t i = 0;
  for (; i + 64 <= C; i += 64)
    for (int k = 0; k < 64; k++) sums[k] += term(i + k);
  for (; i < C; i++) sum += term(i);
  for (int k = 0; k < 64; k++) sum += sums[k];
  return sum;
}
"""

# %%
ROW = r"""
static void layernorm_row(const float* x, const float* weight, const float* bias, int64_t C,
                          float* y) {
  float mean = sum_over(C, [&](int64_t i) { return x[i]; }) / C;
  float squares = sum_over(C, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
  float rstd = 1 / std::sqrt(squares / C + 1e-5f);
  for (int64_t i = 0; i < C; i++) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
}
"""

# %%
THREADS = WIDE + ROW + r"""
#include <thread>
#include <vector>
extern "C" void layernorm(const float* x, const float* weight, const float* bias,
                          int64_t rows, int64_t C, float* y,
                          int threads) {
  std::vector<std::thread> team;
  for (int t = 0; t < threads; t++) team.emplace_back([=] {          // what thread t does:
    for (int64_t r = rows * t / threads; r < rows * (t + 1) / threads; r++)
      layernorm_row(x + r * C, weight, bias, C, y + r * C);
  });
  for (std::thread& t : team) t.join();                              // wait for all
}
"""
cores = os.cpu_count()
cpp(THREADS).layernorm(x, weight, bias, rows, C, y, cores)
print(f"the largest difference from NumPy: {np.abs(y - want).max():.1e}")

# %%
t_wide = seconds(cpp(THREADS).layernorm, x, weight, bias, rows, C, y, 1)
t_threads = seconds(cpp(THREADS).layernorm, x, weight, bias, rows, C, y, cores)
steps = {"NumPy": t_numpy, "naive": t_naive, "64 sums": t_wide, f"{cores} threads": t_threads, "copy": t_copy}
for name, t in steps.items():
    print(f"{name:10} {t * 1e3:6.1f} ms  {gigabytes(1, 1) / t:5.1f} GB/s of what must move")
plt.barh(list(steps), [t * 1e3 for t in steps.values()], color=[GREY, BLUE, BLUE, BLUE, GREEN])
plt.gca().invert_yaxis(), plt.xlabel("time (ms), shorter is better")
plt.title(f"layernorm of {rows} rows of {C} numbers; the copy moves the same bytes on one thread")
plt.show()

# %% [markdown]
# With 64 sums the layernorm comes near the time of a copy that computes nothing, on most machines: it is memory-bound,
# as it should be, and a little more arithmetic would be free. More threads help only as far as one core alone cannot
# use all the bandwidth.
#
# ## The roofline
#
# Two limits, one picture. A machine has a peak of arithmetic, P FLOP/s, and a bandwidth, B bytes/s. Code that does I
# FLOPs per byte (its *arithmetic intensity*) can do at most I · B FLOPs in a second, because that is what memory
# delivers, and at most P. Layernorm: 7 FLOPs per 12 bytes, I = 0.58.
#
# ### Exercise 3 (5 minutes): the roof
#
# Write the function. `peak` is in GFLOP/s and `bandwidth` in GB/s; the intensity may be an array.

# %%
def attainable(intensity, peak, bandwidth):          # -> GFLOP/s
    ...

# %%
check(attainable, case(2.0, 100.0, 10.0, want=20.0, why="memory delivers enough for 2 FLOPs a byte at 10 GB/s"),
      case(50.0, 100.0, 10.0, want=100.0, why="never more than the peak"),
      case(np.array([0.5, 10.0, 64.0]), 80.0, 8.0, want=np.array([4.0, 80.0, 80.0]),
           why="element by element: np.minimum, not min"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# GB/s times FLOPs per byte is GFLOP/s. The smaller of the two limits holds.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def attainable(intensity, peak, bandwidth):
#     return np.minimum(peak, intensity * bandwidth)
# ```
#
# </details>

# %% [markdown]
# The peak is measured by a loop that only multiplies and adds, in vectors, with enough chains side by side; the next
# tutorial looks at such a loop closely. These lines measure it in the package, and a similar one reads memory:

# %%
source("csrc/cpp/machine_limits.cpp", "constexpr int CHAINS", "return 2.0")

# %%
PEAK = r"""
#include "simd.h"
using namespace minigpt;
extern "C" float fma(int64_t rounds) {           // 12 chains of vectors
  vec a[12], factor = broadcast(0.999f), term = broadcast(0.001f), total{};
  for (int j = 0; j < 12; j++) a[j] = broadcast(j);  // different, or the compiler computes only one
  for (int64_t i = 0; i < rounds; i++)
    for (int j = 0; j < 12; j++) a[j] = a[j] * factor + term;
  for (int j = 0; j < 12; j++) total += a[j];
  return sum(total);
}
extern "C" int lanes() { return LANES; }
"""

# %%
lanes, rounds = cpp(PEAK).lanes(), 1_000_000
peak = 2 * lanes * 12 * rounds / seconds(cpp(PEAK).fma, rounds) / 1e9
print(f"vectors of {lanes} numbers; one core: {peak:.0f} GFLOP/s, {bandwidth:.1f} GB/s from memory")
print(f"the roof's corner is at {peak / bandwidth:.1f} FLOPs per byte; layernorm does {7 / 12:.2f}")

# %%
corner = peak / bandwidth
plt.figure(figsize=(8, 4))
plt.loglog([0.05, corner, 100], [0.05 * bandwidth, peak, peak], color=GREY, label="roof of one core")
for name, t, bytes_each, color in (("NumPy", t_numpy, 4 * 17, RED), ("naive loop", t_naive, 12, ORANGE),
                                   ("64 sums", t_wide, 12, GREEN)):
    at, reached = 7 / bytes_each, flops / t / 1e9
    plt.plot(at, reached, "o", color=color, ms=9, label=f"{name}: {reached:.1f} GFLOP/s")
plt.axvline(corner, color=GREY, ls=":")
plt.title("the roofline: left of the corner memory is the limit, right of it arithmetic")
plt.xlabel("FLOPs per byte moved"), plt.ylabel("GFLOP/s"), plt.legend()
plt.show()

# %% [markdown]
# How to read it: a point on the sloping roof uses all of the bandwidth. NumPy's point is far to the left: it moves
# more bytes for the same work, so even the roof above it is low. The naive loop has the right intensity and hangs
# below the roof: something other than memory holds it back (its chain of additions). No trick lifts layernorm above
# its roof but to move fewer bytes, for example by doing the addition that comes before it in the same pass, as
# `csrc/cpp/residual_layernorm` does.
#
# ## Backward: a row's own gradient
#
# Given dy, the gradient of the loss with respect to y, layernorm's backward pass gives three gradients. For each row,
# with xhat = (x - mean) · rstd and dxhat = dy · weight ([4](04_backpropagation.ipynb) derives it):
#
# $$dx = \text{rstd} \cdot \left(\text{dxhat} - \overline{\text{dxhat}} - \text{xhat} \cdot
# \overline{\text{dxhat} \cdot \text{xhat}}\right)$$
#
# where the bar is the mean over the row. Two sums, then one result: the same shape as forward.
#
# ### Exercise 4 (12 minutes): dx in C++
#
# Write the loops of `backward_row` for one row of C numbers; plain sums will do.

# %%
BACKWARD = r"""
#include <cstdint>
extern "C" void backward_row(const float* dy, const float* x, const float* weight, float mean,
                             float rstd, int64_t C, float* dx) {
  float sum_dxhat = 0, sum_dxhat_xhat = 0;
  ...
}
"""

# %%
def call_backward(library, dy, x, weight):
    _, mean, rstd = numpy_ops.layernorm_forward(x, weight)
    dx = np.full_like(x, np.nan)
    library.backward_row(dy, x, weight, float(mean), float(rstd), len(x), dx)
    return dx

def wanted(dy, x, weight):
    _, mean, rstd = numpy_ops.layernorm_forward(x, weight)
    return numpy_ops.layernorm_backward(dy, x, weight, mean, rstd)[0]

dy = rng.standard_normal((rows, C), np.float32)
ones, tiny = np.ones(4, np.float32), (dy[0, :4].copy(), x[0, :4].copy())
check_cpp(BACKWARD, call_backward,
          case(*tiny, ones, want=wanted(*tiny, ones), why="weights of 1; all four of dx are written"),
          case(dy[0], x[0], weight, want=wanted(dy[0], x[0], weight),
               why="with real weights: dxhat is dy * weight; both means are over C numbers"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# In both loops begin with `float xhat = (x[i] - mean) * rstd, dxhat = dy[i] * weight[i];`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# BACKWARD = r"""
# #include <cstdint>
# extern "C" void backward_row(const float* dy, const float* x, const float* weight, float mean,
#                              float rstd, int64_t C, float* dx) {
#   float sum_dxhat = 0, sum_dxhat_xhat = 0;
#   for (int64_t i = 0; i < C; i++) {
#     float xhat = (x[i] - mean) * rstd, dxhat = dy[i] * weight[i];
#     sum_dxhat += dxhat;
#     sum_dxhat_xhat += dxhat * xhat;
#   }
#   for (int64_t i = 0; i < C; i++) {
#     float xhat = (x[i] - mean) * rstd, dxhat = dy[i] * weight[i];
#     dx[i] = rstd * (dxhat - sum_dxhat / C - xhat * (sum_dxhat_xhat / C));
#   }
# }
# """
# ```
#
# </details>

# %% [markdown]
# ## Backward: a sum that all rows share
#
# bias and weight serve all rows, so their gradients are sums over rows: dbias = Σ dy, dweight = Σ dy · xhat. Let
# threads share the rows again, and let all of them add to the same dbias. (`volatile` makes the compiler really read
# and write memory for each addition.)
#
# **Predict:** `dbias[i] += ...` reads, adds, and writes back. What happens when two threads do that at the same time?
# The cell calls the same function several times on the same numbers, 262,144 rows of ones.

# %%
RACE = r"""
#include <cstdint>
#include <thread>
#include <vector>
extern "C" void dbias_of(const float* dy, int64_t rows, int64_t C, float* dbias, int threads) {
  volatile float* sum = dbias;
  std::vector<std::thread> team;
  for (int t = 0; t < threads; t++) team.emplace_back([=] {
    for (int64_t r = rows * t / threads; r < rows * (t + 1) / threads; r++)
      for (int64_t i = 0; i < C; i++) sum[i] = sum[i] + dy[r * C + i];
  });
  for (std::thread& t : team) t.join();
}
"""

# %%
all_ones = np.ones((2 ** 18, 16), np.float32)
for _ in range(8):
    dbias = np.zeros(16, np.float32)
    cpp(RACE).dbias_of(all_ones, *all_ones.shape, dbias, 4)
    print(f"4 threads: the columns are between {dbias.min():,.0f} and {dbias.max():,.0f}, expected 262,144")

# %% [markdown]
# If another thread writes between a thread's read and its write, that other addition is lost. This is a *race*, and on
# most machines with several cores many of the lines above are wrong, and each in its own way. A race need not show: on
# a quiet day all lines may be right, which makes it worse.
#
# An addition that cannot be interrupted (*atomic*) would lose nothing. But threads would add in another order in every
# run, and you know what the order does to sums of floats. A run that cannot be repeated to the last bit is hard to
# debug. The cure: each thread sums its rows for itself, and the sums are then added in a fixed order.

# %%
PARTIAL = r"""
#include <cstdint>
#include <thread>
#include <vector>
extern "C" void dbias_of(const float* dy, int64_t rows, int64_t C, float* dbias, int threads,
                         int64_t chunks) {
  std::vector<float> sums(chunks * C);                    // zeros; a row of its own for every chunk
  std::vector<std::thread> team;
  for (int t = 0; t < threads; t++) team.emplace_back([&, t] {
    for (int64_t c = t; c < chunks; c += threads)
      for (int64_t r = rows * c / chunks; r < rows * (c + 1) / chunks; r++)
        for (int64_t i = 0; i < C; i++) sums[c * C + i] += dy[r * C + i];
  });
  for (std::thread& t : team) t.join();
  for (int64_t c = 0; c < chunks; c++)
    for (int64_t i = 0; i < C; i++) dbias[i] += sums[c * C + i];
}
"""

# %% [markdown]
# **Predict:** with a chunk of rows for each thread the result is the same in every run. Is it also the same for 1, 2,
# 3 and 4 threads? And if the rows are cut in 32 chunks, whatever the number of threads?

# %%
def bits(threads, chunks):
    dbias = np.zeros(C, np.float32)
    cpp(PARTIAL).dbias_of(dy, rows, C, dbias, threads, chunks)
    return dbias

exact = dy.sum(axis=0, dtype=np.float64)
for name, chunks_for in (("a chunk a thread", lambda t: t), ("always 32 chunks", lambda t: 32)):
    for threads in (1, 2, 3, 4):
        got = bits(threads, chunks_for(threads))
        same = np.array_equal(got, bits(1, chunks_for(1)))
        print(f"{name}, {threads} threads: error {np.abs(got - exact).max():.1e}, "
              f"{'the same bits' if same else 'other bits'} as with 1 thread")

# %%
points = [1, 2, 4, 8, 16, 32, 64, 128]
error = [np.abs(bits(2, n) - exact).max() for n in points]
plt.semilogx(points, error, "o-", base=2)
plt.xticks(points, points), plt.ylim(0)
plt.title(f"dbias over {rows} rows: short sums, added up, round less than one long sum")
plt.xlabel("chunks"), plt.ylabel("largest error")
plt.show()

# %% [markdown]
# So the chunks must depend on the number of rows alone. Then every run on every number of threads gives the same bits,
# and as a gift the error is smaller.
#
# ## The real lines
#
# The package has layernorm as a *ladder*: one idea a file, from the formula to the fastest. Forward of one row, from
# which all rungs but the first are made; `sum_over` runs four vectors side by side, which is 64 sums with AVX-512:

# %%
source("csrc/cpp/layernorm/row.h", "inline float row_mean", "return 1 / std::sqrt")
source("csrc/cpp/layernorm/row.h", "inline void normalise_row", "streamed ?")

# %% [markdown]
# The same two passes for mean and variance as yours, and the same reason. New is `at`: it hides whether a whole vector
# is read or, at a ragged end, a part of one. And `at.stream` may write past the caches: such a store does not read the
# line first, which saves 4 of the 12 bytes, and is worth it only for outputs that are too large for the cache anyway.
# The sum over rows is yours too, with at most 32 chunks:

# %%
source("csrc/cpp/row_sums.h", "// body(begin, end, sums)", "result(i, sums[i])")

# %%
fast = ops.load("cpp")
rungs = fast.kernels["layernorm_forward"]
out = y, np.empty(rows, np.float32), np.empty(rows, np.float32)
times = {}
for rung in rungs:
    run = functools.partial(fast.layernorm_forward, x, weight, bias, kernel=rung, out=out)
    times[rung] = seconds(run)
    print(f"{rung:11} {times[rung] * 1e3:6.1f} ms, off by {np.abs(y - want).max():.0e} from NumPy")
bars = {"NumPy": t_numpy} | times
plt.barh(list(bars), [gigabytes(1, 1) / t for t in bars.values()], color=[GREY] + [BLUE] * len(times))
plt.axvline(bandwidth, color=GREEN, label="our copy loop, one thread"), plt.legend()
plt.gca().invert_yaxis(), plt.xlabel("12 bytes a number / time (GB/s), longer is better")
plt.title("the package's ladder of layernorm_forward")
plt.show()

# %% [markdown]
# The last two bars have several threads and may lie beyond the line; the last one also because it moves 8 bytes where
# the scale counts 12. Backward is the same story with more arrays (dy and x in, dx out), and its ladder has the same
# rungs:

# %%
_, mean, rstd = fast.layernorm_forward(x, weight, bias)
grads = y, np.empty(C, np.float32), np.empty(C, np.float32)
t_back_numpy = seconds(lambda: numpy_ops.layernorm_backward(dy, x, weight, mean, rstd), repeats=2)
for rung in fast.kernels["layernorm_backward"]:
    run = functools.partial(fast.layernorm_backward, dy, x, weight, mean, rstd, kernel=rung, grads=grads)
    t = seconds(run, repeats=3)
    print(f"{rung:11} {t * 1e3:6.1f} ms, {t_back_numpy / t:5.1f} times as fast as NumPy")

# %% [markdown]
# ## Summary
#
# - NumPy's layernorm reads 7 and writes 5 whole arrays, 68 bytes a number; 12 would do, 8 with streaming stores.
# - A row of 1024 numbers is 4 KB and stays in the L1 cache: a second pass over it costs no memory traffic.
# - One sum is one chain, an addition every 4 cycles; the compiler may not reorder it. Many sums side by side cured
#   that.
# - E[x²] - E[x]² in float32 loses all digits of the variance when the mean is some thousand times the standard
#   deviation.
# - Layernorm does 0.58 FLOPs a byte, far left of the roofline's corner: the fastest one is the one that moves fewest
#   bytes.
# - A shared sum needs parts of its own for each chunk of rows, and chunks that do not depend on the number of threads.
#
# Next: [7](07_matmul.ipynb), where arithmetic is the limit.
#
# ## Papers
#
# - J. L. Ba, J. R. Kiros, G. E. Hinton, *Layer Normalization*, 2016,
#   [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)
# - S. Williams, A. Waterman, D. Patterson, *Roofline: an insightful visual performance model for multicore
#   architectures*, Communications of the ACM 52(4), 2009
# - J. D. McCalpin, *Memory bandwidth and machine balance in current high performance computers*, IEEE TCCA Newsletter,
#   1995 (the STREAM benchmark)
# - T. F. Chan, G. H. Golub, R. J. LeVeque, *Algorithms for computing the sample variance: analysis and
#   recommendations*, The American Statistician 37(3), 1983
