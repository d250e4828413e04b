# %% [markdown]
# # 11. Scale
#
# **You will be able to** say what 16-bit numbers lose and train with them all the same; spread a training over
# processes, by hand and with this project's engine, and prove that nothing changed; read how a mixture of experts
# routes its tokens; plan a training of a trillion parameters by arithmetic, and know where such a plan is wrong.
#
# **Needs:** a laptop; PyTorch (`pip install torch`), the only tutorial that uses it.  **Before:**
# [3](03_gpt_forward.ipynb), [4](04_backpropagation.ipynb), [5](05_training.ipynb)  **Time:** about 90 minutes

# %%
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from lesson import BLUE, GREEN, GREY, ORANGE, RED, case, check, here, source

# %%
from minigpt import GPT, ModelConfig, Tokenizer, TrainingArguments
from minigpt.ops import numpy_ops
from minigpt.scale.planner import chinchilla, hardware, memory, published, report, step
from minigpt.scale.planner.plan import make_plan
from minigpt.scale.planner.search import search
from minigpt.train.engine import OpsEngine

# %% [markdown]
# What the small models below learn: Shakespeare, letter by letter.

# %%
text = here("data/shakespeare.txt").read_text(encoding="utf-8")
letters = sorted(set(text))
ids = np.array([letters.index(letter) for letter in text[:200_000]])
SMALL = ModelConfig(vocab_size=len(letters), block_size=64, n_layer=2, n_head=4, n_embd=64)
starts = np.random.default_rng(0).integers(0, len(ids) - 65, (40, 16))
BATCHES = ids[starts[..., None] + np.arange(65)]                       # (40 steps, 16 texts, 65 letters)

# %% [markdown]
# Part 1 and the processes of Part 2 need PyTorch. Where there is none, the next cell says so and a run of all cells
# ends there; exercises 3 and 4, the ring, and Parts 3 and 4 can still be run cell by cell.

# %%
try:
    import torch

    from minigpt.scale import TorchGPT
    from minigpt.scale.engine import TorchEngine
except ImportError as error:
    sys.exit(f"this tutorial goes on with PyTorch, and there is none ({error}): pip install torch")

# %% [markdown]
# # Part 1: sixteen bits
#
# ## Three kinds of numbers
#
# A floating-point number has a sign, an exponent (where the number is: which power of two) and a mantissa (how exact it
# is there). Halving the bits halves the bytes that travel, and a GPU's matrix units are about 16 times as fast with
# 16-bit inputs as its ordinary units with 32. There are two ways to spend 16 bits:
#
# | | exponent | mantissa | gap between 1 and the next number |
# |---|---|---|---|
# | float32 | 8 bits | 23 bits | $2^{-23}$ |
# | float16 | 5 bits | 10 bits | $2^{-10} \approx 0.001$ |
# | bfloat16 | 8 bits | 7 bits | $2^{-7} \approx 0.008$ |
#
# Count: between 1 and 1 + 1/32 there are $2^{23-5} = 262144$ gaps in float32, $2^5 = 32$ in float16 and $2^2 = 4$ in
# bfloat16. So float16 is fine but short, bfloat16 coarse but as long as float32:

# %%
formats = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
figure, (left, right) = plt.subplots(1, 2)
for y, (name, dtype) in enumerate(formats.items()):
    info, colour = torch.finfo(dtype), [GREY, BLUE, RED][y]
    low, high = np.log2(info.smallest_normal), np.log2(info.max)
    left.barh(y, high - low, left=low, color=colour, height=0.5)
    left.barh(y, np.log2(info.eps), left=low, color=colour, height=0.5, alpha=0.3)        # ever fewer bits there
    steps = np.arange(1, 1 + 1 / 32 + 1e-9, max(info.eps, 2.0**-17))                  # of float32 every 64th
    right.eventplot([steps], lineoffsets=y, linelengths=0.5, colors=colour, lw=1)
    smallest, with_all_bits = info.smallest_normal * info.eps, info.smallest_normal
    print(f"{name:8}: {smallest:.2g} (with all bits {with_all_bits:.2g}) to {info.max:.3g}")
left.set(title="range; pale: with fewer and fewer bits", xlabel="power of two", yticks=range(3))
left.set_yticklabels(formats)
right.set(title="the numbers from 1 to 1 + 1/32", yticks=[], xlabel="value")
plt.show()

# %% [markdown]
# ### Exercise 1 (10 minutes): make a bfloat16
#
# A bfloat16 is the upper half of a float32's bits. Write the rounding to the *nearest*, and of two equally near ones to
# the one whose last bit is 0. `x.view(np.uint32)` gives the bits as integers, `.view(np.float32)` brings them back.

# %%
def to_bfloat16(x):
    """x (n,) float32 -> the nearest bfloat16 of each, as float32 whose lower 16 bits are 0."""
    ...

# %%
def by_torch(x):
    return torch.from_numpy(x).bfloat16().float().numpy()


some = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1e30, 0], np.float32)
check(to_bfloat16, case(some, want=by_torch(some), why="to the nearest: cutting bits off always goes towards 0"),
      case(ties, want=by_torch(ties), why="half way between two: to the one whose last bit (bit 16) is 0"), tolerance=0)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Adding 0x7FFF to the bits before cutting rounds up all that is more than half way; adding 1 more does so for a tie
# too. Add that 1 just where bit 16 is 1.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def to_bfloat16(x):
#     bits = x.view(np.uint32)
#     odd = (bits >> 16) & 1
#     return ((bits + 0x7FFF + odd) & 0xFFFF0000).view(np.float32)
# ```
#
# </details>

# %% [markdown]
# ## A sum that stands still
#
# **Predict:** 5000 times 1 is added to a running sum that is kept in bfloat16. What does it end at? And in float16?

# %%
figure, panel = plt.subplots(figsize=(6, 3))
for name, dtype in formats.items():
    total, one, sums = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype), []
    for _ in range(5000):
        total = total + one
        sums.append(float(total))
    panel.plot(sums, label=f"{name}: {sums[-1]:.0f}", color={"float32": GREY, "float16": BLUE}.get(name, RED))
panel.set(title="1 + 1 + 1 + ...", xlabel="ones added", ylabel="running sum")
panel.legend(frameon=False)
plt.show()

# %% [markdown]
# With 7 bits of mantissa the gap is 2 from 256 on: 256 + 1 lies half way to 258 and is rounded back to 256, for ever.
# In float16 the same happens at $2^{11} = 2048$. Hence the first rule: **sums are kept in 32 bits** (matrix units
# multiply 16-bit numbers and add in 32; so do softmax, norms and the loss here).
#
# ## An update that is lost
#
# The same happens to weights. A step of the optimiser changes a weight by about the learning rate.
#
# **Predict:** a weight is 1, and is made smaller by 0.001 a thousand times. In bfloat16, where is it after that?

# %%
plain, master = torch.ones((), dtype=torch.bfloat16), torch.ones(())
for _ in range(1000):
    plain -= 0.001
    master -= 0.001                                      # in float32 ...
print(f"kept in bfloat16: {plain:.4f};  kept in float32: {master:.4f}, used as bfloat16: {master.bfloat16():.4f}")
print(f"below 1 the gap of bfloat16 is {2.0**-8:.5f}: a change of less than half of it, {2.0**-9:.5f}, is none")

# %% [markdown]
# Hence the second rule: **the optimiser moves a master copy in float32**; a 16-bit copy of it is what matrix products
# see. Three trainings of one small GPT: all in float32; *mixed* (weights in float32, matrix products in bfloat16, by
# `torch.autocast`); and all in bfloat16, weights too.

# %%
def train(engine, batches, lr=1e-3):
    """-> the loss of every step. An engine is a model with its optimiser."""
    engine.begin()
    losses = []
    for number, tokens in enumerate(batches, 1):
        loss, norm = engine.gradients([(tokens[:, :-1], tokens[:, 1:])])
        engine.step(number, lr, 1.0)
        losses.append(loss)
    return losses

# %%
def twin(**changes):
    """The model as a torch module, from the same random weights each time, in an engine that trains it."""
    return TorchEngine(TorchGPT(SMALL), TrainingArguments(learning_rate=1e-3, **changes))


def train_all_in_bfloat16(batches, lr=1e-3):
    model, losses = TorchGPT(SMALL, kernels="torch").bfloat16(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    for tokens in torch.from_numpy(batches):
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses

# %%
full, mixed = twin(), twin(bf16=True)
curves = {"float32": train(full, BATCHES), "mixed, bfloat16": train(mixed, BATCHES)}
coarse, curves["all in bfloat16"] = train_all_in_bfloat16(BATCHES)
figure, (left, right) = plt.subplots(1, 2)
for (name, losses), colour in zip(curves.items(), (GREY, BLUE, RED), strict=True):
    left.plot(losses, label=name, color=colour, lw=4 if name == "float32" else 1.5)
left.set(title="loss", xlabel="step", ylabel="nats per letter")
left.legend(frameon=False)
for model, colour in ((full.model, GREY), (mixed.model, BLUE), (coarse, RED)):
    right.plot(model.h[0].norm1.weight.detach().float(), ".", color=colour)
right.set(title="the 64 weights of the first norm; all began at 1", xlabel="weight", ylabel="value")
plt.show()
print("all in bfloat16, these weights moved:", int((coarse.h[0].norm1.weight != 1).sum()), "of 64")

# %% [markdown]
# Mixed lies on float32. In all-bfloat16 the small weights still move (their gaps are small too), but what began at 1
# stays at 1: whole parts of the model do not learn, and the loss of a run as short as this does not tell.
#
# ## Gradients too small for float16
#
# bfloat16 has the range of float32. float16 ends at 6e-8 below: less than half of that becomes 0. Are gradients that
# small? Those of the trained GPT in `checkpoint/`, on 8 texts of 128 tokens:
#
# **Predict:** which share of the gradients becomes 0, of the weights' and of the logits': none, a few in a hundred, or
# more than half?

# %%
tokenizer = Tokenizer.from_pretrained(here("checkpoint"))
tokens = np.array(tokenizer.encode(text[-20_000:])[:8 * 129]).reshape(8, 129)
model = TorchGPT.from_pretrained(here("checkpoint"))
logits = model(tokens[:, :-1])                                                          # (8, 128, 1024)
logits.retain_grad()
targets = torch.from_numpy(tokens[:, 1:])
torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
gradients = {"weights": torch.cat([p.grad.flatten() for p in model.parameters()]),
             "logits": logits.grad.flatten()}
for name, g in gradients.items():
    print(f"of the {name:7}: {int((g.half() == 0).sum()) / len(g):5.1%} become 0 in float16, "
          f"{int(((2**16 * g).half() == 0).sum()) / len(g):5.1%} if they are multiplied by 65536 first")

# %%
figure, panels = plt.subplots(1, 2, sharex=True)
for panel, (name, g) in zip(panels, gradients.items(), strict=True):
    size = torch.log2(g[g != 0].abs()).numpy()
    panel.hist(size, bins=60, range=(-50, 16), color=GREY, label="as they are")
    panel.hist(size + 16, bins=60, range=(-50, 16), color=BLUE, alpha=0.6, label="times 65536")
    panel.axvspan(-50, -25, color=RED, alpha=0.15, label="0 in float16")
    panel.axvspan(-25, -14, color=ORANGE, alpha=0.15, label="with fewer bits")
    panel.axvline(16, color=RED, lw=2)                                                # above: infinity
    panel.set(title=f"gradients of the {name}", xlabel="power of two", yticks=[])
panels[0].legend(frameon=False, fontsize=8, loc="upper left")
plt.show()

# %% [markdown]
# The loss is a mean over 1024 tokens and a logit one of 1024, so many of its gradients are near $2^{-10} \cdot
# 2^{-10}$ or far below. The remedy is **loss scaling**: multiply the loss by a large power of two, and by the chain
# rule every gradient is multiplied by it; divide before the optimiser's step, in float32. How large? As large as
# possible: double it after 2000 steps without trouble; where a gradient overflows to infinity, throw the step away
# and halve it.
#
# ### Exercise 2 (5 minutes): the scale's rule
#
# Write what becomes of the scale, and of the number of good steps since it changed, after the gradients were looked at.

# %%
def next_scale(scale, good_steps, overflowed):
    """-> (scale, good_steps) after gradients that overflowed (True) or did not (False)."""
    ...

# %%
check(next_scale, case(65536.0, 7, False, want=(65536.0, 8), why="an ordinary step is counted"),
      case(65536.0, 7, True, want=(32768.0, 0), why="an overflow halves the scale, and counting begins anew"),
      case(65536.0, 1999, False, want=(131072.0, 0), why="the 2000th good step doubles it; counting begins anew"),
      case(4.0, 1999, True, want=(2.0, 0), why="an overflow is never a good step"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Three cases: overflowed; the 2000th good step in a row; any other good step.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def next_scale(scale, good_steps, overflowed):
#     if overflowed:
#         return scale / 2, 0
#     if good_steps + 1 == 2000:
#         return scale * 2, 0
#     return scale, good_steps + 1
# ```
#
# </details>

# %%
source("minigpt/scale/precision.py", "def overflowed(self):", "self.value, self.good_steps = min(")

# %% [markdown]
# The real one has a floor, where it gives up, and a ceiling; and the overflowed batch is computed again, not skipped.
#
# ## The twin
#
# All of this ran on `TorchGPT`: the GPT of [3](03_gpt_forward.ipynb) as a torch module, with torch's
# automatic gradients in the place of ours. Two implementations that share only the weights, and the same numbers:

# %%
ours, torchs = GPT.from_pretrained(here("checkpoint")), TorchGPT.from_pretrained(here("checkpoint"))
loss = torchs(tokens[:, :-1], tokens[:, 1:])
loss.backward()
ours.zero_grad()
print(f"loss of ours {ours.forward(tokens[:, :-1], tokens[:, 1:]):.7f}, of the twin {loss.item():.7f}")
ours.backward()
worst = max(np.abs(p.grad.numpy() - ours.grads[name]).max() for name, p in torchs.named_parameters())
print(f"largest difference between {len(ours.grads)} gradients, by hand and by autograd: {worst:.1e}")

# %% [markdown]
# # Part 2: many processes
#
# ## Two halves of a batch
#
# A batch of 8 texts, two processes. Each has the whole model and 4 of the texts. The loss is a mean over texts of equal
# length, so the gradient of all 8 is the mean of the two gradients: if every process *averages* its gradient with the
# other's before the step, both make the step of the whole batch, and remain equal. That is data parallelism (DDP).
#
# No GPU is needed to try that, two processes are enough. `torchrun` starts a program N times and tells each copy, a
# *rank*, by environment variables who it is and where to meet the others. Four of them are enough, set by hand:

# %%
def outcome(copies):
    """Waits until all have ended well, or one has not: then the others would wait for it. -> what they printed"""
    try:
        while None in (codes := [copy.poll() for copy in copies]) and not any(codes):
            time.sleep(0.05)
    finally:                                                            # also where you interrupt: none is left
        for copy in copies:
            copy.kill()
        said = [copy.communicate() for copy in copies]
    if any(codes):
        raise ChildProcessError("".join(errors[-500:] for _, errors in said))
    return "".join(out for out, _ in said)

# %%
def launch(program, *arguments, ranks=2):
    """Runs a program `ranks` times at once, as torchrun does. -> what the copies print."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])                                  # one that is free
    common = dict(os.environ, WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", program, *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return outcome([subprocess.Popen(command, env=dict(common, RANK=str(rank)), **pipes) for rank in range(ranks)])

# %%
HALVES = """
import os, sys, numpy, torch, torch.distributed as dist
from minigpt.scale import TorchGPT
dist.init_process_group("gloo")                       # meets the others; on GPUs it would be "nccl"
rank, ranks = dist.get_rank(), dist.get_world_size()  # who am I, and how many are we
model = TorchGPT.from_pretrained(sys.argv[1])         # every rank has the whole model ...
tokens = torch.from_numpy(numpy.load(sys.argv[2])).chunk(ranks)[rank]        # ... and its share of the texts
(loss := model(tokens[:, :-1], tokens[:, 1:])).backward()
for p in model.parameters():
    dist.all_reduce(p.grad)                           # becomes the sum over all ranks, on all of them
    p.grad /= ranks
print(f"rank {rank} of {ranks} is process {os.getpid()}: {len(tokens)} texts, loss {loss.item():.4f}")
numpy.savez(f"{sys.argv[3]}/{rank}.npz", **{name: p.grad.numpy() for name, p in model.named_parameters()})
dist.destroy_process_group()
"""

# %% [markdown]
# **Predict:** the two losses will differ. Will the two averaged gradients? And how far is each from the gradient of the
# whole batch?

# %%
with tempfile.TemporaryDirectory() as folder:
    np.save(f"{folder}/tokens.npy", tokens)
    print(launch(HALVES, here("checkpoint"), f"{folder}/tokens.npy", folder), end="")
    averaged = [dict(np.load(f"{folder}/{rank}.npz")) for rank in range(2)]
same = all(np.array_equal(averaged[0][name], averaged[1][name]) for name in averaged[0])
print("the two ranks' gradients are equal:", same)
worst = max(np.abs(p.grad.numpy() - averaged[0][name]).max() for name, p in torchs.named_parameters())
largest = max(float(p.grad.abs().max()) for p in torchs.parameters())
print(f"largest difference from the whole batch's gradient: {worst:.1e}, of numbers up to {largest:.1f}")

# %% [markdown]
# Equal bit by bit to each other, as both added the same two numbers, and to the whole batch up to rounding. (With texts
# of different lengths the mean of means is wrong; this project's engine adds up sums and divides by the number of all
# targets.)
#
# ## All-reduce, by hand
#
# How do N processes add up N arrays of S bytes, so that all have the sum? If all send to one and that one sends the sum
# back to all, it receives and sends $(N - 1) S$ bytes: the more ranks, the longer everybody waits for it. The **ring**
# spreads that evenly. Every array is cut into N chunks, and everybody only ever sends to the right neighbour:
#
# 1. *reduce-scatter*, N - 1 steps: in step s rank r sends chunk r - s (counted modulo N); the neighbour adds it to its
#    own. A chunk travels once around and collects all summands; at the end rank r has the whole sum of chunk r + 1.
# 2. *all-gather*, N - 1 steps: the finished chunks travel round once more and are copied.
#
# Count: $2 (N - 1)$ steps of $S / N$ bytes: every rank sends $2 \frac{N - 1}{N} S$ bytes, never more than $2 S$.
#
# ### Exercise 3 (10 minutes): the way of the finished chunks
#
# Say for the second half which chunk each rank sends in each step. It must be one that is finished, and one that the
# right neighbour does not have yet.

# %%
def all_gather_plan(N):
    """-> (N - 1, N) integers: in step s, rank r sends chunk plan[s, r] to rank r + 1 (modulo N)."""
    ...

# %%
def gathered(N):
    sends, has = np.zeros((N - 1, N), int), (np.arange(N) + 1) % N       # what each rank got last
    for s in range(N - 1):
        sends[s], has = has, np.roll(has, 1)
    return sends


why = "rank r begins with the finished chunk r + 1; after that it sends on what it received last"
check(all_gather_plan, *(case(N, want=gathered(N), why=why) for N in (2, 3, 4, 7)))

# %% [markdown]
# <details><summary>Hint</summary>
#
# In step 0 rank r sends chunk r + 1. In step s it sends what its left neighbour sent in step s - 1.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def all_gather_plan(N):
#     s, r = np.ogrid[:N - 1, :N]
#     return (r + 1 - s) % N
# ```
#
# </details>

# %%
def ring_all_reduce(arrays):
    """arrays (N, N, n): of each rank its N chunks. -> the same after the ring; after each step, how many ranks'
    numbers are in each chunk; and how many numbers each rank sent."""
    N, held = len(arrays), arrays.copy()
    summands, history, sent = np.ones((N, N), int), [np.ones((N, N), int)], 0
    for s in range(2 * (N - 1)):
        r = np.arange(N)
        chunk = (r - s) % N if s < N - 1 else (r + 1 - (s - (N - 1))) % N
        message, count = held[r, chunk].copy(), summands[r, chunk].copy()        # all send at the same time
        to, keep = (r + 1) % N, 1 if s < N - 1 else 0                            # add, or replace
        held[to, chunk] = keep * held[to, chunk] + message
        summands[to, chunk] = keep * summands[to, chunk] + count
        history.append(summands.copy())
        sent += message[0].size
    return held, history, sent

# %%
arrays = np.random.default_rng(0).standard_normal((4, 4, 1000))
held, history, sent = ring_all_reduce(arrays)
print("largest difference from the sum:", np.abs(held - arrays.sum(axis=0)).max())
figure, panels = plt.subplots(1, len(history), figsize=(9, 1.9), sharey=True)
for s, (panel, summands) in enumerate(zip(panels, history, strict=True)):
    panel.imshow(summands, vmin=0, vmax=4)
    for rank, chunk in np.ndindex(4, 4):
        panel.text(chunk, rank, summands[rank, chunk], ha="center", va="center", fontsize=8,
                   color="black" if summands[rank, chunk] > 2 else "white")
    panel.set(title="start" if s == 0 else f"add {s}" if s < 4 else f"copy {s - 3}", xlabel="chunk")
panels[0].set(ylabel="rank", yticks=range(4))
plt.show()

# %% [markdown]
# The number in a field says how many ranks' numbers are in it.
#
# **Predict:** how much more does each rank send with 512 ranks than with 8?

# %%
for N in (2, 4, 8, 64):
    _, _, sent = ring_all_reduce(np.zeros((N, N, 16)))
    print(f"{N:3} ranks: each sends {sent / (N * 16):.3f} arrays, counted {2 * (N - 1) / N:.3f}; "
          f"by one in the middle: {N - 1} arrays")
print(f"512 ranks: counted {2 * 511 / 512:.3f}")

# %% [markdown]
# ## FSDP: nobody has everything
#
# DDP needs the whole model on every rank. Count the bytes of a parameter while training with Adam, in float32: 4 for
# the weight, 4 for its gradient, 8 for the two moments of Adam: **16 bytes a parameter**. (Mixed precision: 2 + 2 +
# 12, with a float32 master copy: 16 again.) On a GPU with 80 GB that ends at 5 billion parameters, before any
# activation.
#
# But each rank needs the whole of a layer only while it computes that layer. *Fully sharded data parallelism* keeps
# 1/N of everything on each rank; just before a layer is computed, forward and again backward, its weights are gathered
# from all (all-gather), and dropped after it; gradients are added up so that each rank gets its part of the sum
# (reduce-scatter). These are three halves of the ring where DDP sends two: half as much again. ZeRO names the stages:
#
# | stage | shared out among the N ranks |
# |---|---|
# | 0 (DDP) | nothing |
# | 1 | the optimiser's states |
# | 2 | and the gradients |
# | 3 (FSDP) | and the weights |
#
# ### Exercise 4 (10 minutes): bytes on a rank
#
# Mixed precision: 2 bytes a weight, 2 a gradient, 12 for the optimiser. How many bytes does a rank hold at each stage?

# %%
def bytes_on_a_rank(parameters, stage, N):
    """-> bytes (float) that each of N ranks holds, for weights, gradients and optimiser."""
    ...

# %%
def by_the_planner(parameters, stage, N):
    return float(sum(memory.state_bytes(parameters, hardware.ZERO_PAPER, stage, N).values()))


check(bytes_on_a_rank, *(case(7.5e9, stage, 64, want=by_the_planner(7.5e9, stage, 64),
                              why="stage 0 shares nothing, each next one what those before it do, too")
                         for stage in range(4)),
      case(7.5e9, 3, 1, want=16 * 7.5e9, why="one rank has everything"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Weights are divided by N at stage 3, gradients from stage 2 on, the optimiser's states from stage 1 on.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def bytes_on_a_rank(parameters, stage, N):
#     weights = 2 / (N if stage >= 3 else 1)
#     gradients = 2 / (N if stage >= 2 else 1)
#     optimizer = 12 / (N if stage >= 1 else 1)
#     return parameters * (weights + gradients + optimizer)
# ```
#
# </details>

# %% [markdown]
# Now with real processes and this project's engine, which puts DDP and FSDP around the twin. Each rank counts the bytes
# of the tensors that it holds, after every step.

# %%
ENGINES = """
import json, sys, numpy as np
from minigpt import ModelConfig, TrainingArguments
from minigpt.scale import TorchGPT
from minigpt.scale.parallel import ParallelEngine
config, batches = ModelConfig(**json.loads(sys.argv[1])), np.load(sys.argv[2])
for layout in "ddp", "fsdp":
    engine = ParallelEngine(TorchGPT(config), TrainingArguments(learning_rate=1e-3, parallel=layout))
    engine.begin()
    ranks, losses = engine.ranks, []
    for number, tokens in enumerate(np.split(batches, 2, axis=1)[ranks.data_rank], 1):     # half of each batch
        loss, norm = engine.gradients([(tokens[:, :-1], tokens[:, 1:])])
        engine.step(number, 1e-3, 1.0)
        losses.append(loss)
"""

# %%
REPORT = """
    def held(tensors):
        return sum((t.to_local() if hasattr(t, "to_local") else t).nbytes for t in tensors)
    states = [t for state in engine.optimizer.state.values() for t in state.values() if t.ndim]
    parameters = list(engine.model.parameters())
    print(json.dumps({"layout": layout, "rank": ranks.rank, "losses": losses, "weights": held(parameters),
                      "gradients": held(p.grad for p in parameters), "optimizer": held(states)}), flush=True)
ranks.close()
"""

# %%
N, STEPS = SMALL.num_parameters(), 20
with tempfile.TemporaryDirectory() as folder:
    np.save(f"{folder}/batches.npy", BATCHES[:STEPS])
    said = launch(ENGINES + REPORT, json.dumps(asdict(SMALL)), f"{folder}/batches.npy")
runs = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
for run in runs:
    total = run["weights"] + run["gradients"] + run["optimizer"]
    print(f"{run['layout']:4} rank {run['rank']}: weights {run['weights']:8,} gradients {run['gradients']:8,} "
          f"optimizer {run['optimizer']:8,} bytes: {total / N:.2f} a parameter")
print(f"counted: {N:,} parameters, 16 bytes each with ddp, 8 with fsdp on 2 ranks")

# %%
def bars(panel, runs):
    bottom, names = np.zeros(len(runs)), [f"{run['layout']}\nrank {run['rank']}" for run in runs]
    for kind, colour in (("weights", BLUE), ("gradients", ORANGE), ("optimizer", GREEN)):
        height = np.array([run[kind] / N for run in runs])
        panel.bar(names, height, bottom=bottom, color=colour, label=kind)
        bottom += height
    panel.set(title="bytes a parameter, on each rank", ylim=(0, 20))
    panel.legend(frameon=False, ncols=3, fontsize=7, loc="upper center")

# %%
figure, (left, right) = plt.subplots(1, 2, width_ratios=(3, 2))
alone = np.array(curves["float32"][:STEPS])
left.plot(alone, color=GREY, lw=7, alpha=0.5, label="one process")
for layout, colour, width in (("ddp", BLUE, 3), ("fsdp", RED, 1)):
    losses = next(run["losses"] for run in runs if run["layout"] == layout)
    far = np.abs(np.array(losses) / alone - 1).max()
    left.plot(losses, color=colour, lw=width, label=f"{layout}, 2 ranks: within {far:.0e}")
left.set(title="one process and two ranks", xlabel="step", ylabel="loss (nats per letter)")
left.legend(frameon=False)
bars(right, sorted(runs, key=lambda run: (run["layout"], run["rank"])))
plt.show()

# %% [markdown]
# The curves lie on top of each other: how a training is spread over processes changes where numbers are, not what they
# are, up to rounding. That is the test this project holds every layout to (`minigpt bench parallel` draws it with a
# rank being killed on the way). The lines that do it:

# %%
source("minigpt/scale/parallel.py", "def _shard(self):", "return self.model")

# %% [markdown]
# # Part 3: a mixture of experts
#
# ## Many parameters, few of them used
#
# A large model knows more; but each of its parameters is multiplied with each token. A *mixture of experts* has, in
# the place of one MLP a layer, E of them, and a small *router* that sends each token to k. Mixtral 8x7B has 8
# experts, 2 for a token. Count it (width C = 4096, hidden layer F = 14336, 32 layers, 8 of 32 heads for keys and
# values, vocabulary 32000; an MLP of three matrices), and let the package count it matrix by matrix:

# %%
C, F, L, V, E, k = 4096, 14336, 32, 32000, 8, 2
attention, expert, router = 2 * C * C + 2 * C * C // 4, 3 * C * F, E * C
ends = 2 * V * C + (2 * L + 1) * C                       # embedding, head, norms
total, active = (L * (attention + router + experts * expert) + ends for experts in (E, k))
mixtral = ModelConfig.preset("mixtral-8x7b")
print(f"in all       {total / 1e9:.2f} B by hand, {mixtral.num_parameters() / 1e9:.2f} B counted")
print(f"for a token  {active / 1e9:.2f} B by hand, {mixtral.num_active_parameters() / 1e9:.2f} B counted")

# %% [markdown]
# "8 x 7B" is not 56 billion: attention and the embeddings exist once. A token costs the FLOPs of a 13-billion model;
# all 47 billion must lie in memory.
#
# ## The router
#
# The router is a matrix with a row for each expert: $\text{logits} = x W^T$. A score is the sigmoid (or the softmax)
# of a logit, the k best are chosen, and the outputs of these experts are added up with *gates*: their scores, divided
# by their sum. To keep the load even one may add a **bias** to the scores *for the choice alone*: an expert with too
# many tokens gets a lower bias after each step, one with too few a higher one. The gate is the score without it, so
# the bias steers who computes, not what is computed (DeepSeek-V3 does that).
#
# ### Exercise 5 (10 minutes): choose

# %%
def route(scores, bias, k):
    """scores (n, E), bias (E,) -> gates (n, k), experts (n, k): each token's k best, the best first."""
    ...

# %%
logits_of_router = np.random.default_rng(0).standard_normal((6, 8))
scores, no_bias, some_bias = 1 / (1 + np.exp(-logits_of_router)), np.zeros(8), np.linspace(-0.5, 0.5, 8)


def by_the_package(bias, k):
    return numpy_ops.moe_router_forward(logits_of_router, k, bias, gate="sigmoid")


check(route,
      case(scores, no_bias, 2, want=by_the_package(no_bias, 2), why="the best first; gates: scores over their sum"),
      case(scores, some_bias, 2, want=by_the_package(some_bias, 2), why="bias: in the choice, not in the gates"),
      case(scores, some_bias, 1, want=by_the_package(some_bias, 1), why="one expert: its gate is 1"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `np.argsort(-x, axis=1)[:, :k]` are the columns of the k largest of each row; `np.take_along_axis` fetches them.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def route(scores, bias, k):
#     experts = np.argsort(-(scores + bias), axis=1)[:, :k]
#     gates = np.take_along_axis(scores, experts, axis=1)
#     return gates / gates.sum(axis=1, keepdims=True), experts
# ```
#
# </details>

# %% [markdown]
# ## Balance
#
# An expert that is good at the beginning gets more tokens, learns more from them, and is chosen yet more often. If one
# has most of the tokens, the others are memory without use, and on a cluster, where each GPU holds some experts, all
# wait for the GPU of the busy one.
#
# **Predict:** two small GPTs with 8 experts, 2 for a letter, learn Shakespeare; one moves its bias, one does not. An
# even share is 1/8 of the choices. What share does the busiest expert get without the bias?

# %%
def train_experts(bias_rate, steps=120):
    """-> the model; of every step the shares of the second layer's experts, (steps, 8), and the loss, (steps,)."""
    config = ModelConfig(vocab_size=len(letters), block_size=64, n_layer=2, n_head=4, n_embd=64, norm="rmsnorm",
                         position="rope", activation="swiglu", bias=False, tied=False, n_expert=8, n_expert_active=2,
                         expert_inner=64, gate="sigmoid", router_bias=True, router_bias_rate=bias_rate)
    engine, shares, losses = OpsEngine(GPT(config), TrainingArguments(learning_rate=3e-3)), [], []
    engine.begin()
    for number in range(steps):
        tokens = BATCHES[number % len(BATCHES)]
        loss, norm = engine.gradients([(tokens[:, :-1], tokens[:, 1:])])
        counts = engine.model.expert_counts["h.1.mlp"]                    # of this step
        shares.append(counts / counts.sum())
        losses.append(loss)
        engine.step(number + 1, 3e-3 * min(1, (number + 1) / 20), min(1, 1 / norm))
    return engine.model, np.array(shares), np.array(losses)

# %%
free, free_shares, free_losses = train_experts(0.0)
even, even_shares, even_losses = train_experts(0.01)
figure, panels = plt.subplots(1, 2, sharey=True)
for panel, shares, title in ((panels[0], free_shares, "without the bias"), (panels[1], even_shares, "with the bias")):
    panel.plot(shares, lw=1)
    panel.axhline(1 / 8, color="black", ls="--", lw=1)
    panel.set(title=f"{title}; dashed: even", xlabel="step")
panels[0].set_ylabel("share of the choices, each expert")
plt.show()
for name, shares, losses in (("without", free_shares, free_losses), ("with", even_shares, even_losses)):
    last = shares[-20:].mean(axis=0)
    print(f"{name:7} the bias, last 20 steps: busiest expert {last.max():.1%}, idlest {last.min():.1%}, "
          f"loss {losses[-20:].mean():.3f}")

# %% [markdown]
# The older way to the same end is an *auxiliary loss*, added to the model's: $E \sum_e f_e \, p_e$, with $f_e$ the
# share of choices and $p_e$ the mean score (as a share of 1) of expert e. Count: all even, $f_e = p_e = 1/E$, it is
# $E \cdot E \cdot 1/E^2 = 1$; everything to one expert, it is E.

# %%
def balance_loss(scores, experts):
    E = scores.shape[1]
    share = np.bincount(experts.ravel(), minlength=E) / experts.size                    # f (E,)
    mean_score = (scores / scores.sum(axis=1, keepdims=True)).mean(axis=0)              # p (E,)
    return E * (share * mean_score).sum()


tokens = BATCHES[0]
for name, model in (("without bias", free), ("with bias", even)):
    model.forward(tokens[:, :-1], tokens[:, 1:])                        # keeps what the backward pass would need
    logits, _, experts = model.saved["h.1.mlp"][1:4]
    theirs = numpy_ops.router_losses_forward(logits, experts, "sigmoid")[0]
    print(f"{name:12}: {balance_loss(1 / (1 + np.exp(-logits)), experts):.4f}, by the package {theirs:.4f}")
print(f"all to one  : {balance_loss(np.tile([1.0] + 7 * [1e-9], (10, 1)), np.zeros((10, 1), int)):.4f}")

# %% [markdown]
# Its price: its gradient pulls at the router against that of the model's own loss. The bias has no gradient at all.
#
# ## What experts are experts of
#
# **Predict:** do experts specialise on topics, on parts of speech, or on something plainer? Below, the first choice of
# the second layer for three lines of text, a colour for each expert; and where each frequent letter goes.

# %%
lines = np.stack([ids[start:start + 65] for start in (1000, 1064, 1128)])
even.forward(lines[:, :-1], lines[:, 1:])
choice = even.saved["h.1.mlp"][3][:, 0].reshape(3, 64)
figure, panel = plt.subplots(figsize=(9, 1.5))
panel.imshow(choice, cmap="Set2", aspect="auto", vmin=0, vmax=7)
for row, column in np.ndindex(3, 64):
    panel.text(column, row, letters[lines[row, column]].replace("\n", "¶"), ha="center", va="center", fontsize=9,
               family="monospace")
panel.set(title="the expert of each letter (its first choice)", xticks=[], yticks=[])
plt.show()

# %%
even.forward(BATCHES[:12, :, :-1].reshape(-1, 64), BATCHES[:12, :, 1:].reshape(-1, 64))
seen, first = BATCHES[:12, :, :-1].ravel(), even.saved["h.1.mlp"][3][:, 0]
frequent = np.argsort(-np.bincount(seen, minlength=len(letters)))[:32]
table = np.array([np.bincount(first[seen == letter], minlength=8) / (seen == letter).sum() for letter in frequent])
figure, panel = plt.subplots(figsize=(9, 2.6))
picture = panel.imshow(table.T, vmin=0, vmax=1, aspect="auto")
panel.set(title="where each letter goes first (share of its occurrences)", ylabel="expert", yticks=range(8))
panel.set_xticks(range(32), [repr(letters[letter])[1:-1].replace(" ", "space") for letter in frequent], fontsize=8)
panel.tick_params(axis="x", rotation=90)
figure.colorbar(picture)
plt.show()

# %% [markdown]
# Mostly plain: the same letter tends to go to the same expert, whatever the word. Mixtral's authors, too, looked for
# experts of topics and found experts of syntax and of single tokens.
#
# # Part 4: a trillion parameters, by arithmetic
#
# ## Four hand counts
#
# A GPT of 128 layers, 25,600 wide: a layer has $12 C^2$ parameters (attention $4 C^2$, MLP $8 C^2$). A training takes
# **6 N D** FLOPs for N parameters and D tokens: 2 a parameter and token forward, 4 backward. How many tokens? About
# 20 for each parameter; why, comes below. A GPU (H100) makes 989e12 FLOPs a second in 16 bits by its data sheet; in
# large trainings the FLOPs that the model needs come to some 40 % of that, their *model FLOPs utilisation* (MFU). It
# draws 700 W; a server around it, say, 1.45 times as much, the building 1.1 times that.

# %%
C, L, V, gpus = 25600, 128, 51200, 16384
N = 12 * L * C**2 + V * C
D = 20 * N
flops = 6 * N * D
days = flops / (gpus * 0.40 * 989e12) / 86400
energy = gpus * 700 * 1.45 * 1.1 * days * 24 / 1e9                                     # GWh
config = ModelConfig(vocab_size=V, block_size=2048, n_layer=L, n_head=160, n_embd=C)
print(f"parameters  {N:.4g}, counted one by one {config.num_parameters():.4g}")
print(f"FLOPs       {flops:.3g} = 6 x {N:.3g} x {D:.3g}")
print(f"time        {days:.0f} days on {gpus:,} GPUs at 40 %")
print(f"energy      {energy:.0f} GWh: a year of {energy * 1e6 / 3500:,.0f} households of 3,500 kWh")
print(f"memory      {16 * N / 1e12:.1f} TB for weights, gradients and Adam: {16 * N / 80e9:.0f} GPUs of 80 GB")

# %% [markdown]
# ## Three ways to cut
#
# FSDP alone? Of what is shared out, each of 16,384 GPUs has 1 GB. But count what a GPU holds while it computes one
# layer: the layer's weights and those of the next on their way (2 bytes each), and its gradient (4). And what travels
# in a step: all weights twice, forward and backward, and the gradients; the 8 network cards of a server work
# together, at 50 GB/s each. Each GPU has one text, which makes a batch of 33.5 million tokens.

# %%
working = 12 * C**2 * (2 + 2 + 4)
sending = (2 + 2 + 4) * N / (8 * 50e9)
computing = 6 * N * gpus * 2048 / gpus / (0.40 * 989e12)
print(f"a layer at work: {working / 1e9:.0f} of 80 GB, before the first activation")
print(f"a step: {computing:.0f} s of computing, {sending:.0f} s of sending")
gpu = hardware.GPUS["h100"]
job = step.Job(config, 2048, gpus, gpu, gpus, hardware.PRECISIONS["bf16"])             # a text for each GPU
found = search(job, tensor=1, pipeline=1)
smallest, free = found.too_large[0][1], gpu.memory - job.assume.reserved_bytes
print(f"the planner: {len(found.fitting)} layouts fit, the smallest takes {smallest / 1e9:.1f} GB of {free / 1e9:.1f}")

# %% [markdown]
# (An "80 GB" GPU has $80 \cdot 2^{30}$ bytes, 85.9 GB; the planner leaves 5 of them to CUDA and the network's buffers.)
# Most of the memory is full of one layer, the network is busy most of the time, and twice as many GPUs would need twice
# the batch. So the model itself is cut, in two more directions:
#
# - **tensor parallel**: t GPUs share each matrix product (each has some of the heads and columns). They all-reduce
#   activations twice a layer and pass, so this stays among the 8 GPUs of a server, joined at 450 GB/s.
# - **pipeline parallel**: p groups hold successive layers; only activations at the cuts travel. The batch is split into
#   m *micro-batches* that follow one another like cars on an assembly line. While the line fills and empties GPUs
#   wait: the **bubble**.
# - **data parallel**: d copies of all that, on different texts. $t \cdot p \cdot d$ GPUs in all.
#
# Count the bubble: a stage works m times (forward and backward) and waits p - 1 times: (p - 1) / m of the useful time.
# Measured, on a drawn line of p = 4 stages and m = 8 micro-batches (a backward pass takes twice as long):

# %%
def pipeline(p, m):
    """-> (stage, start, length, kind, micro-batch) of every piece of work: all forward, then all backward."""
    pieces, free, done = [], np.zeros(p), {}
    for kind, length, stages in (("forward", 1, range(p)), ("backward", 2, range(p - 1, -1, -1))):
        for i in range(m):
            before = 0.0 if kind == "forward" else done["forward", p - 1, m - 1]
            for stage in stages:                                # from stage to stage; backward from the last
                start = max(free[stage], before)
                free[stage] = before = done[kind, stage, i] = start + length
                pieces.append((stage, start, length, kind, i))
    return pieces

# %%
pieces = pipeline(4, 8)
figure, panel = plt.subplots(figsize=(9, 2.2))
for stage, start, length, kind, i in pieces:
    panel.barh(stage, length, left=start, color=BLUE if kind == "forward" else GREEN, edgecolor="white")
    panel.text(start + length / 2, stage, i, ha="center", va="center", color="white", fontsize=8)
panel.set(title="blue: forward, green: backward, white: the bubble", xlabel="time", ylabel="stage")
panel.set_yticks(range(4))
panel.invert_yaxis()
plt.show()
for p, m in ((4, 8), (4, 32), (64, 8), (64, 512)):
    end = max(start + length for _, start, length, _, _ in pipeline(p, m))
    print(f"p = {p:2}, m = {m:3}: idle over useful {end / (3 * m) - 1:.3f}, counted {(p - 1) / m:.3f}")

# %%
source(step.bubble)

# %% [markdown]
# `chunks`: with several short runs of layers on each stage the line fills faster.
#
# ## The plan
#
# The planner adds all this up for a layout (data, tensor, pipeline, micro-batch, ZeRO stage, and which activations are
# recomputed in the backward pass instead of kept): what each GPU holds, what it computes, what it sends over which
# wire. Then it tries all layouts. (HFU is MFU with what is recomputed counted too.) On the command line, for a
# preset: `minigpt plan --preset llama3-405b --gpus 16384`. For our trillion:
#
# **Predict:** which part of the time of a step is not spent on matrix products: a twentieth, a fifth, or a half?

# %%
made = make_plan("our trillion", job, tokens=D)
print("\n\n".join(report.text(made).split("\n\n")[index] for index in (2, 4, 5)))

# %%
best = made["best"]
figure, panels = plt.subplots(2, 1, figsize=(8, 3.6))
for panel, parts, scale in ((panels[0], best["memory"], 1e9), (panels[1], best["seconds"], 1)):
    least, left = 0.01 * sum(parts.values()), 0
    shown = {part: amount / scale for part, amount in parts.items() if amount > least}
    for number, (part, amount) in enumerate(shown.items()):
        panel.barh(0, amount, left=left, label=part, color=plt.cm.tab10(number))
        left += amount
    panel.set(yticks=[])
    panel.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.35))
panels[0].axvline(made["cluster"]["usable_bytes"] / 1e9, color=RED, ls="--")
panels[0].set(title="memory of the fullest GPU, GB (dashed: what there is)")
panels[1].set(title=f"time of a step, s; MFU {best['mfu']:.0%}")
plt.show()

# %%
training = made["training"]
planned, planned_energy = training["seconds"] / 86400, training["energy_kwh"] / 1e6
print(f"days: {days:.0f} by hand, {planned:.0f} planned, ratio {planned / days:.2f}")
print(f"GWh:  {energy:.0f} by hand, {planned_energy:.0f} planned, ratio {planned_energy / energy:.2f}")

# %% [markdown]
# The plan's MFU is above the 40 % that large trainings report: everything in it goes as it should, all day.

# %% [markdown]
# ## How many parameters should it have at all?
#
# Given C FLOPs, one may train a large model on few tokens or a small one on many. Hoffmann and others trained
# hundreds of models and fitted the loss: $L(N, D) = E + A / N^{0.35} + B / D^{0.37}$ (with the constants of a later,
# more careful fit). For a fixed C, D is C / 6 N, and there is a best N:

# %%
law, sizes = chinchilla.REFIT, np.logspace(8, 13.5, 200)
for budget, colour in ((1e21, GREY), (1e23, BLUE), (1e25, GREEN), (flops, RED)):
    N_best, D_best = law.best_size(budget)
    plt.semilogx(sizes, law.loss(sizes, budget / 6 / sizes), color=colour)
    plt.semilogx(N_best, law.loss(N_best, D_best), "o", color=colour,
                 label=f"{budget:.1g} FLOPs: {N_best / 1e9:,.0f} B, {D_best / 1e12:.2g} T, {D_best / N_best:.0f} each")
plt.gca().set(title="loss by the law, at four budgets", xlabel="parameters N", ylabel="nats per token",
              ylim=(1.85, 2.8))
plt.legend(frameon=False, fontsize=8, title="best N, tokens, tokens a parameter", title_fontsize=8,
           loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
plt.show()

# %% [markdown]
# That is where the 20 tokens a parameter come from, and for the budget of our trillion the law asks for much the same.
# It counts the training alone: who serves a model to many people trains a smaller one on more tokens.
#
# ## Where such a plan is wrong
#
# A plan is arithmetic with guesses in it. `minigpt plan --published` holds it against runs that took place; the page
# lies in the repository, and a test fails when it is stale. Read from there:

# %%
page = Path(published.__file__).with_suffix(".md").read_text(encoding="utf-8")
lines = [line for line in page.splitlines() if line.startswith("| ")]
rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
runs = [row for row in rows if len(row) == 9 and row[8].endswith("%") and row[0].count(",") >= 2]
figure, panel = plt.subplots(figsize=(6.5, 3.4))
for name, colour, mark in (("Megatron-LM", GREY, "o"), ("Megatron-Core", BLUE, "s"), ("Llama 3", RED, "^")):
    of_source = [row for row in runs if row[0].startswith(name)]
    measured, planned = (np.array([float(row[column]) for row in of_source]) for column in (6, 7))
    errors = 100 * (planned / measured - 1)
    span = f"{errors.min():+.0f} to {errors.max():+.0f} %"
    panel.plot(measured, planned, mark, color=colour, label=f"{name}: {span}")
panel.plot([120, 600], [120, 600], color="black", lw=0.5)
panel.set(title="TFLOP/s of a GPU: plans and runs", xlabel="measured", ylabel="planned")
panel.legend(frameon=False)
plt.show()

# %%
for row in rows:
    if row[0].startswith(("DeepSeek-V3", "Llama 3.1")):
        print(f"{row[0]:22} GPU-hours {row[5]:>9}  planned {row[6]:>9}  {row[7]:>6}")
words = next(part for part in page.split("\n\n") if part.startswith("Made by")).split()
for sentence in " ".join(words).split(". ")[-2:]:
    print("-", sentence.rstrip("."))

# %% [markdown]
# What is systematic in it: one constant was fitted to Megatron-LM's runs, so those being met says little. Small
# models on fast GPUs are planned too fast, as what a GPU waits for between short kernels is not in the arithmetic.
# Mixtures whose experts are spread over many nodes are planned too slow, since nothing of their traffic is hidden
# behind computing, which is just what their builders took care of. And no plan has crashes, restarts, a slow GPU
# among thousands, or the runs that failed before.
#
# ## Summary
#
# - float16 has 11 significant bits and ends at 6e-8 and 65504; bfloat16 has 8 bits and float32's range. A bfloat16
#   sum of ones stops at 256; a weight of 1 ignores a decrease of less than 0.002. So: products in 16 bits, sums and the
#   weights' master copy in 32, and for float16 a loss scale.
# - Averaging gradients over ranks makes the step of the whole batch. A ring moves 2 (N - 1) / N arrays a rank: less
#   than 2, however many ranks there are.
# - Training takes 16 bytes a parameter; FSDP leaves 16 / N on each rank, and the loss curve does not change.
# - A mixture of experts separates what is stored (Mixtral: 46.7 B) from what a token costs (12.9 B); it must be kept
#   balanced, by a bias for the choice or by an auxiliary loss.
# - 6 N D FLOPs, 16 N bytes, (p - 1) / m bubble, about 20 tokens a parameter: with these a training of a trillion
#   parameters can be planned on paper; measured runs show by how much such a plan is off.
#
# Next: [12](12_sampling.ipynb), what the trained model writes. Larger than here: `minigpt train --help` (`--parallel`),
# `minigpt plan --help`. An ablation of your own: [assignment 4](assignments/a4_train).
#
# ## Papers
#
# - Micikevicius et al. 2017, *Mixed precision training*, [arXiv:1710.03740](https://arxiv.org/abs/1710.03740)
# - Kalamkar et al. 2019, *A study of BFLOAT16 for deep learning training*,
#   [arXiv:1905.12322](https://arxiv.org/abs/1905.12322)
# - Patarasuk, Yuan 2009, *Bandwidth optimal all-reduce algorithms for clusters of workstations*, Journal of Parallel
#   and Distributed Computing 69
# - Rajbhandari et al. 2019, *ZeRO*, [arXiv:1910.02054](https://arxiv.org/abs/1910.02054); Zhao et al. 2023, *PyTorch
#   FSDP*, [arXiv:2304.11277](https://arxiv.org/abs/2304.11277)
# - Shazeer et al. 2017, *The sparsely-gated mixture-of-experts layer*,
#   [arXiv:1701.06538](https://arxiv.org/abs/1701.06538); Fedus et al. 2021, *Switch Transformers*,
#   [arXiv:2101.03961](https://arxiv.org/abs/2101.03961); Jiang et al. 2024, *Mixtral of experts*,
#   [arXiv:2401.04088](https://arxiv.org/abs/2401.04088); Wang et al. 2024, *Auxiliary-loss-free load balancing*,
#   [arXiv:2408.15664](https://arxiv.org/abs/2408.15664)
# - Huang et al. 2018, *GPipe*, [arXiv:1811.06965](https://arxiv.org/abs/1811.06965); Shoeybi et al. 2019, *Megatron-LM*
#   (tensor parallel), [arXiv:1909.08053](https://arxiv.org/abs/1909.08053); Narayanan et al. 2021, *Efficient
#   large-scale language model training on GPU clusters*, [arXiv:2104.04473](https://arxiv.org/abs/2104.04473)
# - Chowdhery et al. 2022, *PaLM* (MFU), [arXiv:2204.02311](https://arxiv.org/abs/2204.02311); DeepSeek-AI 2024,
#   *DeepSeek-V3*, [arXiv:2412.19437](https://arxiv.org/abs/2412.19437)
# - Hoffmann et al. 2022, *Training compute-optimal large language models*,
#   [arXiv:2203.15556](https://arxiv.org/abs/2203.15556); Besiroglu et al. 2024, *Chinchilla scaling: a replication
#   attempt*, [arXiv:2404.10102](https://arxiv.org/abs/2404.10102)
