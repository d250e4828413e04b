# %% [markdown]
# # 9. CUDA without a GPU
#
# **You will be able to** write a kernel in CUDA and say which of its threads does what; count with a pencil what it
# asks of the memory, and check that against a report; find a race, and mend it; say of a kernel whether a GPU's memory
# or its arithmetic sets its speed.
#
# **Needs:** a laptop with a C++ compiler (`g++` or `clang++`), no GPU; a little C: loops, arrays, pointers.
# **Before:** nothing; [6](06_layernorm_in_cpp.ipynb) helps with the roofline.  **Time:** about 90 minutes
#
# A processor core of a laptop works on one or two threads at a time. An H100, the GPU that many language models were
# trained on, has 132 processors, and each keeps 2048 threads at hand: 132 · 2048 = 270,336 threads in flight. CUDA is
# the C++ in which one writes what a single one of these threads does.
#
# You need no GPU to learn it. minigpt has an *emulator*: it compiles CUDA for the CPU, runs one thread after the other,
# and watches each access to memory. It cannot say how long a kernel would take. It can say what a GPU keeps to itself:
# which line reads out of bounds, which two threads race, how many bytes each line moves and how many are wasted.

# %%
import matplotlib.pyplot as plt
import numpy as np
from lesson import BLUE, GREEN, GREY, ORANGE, RED, case, check_kernel, count, cuda, source

from minigpt import emulator, ops


def empty(*shape):
    """An array that nobody has written yet: all NaN."""
    return np.full(shape, np.nan, np.float32)

# %% [markdown]
# ## A kernel: what one thread does
#
# A *kernel* is a function that many threads run at the same time, marked `__global__`. The threads come in *blocks* of
# equal size, and all blocks together are the *grid*. A thread learns from four built-in variables who it is:
# `blockIdx.x` is the number of its block, `threadIdx.x` its own number within the block, `blockDim.x` and `gridDim.x`
# how many threads a block and how many blocks the grid has. To add two arrays of `n` numbers, each thread takes one:
#
# $$i = \text{blockIdx} \cdot \text{blockDim} + \text{threadIdx}$$
#
# `kernel<<<blocks, threads>>>(...)` launches it. That line stands in an ordinary function, the *launcher*, which is
# what Python calls.

# %%
ADD = """
__global__ void add(const float* x, const float* y, float* z, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) z[i] = x[i] + y[i];
}
extern "C" void run_add(const float* x, const float* y, float* z, int n) {
  add<<<(n + 127) / 128, 128>>>(x, y, z, n);
}
"""
rng = np.random.default_rng(0)
x, y, z = (rng.normal(size=1000).astype(np.float32) for _ in range(3))
kernels = cuda(ADD)            # compiles the string; the first time this also compiles the emulator
kernels.run_add(x, y, z, 1000)
print("equal to NumPy:", np.array_equal(z, x + y))

# %% [markdown]
# `cuda` writes the string to a file and gives it to `minigpt.emulator.compile`; that is all it does. Arrays are handed
# over as they are, and the kernel writes into `z`. (On a GPU, arrays would first be copied to its memory.)
#
# `(n + 127) / 128` is $n / 128$ rounded up, since a grid has whole blocks only. Which thread does which element? Let
# the threads say it themselves: each writes down the number of its block and its own, for 50 elements in blocks of 16.

# %%
WHO = """
__global__ void who(float* block, float* thread, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    block[i] = blockIdx.x;
    thread[i] = threadIdx.x;
  }
}
extern "C" void run_who(float* block, float* thread, int n) { who<<<(n + 15) / 16, 16>>>(block, thread, n); }
"""
block, thread = empty(50), empty(50)
cuda(WHO).run_who(block, thread, 50)

# %%
fig, ax = plt.subplots(figsize=(8, 2.4))
ax.imshow(np.full((4, 16), 0.0), cmap="Greys", vmin=0, vmax=1, aspect="auto")
for row in range(4):
    for column in range(16):
        element = np.flatnonzero((block == row) & (thread == column))
        ax.text(column, row, element[0] if len(element) else "idle", ha="center", va="center", fontsize=9,
                color=BLUE if len(element) else RED)
ax.set(xticks=range(16), yticks=range(4), xlabel="threadIdx.x", ylabel="blockIdx.x",
       title="50 elements in blocks of 16: the element that each thread takes")
ax.set_xticks(np.arange(-0.5, 16), minor=True), ax.set_yticks(np.arange(-0.5, 4), minor=True)
ax.grid(which="minor", color=GREY, linewidth=0.5), ax.tick_params(which="minor", length=0)
plt.show()

# %% [markdown]
# Four blocks are 64 threads, 14 more than elements. The line `if (i < n)`, the *guard*, keeps them from touching
# anything.
#
# **Predict:** what happens in `add` without its guard, with `n = 1000` in blocks of 128? Which thread of which block is
# the first to do wrong? What would a GPU do?

# %%
unguarded = cuda(ADD.replace("if (i < n) ", ""))
report = emulator.run(unguarded.run_add, x, y, z, 1000)
print(report.findings[0])

# %% [markdown]
# Block 7 has the elements 896 to 1023, so its thread 104 would take element 1000. A GPU says nothing in most cases:
# beside the array lies another one, and the kernel reads, or destroys, what is there.
#
# ## The report, line by line
#
# `emulator.run(launcher, ...)` calls a launcher and returns a report of what its kernels did. First with a pencil, for
# the guarded kernel and $n = 1000$: two arrays are read and one is written, 4 bytes a number; one addition a number.
# The memory of a GPU does not move single bytes, but *sectors* of 32 bytes, 8 floats. And threads do not act alone: 32
# neighbours of a block form a *warp*, and all threads of a warp (its *lanes*) execute an instruction together.

# %%
n = 1000
print(f"bytes read {2 * 4 * n}, written {4 * n}; sectors read {2 * 4 * n // 32}, written {4 * n // 32}")
print(f"additions {n}; warps {-(-n // 32)} with work, each reads twice and writes once")
report = emulator.run(kernels.run_add, x, y, z, n)
print()
print(report)

# %% [markdown]
# What it says, from above:
#
# - *Nothing wrong was found*, or else what was wrong, with the line, the thread and the block.
# - The kernel: 8 blocks of 128 threads, and the floating-point operations (*FLOPs*) that they executed.
# - A row for each line of the source that touches memory, reading and writing apart. `kernel.cu:3` is the third line of
#   the string. 32 warps have passed it; the row *read* has 64, because there are two reads on that line.
# - *sectors*: what memory had to move. *ideal*: as few sectors as could hold these bytes. *waste* is their ratio: 1.0
#   here. Most of this tutorial is about that column.
#
# ### Exercise 1 (10 minutes): a bias for each column
#
# `y` is a matrix of `rows` rows and `C` columns that lie one after the other in memory, so that element `(r, c)` is at
# `r * C + c`. Write a kernel with one thread for each number of the matrix: `y[i] = x[i] + bias[c]`, where `c` is the
# column of element `i`. There are blocks of 64 threads, as many as needed, and the last block may have idle threads.

# %%
BIAS = """
__global__ void add_bias(const float* x, const float* bias, float* y, int rows, int C) {
  ...
}
extern "C" void run_bias(const float* x, const float* bias, float* y, int rows, int C) {
  add_bias<<<(rows * C + 63) / 64, 64>>>(x, bias, y, rows, C);
}
"""

# %%
m, b = rng.normal(size=(11, 12)).astype(np.float32), rng.normal(size=12).astype(np.float32)
check_kernel(BIAS, "run_bias",
             case(m[:4], b, empty(4, 12), 4, 12, want=m[:4] + b,
                  why="element i lies in row i / C and column i % C"),
             case(m[:, :7].copy(), b[:7], empty(11, 7), 11, 7, want=m[:, :7] + b[:7],
                  why="77 elements, two blocks of 64 threads"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Three lines: the index `i` as in `add`, a guard against `rows * C`, the sum. The column is the remainder `i % C`.
# </details>
# <details><summary>Solution</summary>
#
# ```python
# BIAS = """
# __global__ void add_bias(const float* x, const float* bias, float* y, int rows, int C) {
#   int i = blockIdx.x * blockDim.x + threadIdx.x;
#   if (i >= rows * C) return;
#   y[i] = x[i] + bias[i % C];
# }
# extern "C" void run_bias(const float* x, const float* bias, float* y, int rows, int C) {
#   add_bias<<<(rows * C + 63) / 64, 64>>>(x, bias, y, rows, C);
# }
# """
# ```
# </details>

# %% [markdown]
# ## Warps: 32 threads, one instruction
#
# The lanes of a warp share one instruction at a time. If an `if` sends half of them one way and half the other, the
# warp walks through both branches, and in each of them half of the lanes wait. That is called *divergence*. Below, the
# threads of four warps take one of two branches: in one kernel by whether they are odd, in the other by whether their
# warp is.
#
# **Predict:** four warps reach the `if`. How many passes of warps do the two writing lines see together, in each of the
# two kernels?

# %%
BRANCH = """
__global__ void branch(const float* x, float* y) {
  int t = threadIdx.x;
  if (WHICH % 2)
    y[t] = x[t] * 2;
  else
    y[128 + t] = x[t] - 3;
}
extern "C" void run_branch(const float* x, float* y) { branch<<<1, 128>>>(x, y); }
"""

# %%
reports = {}
for name, which in (("odd and even threads", "t"), ("odd and even warps", "(t / 32)")):
    run_branch = cuda(BRANCH.replace("WHICH", which)).run_branch
    reports[name] = emulator.run(run_branch, x[:128], np.zeros(256, np.float32), trace=100)
    passes, lanes = (count(reports[name], what, kind="write") for what in ("requests", "lanes"))
    print(f"{name}: {passes} passes, with {lanes / passes:.0f} of 32 lanes at work")

# %%
fig, panels = plt.subplots(1, 2, sharey=True, figsize=(8, 2.6))
for ax, (name, report) in zip(panels, reports.items(), strict=True):
    writes = sorted((access["warp"], min(access["offsets"]) >= 512, access["lanes"])
                    for access in report.trace if access["kind"] == "write")
    for when, (_, second, lanes) in enumerate(writes):
        ax.scatter([when] * len(lanes), lanes, marker="s", s=11, color=ORANGE if second else BLUE)
    ax.set(title=name, xlabel="passes of warps through the branches", xlim=(-0.5, len(writes) - 0.5),
           xticks=range(len(writes)), xticklabels=[f"warp {warp}" for warp, *_ in writes])
    ax.tick_params(axis="x", labelsize=7, rotation=30)
panels[0].set(ylabel="lane", ylim=(-1, 32))
plt.show()

# %% [markdown]
# Blue is one branch, orange the other, and white a lane that waits. By warps, half of the passes do the same work: so
# let whole warps be busy and whole warps idle.
#
# The emulator runs lanes one by one, and only puts their counts together; that a GPU's lanes wait for each other is
# what the picture shows, and not something that the emulator feels.
#
# ## Shared memory, barriers, and a race
#
# The threads of a block can work together, since they share a small memory beside their processor: *shared memory*,
# declared `__shared__`, up to 48 KB a block (on request 227 KB on an H100) and many times faster than the GPU's main
# memory, which is called *global*. Here a block adds up 128 numbers. Each thread puts one into shared memory; then half
# of the threads add what the other half has, then a quarter, and so on: a *tree*. 127 additions in 7 steps.
#
# For this, threads must wait until the others have written. `__syncthreads()` is a *barrier*: no thread of the block
# goes on before all have come to it. One is missing below.

# %%
TREE = """
__global__ void tree(const float* x, float* sums) {
  __shared__ float s[128];
  int t = threadIdx.x;
  s[t] = x[blockIdx.x * 128 + t];
  for (int half = 64; half > 0; half /= 2) {
    BARRIER
    if (t < half) s[t] += s[t + half];
  }
  if (t == 0) sums[blockIdx.x] = s[0];
}
extern "C" void run_tree(const float* x, float* sums, int blocks) { tree<<<blocks, 128>>>(x, sums); }
"""
racing = cuda(TREE.replace("BARRIER", ""))

# %% [markdown]
# **Predict:** without any barrier, will the sum be wrong? Always? Try three orders in which the threads may take turns.

# %%
numbers, sums = np.ones(256, np.float32), np.zeros(2, np.float32)
for order in ("forward", "reversed", "shuffled"):
    report = emulator.run(racing.run_tree, numbers, sums, 2, warps=order)
    print(f"{order:9} sums {sums}, findings: {[f.kind for f in report.findings]}")
print()
print(report.findings[0])

# %% [markdown]
# (`nan`: shared memory that nobody has written yet counts as NaN here. On a GPU it has what was left there before.)
#
# A *race*: two threads touch one place, at least one of them writes, and nothing orders them. Whether the sum comes out
# right depends on the order, and so on the GPU, the day and the compiler. The emulator reports the race in each order,
# *whether or not the numbers were right*: it remembers for each few bytes who wrote and who read them, and which
# barriers lay between. Now with the barrier.

# %%
mended = cuda(TREE.replace("BARRIER", "__syncthreads();"))
for order in ("forward", "reversed", "shuffled"):
    report = emulator.run(mended.run_tree, numbers, sums, 2, warps=order, trace=1000)
    print(f"{order:9} sums {sums}, findings: {[f.kind for f in report.findings]}")

# %%
fig, ax = plt.subplots(figsize=(8, 3))
for access in report.trace:
    if access["space"] == "shared" and access["block"][0] == 0:
        places, wrote = np.array(access["offsets"]) // 4, access["kind"] == "write"
        ax.scatter(places, np.full(len(places), access["step"] + 0.25 * wrote), s=8, color=RED if wrote else BLUE)
ax.scatter([], [], color=BLUE, label="read"), ax.scatter([], [], color=RED, label="written")
ax.legend(loc="lower right"), ax.invert_yaxis()
ax.set(xlabel="place in shared memory", ylabel="barriers passed", title="One block's tree, as it was traced")
plt.show()

# %% [markdown]
# Between two barriers (one pair of rows) no place is written by one thread and touched by another: that is what free of
# races means. The number of busy threads halves in each step.
#
# ### Exercise 2 (10 minutes): turn a block around
#
# Each block of 64 threads shall write its 64 numbers in reverse order: `y[0] = x[63]`, `y[1] = x[62]`, and so on within
# the first block; the second block does the same with its own 64. Go through shared memory: each thread reads `x` at
# its own place, and writes `y` at its own place.

# %%
REVERSE = """
__global__ void reverse(const float* x, float* y) {
  __shared__ float s[64];
  ...
}
extern "C" void run_reverse(const float* x, float* y, int blocks) { reverse<<<blocks, 64>>>(x, y); }
"""

# %%
check_kernel(REVERSE, "run_reverse",
             case(x[:64], empty(64), 1, want=x[:64][::-1],
                  why="thread t reads s[63 - t], which another thread has written: when may it?"),
             case(x[:192], empty(192), 3, want=x[:192].reshape(3, 64)[:, ::-1].ravel(),
                  why="shared memory is a block's own; x and y are for all: add blockIdx.x * 64"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Write `s[t]`, wait for all, read `s[63 - t]`. A value that another thread has written must be separated from the write
# by a barrier.
# </details>
# <details><summary>Solution</summary>
#
# ```python
# REVERSE = """
# __global__ void reverse(const float* x, float* y) {
#   __shared__ float s[64];
#   int t = threadIdx.x, i = blockIdx.x * 64 + t;
#   s[t] = x[i];
#   __syncthreads();
#   y[i] = s[63 - t];
# }
# extern "C" void run_reverse(const float* x, float* y, int blocks) { reverse<<<blocks, 64>>>(x, y); }
# """
# ```
# </details>

# %% [markdown]
# ## A warp needs no barrier: shuffles
#
# The lanes of a warp can read each other's registers. `__shfl_xor_sync(mask, v, d)` gives each lane the `v` of the lane
# whose number differs in the bits of `d`: with $d = 1$ neighbours exchange, with $d = 16$ the two halves of the warp.
# After the exchanges with 16, 8, 4, 2, 1, adding each time, every lane has the sum of all 32. This *butterfly* needs no
# shared memory. In a block of 4 warps only the 4 sums have to meet.
#
# A hand count for one block of 128 threads. The tree: 7 barriers; accesses to shared memory by warps: 4 at the start
# (one a warp), then in each step the warps that have work read twice and write once, and the last read. Shuffles: one
# barrier, 4 warps that write one number each, and then one warp that reads 4.

# %%
SHUFFLES = """
__global__ void shuffles(const float* x, float* sums) {
  __shared__ float s[4];
  int t = threadIdx.x;
  float v = x[blockIdx.x * 128 + t];
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffff, v, d);
  if (t % 32 == 0) s[t / 32] = v;
  __syncthreads();
  if (t == 0) sums[blockIdx.x] = s[0] + s[1] + s[2] + s[3];
}
extern "C" void run_shuffles(const float* x, float* sums, int blocks) { shuffles<<<blocks, 128>>>(x, sums); }
"""

# %%
by_hand = {"tree": (7, 4 + 3 * (2 + 1 + 1 + 1 + 1 + 1 + 1) + 1), "shuffles": (1, 4 + 4)}
counted = {}
for name, launcher in (("tree", mended.run_tree), ("shuffles", cuda(SHUFFLES).run_shuffles)):
    report = emulator.run(launcher, x[:128], sums[:1], 1)
    counted[name] = report.kernels[0].barriers, count(report, "requests", space="shared")
    print(f"{name:8} sum {sums[0]:.6f}; barriers and accesses of warps to shared memory: by hand {by_hand[name]}, "
          f"counted {counted[name]}")

# %%
fig, panels = plt.subplots(1, 2, figsize=(8, 2.4))
for ax, place, what in zip(panels, (0, 1), ("barriers", "accesses of warps to shared memory"), strict=True):
    bars = ax.barh(list(counted), [of[place] for of in counted.values()], color=[BLUE, GREEN], height=0.5)
    ax.bar_label(bars, padding=3), ax.set_xlabel(what), ax.margins(x=0.12)
fig.suptitle("The sum of 128 numbers in a block: what it takes besides the additions", x=0.02, ha="left", fontsize=10)
plt.show()

# %% [markdown]
# The sums may differ in the last digit, for the additions come in another order. (Another compiler may keep a number in
# a register where this one reads it again, and count fewer accesses.)
#
# ### Exercise 3 (10 minutes): the largest of a warp
#
# Write a kernel after which `y[i]` is the largest of the 32 numbers of the warp that `i` belongs to: *each* lane has
# it, no shared memory is used, and each number is read once. `fmaxf(a, b)` is the larger of two floats.

# %%
LARGEST = """
__global__ void largest(const float* x, float* y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  ...
}
extern "C" void run_largest(const float* x, float* y, int n) { largest<<<n / 64, 64>>>(x, y); }
"""

# %%
two = x[:128] - 10
check_kernel(LARGEST, "run_largest",
             case(np.arange(64, dtype=np.float32), empty(64), 64, want=np.repeat(np.float32([31, 63]), 32),
                  why="five exchanges, over distances 16, 8, 4, 2 and 1; each lane keeps the larger"),
             case(two, empty(128), 128, want=np.repeat(two.reshape(4, 32).max(1), 32),
                  why="all numbers may be negative, and all lanes want the result"),
             most={"bytes": 2 * 4 * 128})

# %% [markdown]
# <details><summary>Hint</summary>
#
# The loop of `shuffles` with `fmaxf` instead of `+`. Begin with `float v = x[i];` and end with `y[i] = v;`.
# </details>
# <details><summary>Solution</summary>
#
# ```python
# LARGEST = """
# __global__ void largest(const float* x, float* y) {
#   int i = blockIdx.x * blockDim.x + threadIdx.x;
#   float v = x[i];
#   for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, d));
#   y[i] = v;
# }
# extern "C" void run_largest(const float* x, float* y, int n) { largest<<<n / 64, 64>>>(x, y); }
# """
# ```
# </details>

# %% [markdown]
# ## Coalescing: a sector is the least one can buy
#
# When a warp reads, the 32 addresses are put together (*coalesced*), and each sector that one of them lies in is
# fetched, once. 32 neighbouring floats are 128 bytes: 4 sectors. How many are touched if lane $t$ reads
# `x[stride * t]`? Neighbouring lanes are $4 \cdot \text{stride}$ bytes apart:
#
# $$\text{sectors} = \min(32,\; 4 \cdot \text{stride})$$
#
# **Predict:** stride 2 wastes half of what is fetched. What share of it does stride 32 use?

# %%
STRIDE = """
__global__ void strided(const float* x, float* y, int stride) {
  y[threadIdx.x] = x[threadIdx.x * stride];
}
extern "C" void run_strided(const float* x, float* y, int stride) { strided<<<1, 32>>>(x, y, stride); }
"""
run_strided, traces = cuda(STRIDE).run_strided, {}
for stride in (1, 2, 8, 32):
    report = emulator.run(run_strided, np.zeros(1024, np.float32), np.zeros(32, np.float32), stride, trace=2)
    traces[stride] = report.trace[0]["offsets"]
    sectors = count(report, "sectors", kind="read")
    print(f"stride {stride:2}: by hand {min(32, 4 * stride):2} sectors, counted {sectors:2}; "
          f"used {128 / (32 * sectors):.1%} of the bytes fetched")

# %%
fig, panels = plt.subplots(3, 1, sharex=True, figsize=(8, 3))
for ax, stride in zip(panels, (1, 2, 32), strict=True):
    for sector in range(16):
        touched = any(offset // 32 == sector for offset in traces[stride])
        tint = "#f3ddb8" if touched else "white"
        ax.add_patch(plt.Rectangle((32 * sector, 0), 32, 1, facecolor=tint, edgecolor=GREY))
    for lane, offset in enumerate(traces[stride]):
        ax.add_patch(plt.Rectangle((offset, 0.15), 4, 0.7, facecolor=BLUE))
        if stride == 32 and offset < 512:
            ax.text(offset + 6, 0.4, f"lane {lane}", fontsize=7)
    ax.set(yticks=[], ylabel=f"stride {stride}", xlim=(0, 512), ylim=(0, 1)), ax.spines[:].set_visible(False)
panels[0].set_title("The first 512 bytes of x: sectors fetched (tinted), and what lanes use of them (blue)")
panels[-1].set(xlabel="byte of x", xticks=range(0, 513, 64))
plt.show()

# %% [markdown]
# With stride 32, the whole row of boxes is one sector in four, an eighth of each used, and it goes on like that for
# 4 KB. A stride of 32 is no exotic case: it is a thread that walks along a row of a matrix of 32 columns, while its
# neighbour walks along the next row. Hence the first rule of CUDA: *neighbouring threads, neighbouring addresses*.
#
# The sums of the rows of a matrix, 64 rows of 256 numbers, in two ways: a thread a row, and a warp a row.

# %%
ROW_SUMS = """
__global__ void thread_a_row(const float* x, float* sums, int C) {
  int r = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0;
  for (int c = 0; c < C; c++) sum += x[r * C + c];
  sums[r] = sum;
}
__global__ void warp_a_row(const float* x, float* sums, int C) {
  int lane = threadIdx.x % 32, r = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  float sum = 0;
  for (int c = lane; c < C; c += 32) sum += x[r * C + c];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffff, sum, d);
  if (lane == 0) sums[r] = sum;
}
"""

# %%
LAUNCHERS = """
extern "C" void by_threads(const float* x, float* sums, int rows, int C) {
  thread_a_row<<<rows / 64, 64>>>(x, sums, C);
}
extern "C" void by_warps(const float* x, float* sums, int rows, int C) {
  warp_a_row<<<rows / 4, 128>>>(x, sums, C);
}
"""
row_sums = cuda(ROW_SUMS + LAUNCHERS)

# %% [markdown]
# By hand. A thread a row: each read of a warp touches 32 rows, so 32 sectors; there are 2 warps that read 256 times. A
# warp a row: each read is 4 sectors; 64 warps read 256 / 32 = 8 times.

# %%
matrix, sums = rng.normal(size=(64, 256)).astype(np.float32), np.zeros(64, np.float32)
traces = {}
for name, hand in (("by_threads", 2 * 256 * 32), ("by_warps", 64 * 8 * 4)):
    report = emulator.run(getattr(row_sums, name), matrix, sums, *matrix.shape, trace=200)
    traces[name] = [access for access in report.trace if access["array"] == "x"]
    sectors = count(report, "sectors", kind="read")
    print(f"{name:10} error {np.abs(sums - matrix.sum(1)).max():.1e}; sectors by hand {hand:5}, counted {sectors:5}, "
          f"ratio {sectors / hand}")
    print(*report.advice[:1])

# %%
fig, panels = plt.subplots(1, 2, sharey=True, figsize=(8, 3.2))
for ax, (name, trace) in zip(panels, traces.items(), strict=True):
    first = [access for access in trace if access["warp"] == 0 and access["block"][0] == 0][:8]
    when = np.repeat(np.arange(len(first)), 32)
    place = np.concatenate([access["offsets"] for access in first]) // 4
    ax.scatter(place % 256, place // 256, c=when, s=7, cmap="turbo")
    ax.set(title=f"{name}: the first 8 reads of a warp", xlabel="column of x")
panels[0].set_ylabel("row of x"), panels[0].invert_yaxis()
plt.show()

# %% [markdown]
# What wastes something, the report puts into words; it does so at its end, under *What is slow*. In the picture, one
# colour is one read. On the left it is a column of single numbers, 32 sectors; on the right a stretch of 32
# neighbours, 4 sectors. The same numbers are added up by both.
#
# (A GPU has caches, and the seven reads that follow may find their numbers there. But a cache keeps lines of 128 bytes,
# and 2048 threads that each walk along a row of their own need 2048 · 128 bytes at a time: 256 KB, all that a processor
# of an H100 has for cache and shared memory together.)
#
# ## Banks: shared memory in 32 columns
#
# Shared memory has no sectors. It has 32 *banks*: the 4-byte word at place $p$ belongs to bank $p \bmod 32$, and each
# bank serves one word at a time. 32 lanes that want words of 32 different banks are served at once; if $k$ different
# words of one bank are wanted, it takes $k$ turns. (Lanes that want the *same* word share it.)
#
# The classical accident: a tile of 32 x 32 floats of which a warp reads a column. Element $(r, c)$ is at $32 r + c$,
# and its bank is $c$, whatever $r$ is. One way out is rows of 33 words, the last of them unused.
#
# A second way out costs no memory: a *swizzle*. Column $c$ of row $r$ is kept at place $c \oplus r$ of its row, where
# $\oplus$ is the exclusive or of the bits, in C `^`. For a given $c$, all 32 rows give different $c \oplus r$.
#
# **Predict:** how many turns does a warp take to read a column of the plain tile? Of one with rows of 33 words?

# %%
COLUMN = """
__global__ void column(const float* x, float* y) {
  __shared__ float s[32 * ROW];
  int t = threadIdx.x;
  for (int r = 0; r < 32; r++) s[r * ROW + (SWIZZLE)] = x[32 * r + t];
  __syncthreads();
  int r = t, c = 5;
  y[t] = s[r * ROW + (FIND)];
}
extern "C" void run_column(const float* x, float* y) { column<<<1, 32>>>(x, y); }
"""

# %%
ways = {"rows of 32": ("32", "t", "c"), "rows of 33": ("33", "t", "c"),
        "rows of 32, swizzled": ("32", "t ^ r", "c ^ r")}
tile, reads = np.arange(1024, dtype=np.float32), {}
for name, (row, write, find) in ways.items():
    code = COLUMN.replace("ROW", row).replace("SWIZZLE", write).replace("FIND", find)
    report = emulator.run(cuda(code).run_column, tile, y[:32], trace=100)
    reads[name] = next(t for t in report.trace if t["space"] == "shared" and t["kind"] == "read")["offsets"]
    print(f"{name:20} column 5 {np.array_equal(y[:32], tile[5::32])}, turns lost: writing "
          f"{count(report, 'conflicts', kind='write')}, reading {count(report, 'conflicts', kind='read')}")

# %%
fig, panels = plt.subplots(2, 3, figsize=(8, 4.6), gridspec_kw={"height_ratios": (2, 1)}, sharey="row")
r, c = np.mgrid[:32, :32]
for (top, below), (name, offsets), bank in zip(panels.T, reads.items(), (c, (33 * r + c) % 32, c ^ r), strict=True):
    picture = top.imshow(bank, cmap="twilight", vmin=0, vmax=32)
    top.add_patch(plt.Rectangle((4.5, -0.5), 1, 32, fill=False, edgecolor=RED, linewidth=1.5))
    top.set(title=name, xlabel="column")
    below.bar(range(32), np.bincount(np.array(offsets) // 4 % 32, minlength=32), color=BLUE, width=0.8)
    below.set(xlabel="bank", xlim=(-1, 32))
panels[0, 0].set_ylabel("row"), panels[1, 0].set_ylabel("words wanted at once")
fig.colorbar(picture, ax=panels[0], label="bank")
plt.show()

# %% [markdown]
# Above, which bank each element lies in, and the column that is read; below, from the trace, how many words each bank
# was asked for. In the plain tile one bank has all 32, and 31 turns are lost. Padding spends a word a row; the swizzle
# spends nothing, and is what fast kernels use.
#
# ### Exercise 4 (20 minutes): a transposition that wastes nothing
#
# `y` shall be the transpose of `x`, both square with `n` a multiple of 32. One block of 32 x 32 threads moves one tile:
# `threadIdx.x` runs along a row, `threadIdx.y` from row to row (a warp has one `threadIdx.y`), and `blockIdx.x`,
# `blockIdx.y` say which tile. Written directly, `y[column * n + row] = x[row * n + column]` has reads in 4 sectors and
# writes in 32. Go through shared memory so that *both* take 4 sectors a warp, and without bank conflicts. Where `x` has
# the tile in row `blockIdx.y` and column `blockIdx.x` of tiles, `y` has it in row `blockIdx.x` and column `blockIdx.y`.

# %%
TRANSPOSE = """
__global__ void transpose(const float* x, float* y, int n) {
  ...
}
extern "C" void run_transpose(const float* x, float* y, int n) {
  transpose<<<dim3(n / 32, n / 32), dim3(32, 32)>>>(x, y, n);
}
"""

# %%
square = rng.normal(size=(64, 64)).astype(np.float32)
check_kernel(TRANSPOSE, "run_transpose",
             case(square[:32, :32].copy(), empty(32, 32), 32, want=square[:32, :32].T,
                  why="write tile[threadIdx.y][threadIdx.x], wait, read tile[threadIdx.x][threadIdx.y]"),
             case(square, empty(64, 64), 64, want=square.T, why="where the tile goes: rows and columns of tiles swap"),
             most={"sectors": 2 * 64 * 64 * 4 // 32, "conflicts": 0})

# %% [markdown]
# <details><summary>Hint</summary>
#
# `__shared__ float tile[32][33];`. Thread $(x, y)$ reads row $y$, column $x$ of its tile of `x`, and *writes* row $y$,
# column $x$ of its tile of `y`: what stands there came in through the thread $(y, x)$.
# </details>
# <details><summary>Solution</summary>
#
# ```python
# TRANSPOSE = """
# __global__ void transpose(const float* x, float* y, int n) {
#   __shared__ float tile[32][33];
#   int row = blockIdx.y * 32 + threadIdx.y, column = blockIdx.x * 32 + threadIdx.x;
#   tile[threadIdx.y][threadIdx.x] = x[row * n + column];
#   __syncthreads();
#   row = blockIdx.x * 32 + threadIdx.y, column = blockIdx.y * 32 + threadIdx.x;
#   y[row * n + column] = tile[threadIdx.x][threadIdx.y];
# }
# extern "C" void run_transpose(const float* x, float* y, int n) {
#   transpose<<<dim3(n / 32, n / 32), dim3(32, 32)>>>(x, y, n);
# }
# """
# ```
# </details>

# %% [markdown]
# ## Atomics: right, in no particular order
#
# Barriers reach the threads of one block only; blocks run in any order, some of them after others have ended. If all
# threads of a grid shall add to one number, they can use `atomicAdd(&sum, v)`: it reads, adds and writes without anyone
# coming between. No race, then. But floating-point addition rounds, and $(a + b) + c$ is not always $a + (b + c)$.
#
# **Predict:** the same 4096 numbers, added up by `atomicAdd` in ten different orders of blocks. How many different
# sums?

# %%
ATOMIC = """
__global__ void add_all(const float* x, float* sum) {
  atomicAdd(sum, x[blockIdx.x * blockDim.x + threadIdx.x]);
}
extern "C" void run_atomic(const float* x, float* sum, int n) { add_all<<<n / 32, 32>>>(x, sum); }
"""
run_atomic, many = cuda(ATOMIC).run_atomic, rng.normal(size=4096).astype(np.float32)
exact, by_atomics, by_parts = many.sum(dtype=np.float64), [], []
for seed in range(10):
    total, parts = np.zeros(1, np.float32), np.zeros(32, np.float32)
    emulator.run(run_atomic, many, total, 4096, blocks="shuffled", seed=seed)
    emulator.run(mended.run_tree, many, parts, 32, blocks="shuffled", seed=seed)
    by_atomics.append(total[0] - exact), by_parts.append(parts.cumsum()[-1] - exact)
print(f"different sums: {len(set(by_atomics))} by atomics, {len(set(by_parts))} by a sum a block, added up in order")

# %%
fig, ax = plt.subplots(figsize=(8, 2.4))
ax.plot(by_atomics, "o", color=RED, label="atomicAdd"), ax.plot(by_parts, "s", color=GREEN, label="a sum a block")
ax.axhline(0, color=GREY, linewidth=0.8)
ax.set(xlabel="order of the blocks (seed)", ylabel="error of the sum", xticks=range(10)), ax.margins(y=0.2)
ax.legend(loc="upper left", bbox_to_anchor=(1, 1)), ax.set_title("One sum of 4096 floats, ten runs")
plt.show()

# %% [markdown]
# Each is a correct rounding of a correct algorithm, and a training run that uses atomics cannot be repeated bit by bit.
# Where each block writes a sum of its own, and these are added up in a fixed order, it can. minigpt's default kernels
# all do that; and 4096 atomic additions to one address would queue up besides.
#
# ## What a GPU would add: how many threads are at hand
#
# Here the emulator ends and arithmetic goes on. Memory is far: from asking to having takes of the order of half a
# microsecond. A processor of a GPU (a *streaming multiprocessor*, SM) does not wait; it goes on with another warp. So
# what counts is how many bytes are asked for at any moment (*Little's law*): bandwidth times waiting time.

# %%
bandwidth, wait, SMs, threads = 3.35e12, 0.5e-6, 132, 2048              # H100 SXM; the wait is an order of magnitude
in_flight = bandwidth * wait
print(f"bytes under way to keep the memory busy: {in_flight / 1e6:.1f} MB")
print(f"that is {in_flight / SMs / 1e3:.0f} KB an SM, {in_flight / SMs / threads:.1f} bytes for each of 2048 threads")

# %% [markdown]
# One float a thread is not enough even if all 2048 places are taken, and this is why kernels read 16 bytes at a time,
# and several of these before they need the first. Are the places taken? An SM has room for 2048 threads and 32 blocks,
# 65,536 registers and 228 KB of shared memory, of which a block takes 1 KB for itself. The scarcest decides. The share
# of the 2048 places that are taken is called the *occupancy*.

# %%
def occupancy(threads, registers, shared_bytes):
    """The blocks that fit on an SM of an H100, and the share of its places for threads that they take."""
    registers = -(-registers // 8) * 8                                                # they are given out in eights
    blocks = min(32, 2048 // threads, 65536 // (registers * threads), 228 * 1024 // (shared_bytes + 1024))
    return blocks, blocks * threads / 2048


registers = np.arange(16, 256)
for shared, colour in ((0, BLUE), (16 * 1024, ORANGE), (54 * 1024, RED)):
    plt.plot(registers, [100 * occupancy(128, r, shared)[1] for r in registers], color=colour,
             label=f"{shared // 1024} KB of shared memory")
plt.xlabel("registers a thread"), plt.ylabel("occupancy (%)"), plt.ylim(0, 105), plt.legend()
plt.title("Blocks of 128 threads on an H100")
print("attention's tiled kernel, 128 threads, 168 registers, 54 KB:", occupancy(128, 168, 54 * 1024))
plt.show()

# %% [markdown]
# Steps, since only whole blocks fit. A kernel with few threads at hand is not lost: those may have more work under way
# each. How many registers a thread takes is the compiler's decision: `nvcc -Xptxas -v` prints it, and the headers in
# `csrc/cuda` say it. The emulator cannot.
#
# ## The roofline
#
# A GPU can be limited by bytes or by FLOPs. A kernel that does $I$ FLOPs for each byte it moves (its *arithmetic
# intensity*) reaches at most
#
# $$\min(\text{peak},\; I \cdot \text{bandwidth}) \quad\text{FLOPs a second.}$$
#
# The numbers of three GPUs, from NVIDIA's data sheets ([H100](https://www.nvidia.com/en-us/data-center/h100/) SXM,
# [A100](https://www.nvidia.com/en-us/data-center/a100/) SXM with 80 GB,
# [T4](https://www.nvidia.com/en-us/data-center/tesla-t4/)); tensor cores in 16 bits, dense matrices. Below which
# intensity does the memory set the speed?

# %%
GPUS = {"H100": (3.35e12, 67e12, 989e12), "A100": (2.04e12, 19.5e12, 312e12), "T4": (0.32e12, 8.1e12, 65e12)}
for name, (bandwidth, float32, tensor) in GPUS.items():
    print(f"{name}: memory is the limit below {float32 / bandwidth:4.1f} FLOPs a byte in float32, "
          f"{tensor / bandwidth:5.1f} on tensor cores")

# %% [markdown]
# Now our kernels, first by hand. `add`: one FLOP and 12 bytes a number. The row sums: one FLOP a number; by warps also
# five in each of the 32 lanes for the butterfly; the bytes we have counted above. A product of two 4096 x 4096 matrices
# that reads and writes each of them once: $2 \cdot 4096^3$ FLOPs for $3 \cdot 4 \cdot 4096^2$ bytes.

# %%
intensity = {"matrix product": 2 * 4096**3 / (3 * 4 * 4096**2)}
runs = {"add": (kernels.run_add, (x, y, z, 1000), 1000),
        "row sums by threads": (row_sums.by_threads, (matrix, sums, 64, 256), 64 * 256),
        "row sums by warps": (row_sums.by_warps, (matrix, sums, 64, 256), 64 * (256 + 5 * 32))}
for name, (launcher, arguments, flops) in runs.items():
    report = emulator.run(launcher, *arguments)
    intensity[name] = flops / (32 * count(report, "sectors", space="global"))
    print(f"{name:20} FLOPs by hand {flops:5}, counted {report.kernels[0].flops:5}; "
          f"{intensity[name]:.3f} FLOPs a byte moved")

# %%
at = np.logspace(-3, 4, 200)
for (name, (bandwidth, float32, tensor)), colour in zip(GPUS.items(), (BLUE, GREEN, ORANGE), strict=True):
    plt.loglog(at, np.minimum(float32, at * bandwidth) / 1e12, color=colour, label=f"{name}, float32")
    plt.loglog(at, np.minimum(tensor, at * bandwidth) / 1e12, "--", color=colour, linewidth=1)
for name, value in intensity.items():
    roof = min(67e12, value * 3.35e12) / 1e12
    plt.plot(value, roof, "o", color=RED)
    beside, side = ((-7, 4), "right") if value < 10 else ((7, 4), "left")          # not on a tensor core's line
    plt.annotate(name, (value, roof), xytext=beside, textcoords="offset points", ha=side, fontsize=8)
plt.xlabel("FLOPs a byte"), plt.ylabel("at most, TFLOP/s"), plt.legend(loc="upper left")
plt.title("Rooflines (dashed: tensor cores), and where our kernels stand on that of an H100"), plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# `add`, and most of what a GPT does beside its matrix products, is far to the left: there only fewer bytes help. A
# wasted sector moves a kernel to the left, down along the roof.
#
# ## The real lines
#
# `csrc/cuda` holds all of minigpt's kernels, as plain `.cu` files. The butterfly is that of `shuffles`:

# %%
source("csrc/cuda/reduce.cuh", "// Butterfly", "}")

# %% [markdown]
# And a whole one: `gelu`, a function that is applied to each number alone, one pack of 16 bytes a thread. `by_dtype`
# chooses between float32 and the 16-bit types; index and guard are those of the first cell.

# %%
source("csrc/cuda/gelu/gelu.cu", "template <class T, int N>", "}\n")

# %% [markdown]
# The operations of minigpt exist on each *backend* under the same names; `"emulated"` is these files under the
# emulator. Each number is read and written once: 8 bytes. By hand, sectors for 4000 numbers: 4000 · 8 / 32 = 1000.

# %%
given = rng.normal(size=(10, 400)).astype(np.float32)
with emulator.watch() as report:
    got = ops.load("emulated").gelu_forward(given)
want = ops.load("numpy").gelu_forward(given)
print(f"largest difference from NumPy {np.abs(got - want).max():.1e}; sectors {count(report, 'sectors')}")
print(report)

# %% [markdown]
# ## What a GPU would change
#
# Nothing in the source: the files above compile with `nvcc` as they are. Python would hand over arrays in the GPU's
# memory, and `ops.load("cuda")` takes the place of `ops.load("emulated")`. The launch comes back before the kernel is
# done, and errors show up later, or never.
#
# What the emulator cannot tell you, and only a GPU can: how long a kernel takes; how many registers it needs, and
# whether it spills them; what the caches catch; whether a kernel relies on an order in which writes of one thread
# become visible to another without a fence. And its lanes run one after the other, so what happens within a diverged
# warp is the emulator's choice. What it finds and does not find is listed in [its README](../csrc/emulator/README.md).
#
# ## Summary
#
# - A kernel is what one thread does; $i = \text{blockIdx} \cdot \text{blockDim} + \text{threadIdx}$, and a guard,
#   because grids have whole blocks.
# - 32 threads are a warp and share an instruction: a branch that splits a warp is walked twice.
# - Threads of a block meet in shared memory, with a barrier between what one writes and another reads; without one
#   there is a race, even if the result was right. Within a warp five shuffles make a sum, without barriers.
# - Global memory moves in sectors of 32 bytes: a warp's 32 floats are 4 sectors if they are neighbours, 32 if they lie
#   in 32 rows. Shared memory has 32 banks: a column of a 32 x 32 tile takes 32 turns, with padding or a swizzle one.
# - Atomic additions are correct and come in any order: the same numbers give several sums.
# - Below 20 FLOPs a byte, an H100's memory sets the speed in float32: `add` has a twelfth of one.
#
# Next: [layernorm and FlashAttention in CUDA](10_cuda_kernels.ipynb), from the simplest kernel to the tensor cores.
#
# ## Papers
#
# - NVIDIA, *CUDA C++ Programming Guide*: <https://docs.nvidia.com/cuda/cuda-c-programming-guide/>
# - J. Nickolls, I. Buck, M. Garland, K. Skadron, *Scalable Parallel Programming with CUDA*, ACM Queue 6(2), 2008.
# - S. Williams, A. Waterman, D. Patterson, *Roofline: An Insightful Visual Performance Model for Multicore
#   Architectures*, Communications of the ACM 52(4), 2009.
# - V. Volkov, *Understanding Latency Hiding on GPUs*, PhD thesis, UC Berkeley, 2016.
# - Z. Jia, M. Maggioni, B. Staiger, D. Scarpazza, *Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking*,
#   2018, [arXiv:1804.06826](https://arxiv.org/abs/1804.06826).
