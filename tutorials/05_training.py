# %% [markdown]
# # 5. Training on real text
#
# **You will be able to** train a GPT with a loop that you wrote yourself, and say of its loss whether it is good; write
# AdamW, a learning rate schedule and gradient clipping, and see what goes wrong without them; tell learning from
# learning by heart; choose between causal, masked and knowledge objectives; stop a run anywhere and go on with the same
# bits.
#
# **Needs:** a laptop; NumPy.  **Before:** [tutorial 4](04_backpropagation.ipynb)
# **Time:** about 60 minutes

# %%
import contextlib
import io
import math
import sys
import tempfile
import time

import matplotlib.pyplot as plt
import numpy as np
from lesson import BLUE, GREEN, GREY, ORANGE, RED, case, check, here, source

import minigpt
from minigpt import GPT, CharTokenizer, ModelConfig, TextDataset, Tokenizer, Trainer, TrainingArguments
from minigpt.ops import numpy_ops
from minigpt.text import DataCollatorForKnowledge, DataCollatorForLanguageModeling, Gazetteer
from minigpt.text.world import World
from minigpt.train.schedule import learning_rate

# %%
why_no_cpp = minigpt.ops.available()["cpp"]
fastest = "numpy" if why_no_cpp else "cpp"                # the same numbers, at different speeds
minigpt.set_num_threads(1)                                # models this small gain nothing from a second core
print(f"this notebook trains on ops {fastest!r}" + (f" ({why_no_cpp})" if why_no_cpp else ""))

# %% [markdown]
# ## The text, and what a model is asked
#
# All the works of Shakespeare fit into 5 MB; here is a fifth of them. Our model will read single characters, so that
# its vocabulary is small and a few hundred steps teach it something. The last tenth of the text is put aside: it will
# tell what the model has learnt, as opposed to learnt by heart.

# %%
text = here("data/shakespeare.txt").read_text(encoding="utf-8")
tokenizer = CharTokenizer.train(text)
ids = np.array(tokenizer.encode(text))
V, T, B = len(tokenizer), 64, 16                          # vocabulary, characters in a text, texts in a batch
train, held_out = np.split(ids, [len(ids) * 9 // 10])
print(f"{len(ids):,} characters, {V} different ones: {''.join(tokenizer.decode(range(V)))!r}")
print(f"a batch is {B} texts of {T} characters; {len(train) // (B * T):,} batches are one pass over the training text")
print(repr(text[:90]))

# %% [markdown]
# A causal GPT is asked at every position for the next token. So a window of `T + 1` characters holds `T` questions with
# their answers: the inputs are the window without its last character, the targets the window without its first.
#
# ### Exercise 1 (5 minutes): a batch
#
# Write `get_batch`: for each start, the inputs `ids[start] ... ids[start + T - 1]`, and what each position is to
# predict.

# %%
def get_batch(ids, starts, T):
    """ids (N,), starts (B,) -> inputs (B, T), targets (B, T)"""
    ...

# %%
digits = np.arange(100, 160)
check(get_batch,
      case(digits, np.array([3]), 4, want=(np.array([[103, 104, 105, 106]]), np.array([[104, 105, 106, 107]])),
           why="the target of each position is the token after it"),
      case(digits, np.array([0, 50, 20]), 9,
           want=(np.array([0, 50, 20])[:, None] + np.arange(100, 109), np.array([0, 50, 20])[:, None]
                 + np.arange(101, 110)), why="one row for each start, in their order"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `np.stack` makes rows of a list of slices. `ids[s:s + T]` has `T` elements.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def get_batch(ids, starts, T):
#     inputs = np.stack([ids[s:s + T] for s in starts])
#     targets = np.stack([ids[s + 1:s + T + 1] for s in starts])
#     return inputs, targets
# ```
# </details>

# %% [markdown]
# Forget the shift, and the model is asked for the character that it sees: the loss falls to 0 within a minute, and what
# it has learnt is to copy. A loss that is too good is a bug too.
#
# The model: two layers, 64 channels, positions by rotation (`rope`, which such short runs learn to use sooner than a
# table of positions). About a hundred thousand parameters.
#
# **Predict:** the model has just been made; its weights are small random numbers. What is its loss, in nats (natural
# logarithms) per character? You need one number from above.

# %%
config = ModelConfig(vocab_size=V, block_size=T, n_layer=2, n_head=4, n_embd=64, position="rope")


def random_batch(rng, data):
    windows = data[rng.integers(len(data) - T, size=(B, 1)) + np.arange(T + 1)]         # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]


new = GPT(config, fastest, seed=0)
inputs, targets = random_batch(np.random.default_rng(0), train)
print(f"{new.num_parameters():,} parameters; loss {new.forward(inputs, targets):.3f}, ln {V} = {math.log(V):.3f}")
print(tokenizer.decode(new.generate(tokenizer.encode("ROMEO:\n"), 120, seed=1)))

# %% [markdown]
# `ln V`: it has no reason to prefer any character, so each gets about `1/V`, and the loss is `-ln (1/V)`. This is the
# cheapest test of a new model there is. If a run does not begin there, the initialisation is wrong (or the loss is).
#
# ## What is a good loss?
#
# A loss curve says little without something to hold it against. Three rulers can be computed from the text itself:
#
# - **uniform**, `ln V`: knows nothing;
# - **unigram**: knows how frequent each character is, but sees no context. Its loss is the *entropy*
#   `-sum_a p(a) ln p(a)`;
# - **bigram**: knows how frequent each character is *after each other one*. Its loss is
#   `-sum_ab p(a, b) ln p(b | a)`, the mean over all pairs `ab` that occur.
#
# Only below the bigram's line has a GPT learnt more from its context than the last character can tell.
#
# ### Exercise 2 (10 minutes): the bigram's loss
#
# Count all neighbouring pairs in `ids`, and return that sum, in nats. (`p(a, b)` is the share of the pair among all
# pairs, `p(b | a)` its share among the pairs that begin with `a`. A pair that never occurs contributes nothing.)

# %%
def bigram_loss(ids, V):
    """ids (N,) integers below V -> the mean of -ln p(next | this), a number"""
    ...

# %%
def entropy(counts):
    p = counts[counts > 0] / counts.sum()
    return -(p * np.log(p)).sum()


noise = np.random.default_rng(0).integers(3, size=400)
by_another_way = entropy(np.bincount(noise[:-1] * 3 + noise[1:])) - entropy(np.bincount(noise[:-1]))
check(bigram_loss,
      case(np.array([0, 1, 0, 2] * 10 + [0]), 3, want=math.log(2) / 2,
           why="half of all pairs begin with 0, and then 1 or 2 come equally often: ln 2; the others are certain: 0"),
      case(noise, 3, want=by_another_way,
           why="are all pairs counted (np.add.at)? Is the logarithm that of p(b | a), and the natural one?"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `np.add.at(counts, (ids[:-1], ids[1:]), 1)` fills a (V, V) table. Divide it by its sum for `p(a, b)`, and each row by
# the row's sum for `p(b | a)`. Take both only where the count is not 0.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def bigram_loss(ids, V):
#     counts = np.zeros((V, V))
#     np.add.at(counts, (ids[:-1], ids[1:]), 1)
#     pair = counts / counts.sum()                                          # p(a, b)
#     given = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)     # p(b | a)
#     occurs = counts > 0
#     return -(pair[occurs] * np.log(given[occurs])).sum()
# ```
# </details>

# %% [markdown]
# The other way, with which the check compared: the uncertainty about a pair is that about its first character plus that
# about the second given the first. So the bigram's loss is the entropy of pairs less that of single characters.

# %%
pairs = np.bincount(train[:-1] * V + train[1:], minlength=V * V)
rulers = {"uniform": math.log(V), "unigram": entropy(np.bincount(train)),
          "bigram": entropy(pairs) - entropy(np.bincount(train[:-1]))}
print(", ".join(f"{name} {value:.2f}" for name, value in rulers.items()), "nats per character")
letters = tokenizer.encode(" etaoinshrdlucmfwygpbv\n")
table = pairs.reshape(V, V)[np.ix_(letters, letters)]
figure, panel = plt.subplots(figsize=(5.6, 4.6))
picture = panel.imshow(table / table.sum(axis=1, keepdims=True), vmax=0.6)
names = ["space", *"etaoinshrdlucmfwygpbv", "\\n"]
panel.set_xticks(range(23), names, fontsize=8, rotation=90)
panel.set_yticks(range(23), names, fontsize=8)
panel.set(title="How often a character follows another, in Shakespeare", xlabel="next", ylabel="this")
figure.colorbar(picture, label="share")
plt.show()

# %% [markdown]
# After `t` comes `h`, after `v` nearly always `e`. All this is what the bigram knows, and all that it knows.
#
# ## The optimiser: from gradient descent to AdamW
#
# A gradient says which way is up. Plain gradient descent goes a bit the other way, `p -= lr * g`, with one learning
# rate `lr` for all parameters. The trouble: loss surfaces are narrow valleys, steep across and flat along. The steep
# direction forbids a large `lr`, and then the flat one takes forever. Below, `f(a, b) = (a² + 60 b²) / 2`; gradient
# descent is stable up to `lr = 2/60`.
#
# *Adam* keeps, for every single parameter, two running means: `m` of its gradients and `v` of their squares. The step
# is `lr * m / sqrt(v)`: where gradients are large it is not longer, and where they keep changing sign, `m` is near 0.
#
# **Predict:** in the first step of Adam, `m / sqrt(v)` comes out as `g / sqrt(g²)`. How long is the first step of a
# parameter with the gradient 1000, and how long of one with 0.001?

# %%
def path(move, steps=60):
    points, state = [np.array([-4.0, 1.0])], [np.zeros(2), np.zeros(2)]
    for step in range(1, steps + 1):
        points.append(move(points[-1].copy(), points[-1] * [1, 60], *state, step))
    return np.array(points)


def descend(p, g, m, v, step):
    return p - 0.031 * g


def adam(p, g, m, v, step):
    numpy_ops.adamw(p, g, m, v, step, lr=0.2)             # in place
    return p

# %%
a, b = np.meshgrid(np.linspace(-4.5, 1.5, 100), np.linspace(-1.4, 1.4, 100))
figure, panel = plt.subplots(figsize=(8, 3.4))
panel.contour(a, b, (a ** 2 + 60 * b ** 2) / 2, levels=np.geomspace(0.1, 60, 12), colors=GREY, linewidths=0.6)
for label, move, color in (("gradient descent, lr 0.031", descend, RED), ("Adam, lr 0.2", adam, BLUE)):
    points = path(move)
    panel.plot(*points.T, "o-", color=color, markersize=3, linewidth=1, label=label)
panel.set(title="60 steps in a narrow valley, from the left", xlabel="a, the flat direction", ylabel="b, the steep one")
panel.legend(frameon=False, loc="lower right")
plt.show()
first = path(adam, 1)[1] - path(adam, 1)[0]
print(f"Adam's first step: {first.round(6)}, though the gradient is {path(adam, 0)[0] * [1, 60]}")

# %% [markdown]
# Both are `lr` long, whatever the gradient. (That is also why the unit of Adam's learning rate is that of the
# parameters: 0.001 means "each number moves by about 0.001 a step".)
#
# Two details are missing. The running means start at 0 and are too small at first; dividing by `1 - beta^step` mends
# exactly that (*bias correction*, in Adam from the start). And *weight decay* pulls every weight towards 0 by a share
# `lr * weight_decay` of itself, apart from the gradient, so that `sqrt(v)` does not touch it: *AdamW*.
#
#     m = beta1 m + (1 - beta1) g             mhat = m / (1 - beta1^step)
#     v = beta2 v + (1 - beta2) g²            vhat = v / (1 - beta2^step)
#     p = p (1 - lr weight_decay) - lr mhat / (sqrt(vhat) + eps)
#
# ### Exercise 3 (8 minutes): AdamW
#
# Write one step. Return new arrays. `step` counts from 1.

# %%
def adamw(p, g, m, v, step, lr, weight_decay, beta1=0.9, beta2=0.99, eps=1e-8):
    """p, g, m, v of one shape -> the new p, m and v"""
    ...

# %%
def adamw_case(step, weight_decay, why):
    p, g, m, v = np.random.default_rng(step).normal(size=(4, 5))
    g[0] = 0
    m, v = (m, v ** 2) if step > 1 else (0 * m, 0 * v)
    want = p.copy(), m.copy(), v.copy()
    numpy_ops.adamw(want[0], g, *want[1:], step, 0.01, 0.9, 0.99, 1e-8, weight_decay)
    return case(p, g, m, v, step, 0.01, weight_decay, want=want, why=why)


check(adamw, adamw_case(1, 0.0, "step 1: bias corrected, each moves by lr; where the gradient is 0, not at all (eps)"),
      adamw_case(7, 0.0, "step 7: result 0 is p, 1 is m, 2 is v; m and v are returned as they are, without correction"),
      adamw_case(7, 0.5, "with weight decay: a share lr * weight_decay of the old p; m and v do not see it"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Three lines for `m`, `v` and `p`, as above. `beta1 ** step` is beta1 to the power of step.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def adamw(p, g, m, v, step, lr, weight_decay, beta1=0.9, beta2=0.99, eps=1e-8):
#     m = beta1 * m + (1 - beta1) * g
#     v = beta2 * v + (1 - beta2) * g * g
#     mhat, vhat = m / (1 - beta1 ** step), v / (1 - beta2 ** step)
#     p = p * (1 - lr * weight_decay) - lr * mhat / (np.sqrt(vhat) + eps)
#     return p, m, v
# ```
# </details>

# %% [markdown]
# The package's, which writes into the arrays it is given (`[...]`) because new ones of the size of the model would cost
# more than the arithmetic:

# %%
source("minigpt/ops/numpy_ops.py", "m[...] = beta1 * m", "weights[...] = weights * (1")

# %% [markdown]
# ## Schedule and clipping
#
# **The schedule.** At first `v` is a mean over few gradients and not to be trusted, and the model is far from anything
# sensible: so the learning rate rises from 0 for a few steps (*warm-up*). Near the end it should be small, so that the
# noise of the batches averages out: it falls along half a cosine wave.
#
# **Clipping.** Now and then a batch gives a gradient many times as long as usual. All gradients of the model are taken
# as one long vector; if its length (the *global norm*) is more than a limit, mostly 1, all are scaled down to make it
# that. Its direction stays.

# %%
WARM_UP = 20


def lr_at(step, steps, peak):
    """The learning rate of the step that comes after `step` others."""
    if step < WARM_UP:
        return peak * step / WARM_UP
    return peak * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP)))


STEPS = 300
arguments = TrainingArguments(learning_rate=1e-2, lr_scheduler_type="cosine", warmup_steps=WARM_UP)
ours, theirs = ([f(s) for s in range(STEPS)] for f in (lambda s: lr_at(s, STEPS, 1e-2),
                                                       lambda s: learning_rate(arguments, s, STEPS)))
print(f"largest difference from the package's schedule: {np.abs(np.subtract(ours, theirs)).max():.1e}")

# %% [markdown]
# ## The loop
#
# Everything is there. The whole training loop, with the backward pass of [tutorial 4](04_backpropagation.ipynb) inside
# `model.backward()`. (Weight decay is for matrices only: a norm's weight or a bias is there to scale and shift.)

# %%
def train_model(model, data, steps, peak, each=lambda step: None):
    """Trains in place; -> for every step: loss, gradient norm and learning rate, (3, steps)"""
    rng, history = np.random.default_rng(1), []
    m, v = ({name: np.zeros_like(p) for name, p in model.params.items()} for _ in range(2))
    for step in range(steps):
        each(step)
        model.zero_grad()
        loss = model.forward(*random_batch(rng, data))
        model.backward()
        norm = math.sqrt(sum(model.ops.squared_norm(g) for g in model.grads.values()))
        history.append((loss, norm, lr_at(step, steps, peak)))
        for name, p in model.params.items():
            model.ops.adamw(p, model.grads[name], m[name], v[name], step + 1, history[-1][2], 0.9, 0.99,
                            weight_decay=0.1 if p.ndim > 1 else 0.0, grad_scale=min(1.0, 1.0 / norm))
    return np.array(history).T

# %% [markdown]
# A hand count before we press the button: 6 FLOPs for each parameter and token ([tutorial
# 4](04_backpropagation.ipynb)), 16 · 64 tokens a step, 300 steps.

# %%
flops = 6 * new.num_parameters() * B * T * STEPS
model = GPT(config, fastest, seed=0)
start = time.perf_counter()
losses, norms, rates = train_model(model, train, STEPS, peak=1e-2)
took = time.perf_counter() - start
print(f"{flops / 1e9:.0f} GFLOP in {took:.1f} s: {flops / took / 1e9:.1f} GFLOP/s, "
      f"{B * T * STEPS / took:,.0f} characters/s")
print(f"{STEPS} of {len(train) // (B * T):,} batches: the model has seen {B * T * STEPS / len(train):.0%} of the text")

# %%
def loss_on(model, data, count=64):
    """The mean loss over `count` windows, spread evenly over the data."""
    windows = data[np.linspace(0, len(data) - T - 1, count).astype(int)[:, None] + np.arange(T + 1)]
    return float(model.token_losses(windows[:, :-1], windows[:, 1:]).mean())

# %%
figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), width_ratios=(1.6, 1, 1))
panels[0].plot(losses, linewidth=1)
for (name, value), color in zip(rulers.items(), (GREY, ORANGE, RED), strict=True):
    panels[0].axhline(value, color=color, linestyle="--", linewidth=1, label=f"{name}, {value:.2f}")
panels[0].plot(STEPS, loss_on(model, held_out), "o", color=GREEN, label="held out, at the end")
panels[0].set(title="loss", xlabel="step", ylabel="nats per character", ylim=(1.5, 6.2))
panels[0].legend(frameon=False)
panels[1].plot(norms, linewidth=1)
panels[1].axhline(1, color=RED, linestyle="--", linewidth=1)
panels[1].set(title="length of the gradient\n(above the line it is clipped)", xlabel="step")
panels[2].plot(rates)
panels[2].set(title="learning rate: warm-up, then cosine", xlabel="step")
plt.show()

# %% [markdown]
# Read the curve by the rulers. It falls from `ln V` to the unigram's line within a few dozen steps: how frequent the
# characters are is the cheapest thing to learn. Then to the bigram's. Below that line the model uses more of its
# context than the last character; that is where attention starts to pay.

# %%
print(f"held out: {loss_on(model, held_out):.2f} nats per character, the bigram {rulers['bigram']:.2f}\n")
print(tokenizer.decode(model.generate(tokenizer.encode("ROMEO:\n"), 250, temperature=0.8, seed=1)))

# %% [markdown]
# Words, lines, names with colons, from a very short training. For comparison the checkpoint that lies beside these
# notebooks, nine times as large and trained for minutes. It predicts tokens of several characters; to compare, its loss
# per token is divided by the characters of a token.

# %%
folder = here("checkpoint")
trained, bpe = GPT.from_pretrained(folder, ops=fastest), Tokenizer.from_pretrained(folder)
tokens = np.array(bpe.encode(tokenizer.decode(held_out)))
blocks = tokens[:len(tokens) // 129 * 129].reshape(-1, 129)[::8]           # every eighth text of 129 tokens
nats = trained.forward(blocks[:, :-1], blocks[:, 1:])
print(f"{nats:.2f} nats per token, {nats * len(tokens) / len(held_out):.2f} per character\n")
print(bpe.decode(trained.generate(bpe.encode("ROMEO:\n"), 90, temperature=0.8, seed=2)))

# %% [markdown]
# ## Too high, too low
#
# The learning rate is the one setting that must be found by trying. Three short runs, all else the same.
#
# **Predict:** the peaks are 0.0001, 0.01 and 0.3. Which run ends lowest? Where does the run with 0.3 end: at the same
# loss but sooner, somewhere between, at `ln V`, or above it? Use the rulers in your answer.

# %%
figure, panel = plt.subplots(figsize=(8, 3.4))
for peak, color in ((1e-4, ORANGE), (1e-2, BLUE), (0.3, RED)):
    curve = train_model(GPT(config, fastest, seed=0), train, 50, peak)[0]
    panel.plot(curve, color=color, label=f"{peak}: {curve[-5:].mean():.2f} at the end")
for name, value in rulers.items():
    panel.axhline(value, color=GREY, linestyle="--", linewidth=1)
    panel.text(50.5, value, name, color=GREY, va="center")
panel.set(title="50 steps at three learning rates", xlabel="step", ylabel="nats per character", xlim=(0, 50),
          ylim=(2, 5.5))
panel.legend(frameon=False)
plt.show()

# %% [markdown]
# Too low: it creeps. Too high: the loss jumps up while the learning rate is still rising; a step that long leaves the
# region in which the gradient means anything. Then it comes back to about the unigram's line, and stays there: the
# frequencies of the characters can be learnt in any weather, everything that needs several layers to agree cannot.
# Where a run stays at the unigram's line, a smaller learning rate is the first thing to try.
#
# ## Learning by heart
#
# **Predict:** now the model may read only 500 characters, again and again: what happens to its loss on them, and what
# to its loss on the held-out text? Will the second stop falling, or rise?

# %%
seen_loss, held_out_loss = [], []
reader = GPT(config, fastest, seed=0)


def look(step):
    if step % 10 == 0:
        seen_loss.append(loss_on(reader, train[:500], 32))
        held_out_loss.append(loss_on(reader, held_out, 32))


train_model(reader, train[:500], 150, 1e-2, each=look)
figure, panel = plt.subplots(figsize=(8, 3.4))
panel.plot(range(0, 150, 10), seen_loss, "o-", markersize=3, label="the 500 characters it reads")
panel.plot(range(0, 150, 10), held_out_loss, "o-", markersize=3, label="text that it never saw")
panel.axhline(rulers["unigram"], color=GREY, linestyle="--", linewidth=1, label="unigram")
panel.set(title="Learning by heart", xlabel="step", ylabel="nats per character")
panel.legend(frameon=False)
plt.show()

# %%
opening = tokenizer.encode("First Citizen:\nBefore we")
print(tokenizer.decode(reader.generate(opening, 100, temperature=0.0)))
print("\nthe text:\n" + text[:124])

# %% [markdown]
# It rises: the model gets surer and surer of sentences that do not come. This is *overfitting*. There are two hundred
# parameters for each character here; the cheapest way to a low loss is to remember. The gap between the two curves is
# the reason for putting text aside, and the lowest point of the second is where one would have had to stop.
#
# ## The same run on every backend
#
# The package holds each operation several times: in NumPy, which says what it is, and in C++ and CUDA, which are fast.
# They are the same function, but they add numbers in another order, so their last bits differ. From the same weights
# and the same batches:
#
# **Predict:** how far are the two losses apart in the first step (float32 knows about 7 digits)? After 20 steps: still
# as far, or farther?

# %%
backends = [name for name in ("numpy", "cpp") if minigpt.ops.available()[name] is None]
curves = {name: train_model(GPT(config, name, seed=0), train, 20, 1e-2)[0] for name in backends}
again = train_model(GPT(config, fastest, seed=0), train, 20, 1e-2)[0]
print(f"{fastest} twice: largest difference {np.abs(again - curves[fastest]).max()}")
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2))
for (name, curve), width in zip(curves.items(), (6, 1.5), strict=False):
    panels[0].plot(curve, linewidth=width, alpha=0.5 if width > 2 else 1, label=name)
panels[0].set(title="loss", xlabel="step", ylabel="nats per character", xticks=range(0, 20, 5))
panels[0].legend(frameon=False)
if len(curves) == 2:
    panels[1].semilogy(np.maximum(np.abs(curves["numpy"] - curves["cpp"]), 1e-10), "o-", markersize=3)
panels[1].set(title="their difference" if len(curves) == 2 else "no C++ here", xlabel="step", ylabel="nats",
              xticks=range(0, 20, 5))
plt.show()

# %% [markdown]
# The curves lie on top of each other. The difference begins below the last digit of a float32 (over a thousand losses,
# the roundings average out) and grows, because every step builds on the weights of the one before. Between two backends
# that is normal. On one backend the same run gives the same bits, and we will rely on this below. (`minigpt bench
# curves` draws this picture for a longer run.)
#
# ## The Trainer: the same in eight lines
#
# `Trainer` and `TrainingArguments` have the names and the meaning that people know from the transformers library. They
# do what the loop above does, and what a loop needs when runs get long: a log, evaluation, checkpoints.

# %%
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(sys.stdout):   # progress goes to stderr
    blocks = TextDataset.from_tokens(ids, T + 1)
    train_dataset, _ = blocks.split(0.1)                  # the last tenth is for evaluation
    arguments = TrainingArguments(folder, max_steps=60, learning_rate=1e-2, lr_scheduler_type="cosine",
                                  warmup_steps=20, weight_decay=0.1, adam_beta2=0.99, logging_steps=20,
                                  per_device_train_batch_size=16, save_strategy="no", disable_tqdm=True)
    trainer = Trainer(GPT(config, fastest, seed=0), arguments, train_dataset=train_dataset)
    result = trainer.train()
print(result.global_step, "steps, mean loss", round(result.training_loss, 2))
print(trainer.state.log_history[-1])

# %% [markdown]
# ## Stopping anywhere
#
# Runs get killed: a machine restarts, a queue's time is over. What must be saved so that one can go on as if nothing
# had happened? The weights, surely. But look at the loop: the next step also depends on
#
# - `m` and `v`, two more numbers for each weight;
# - the number of the step (schedule, bias correction);
# - which blocks come next: the state of the random numbers.
#
# The Trainer saves the first two, and needs nothing for the third: the blocks of step `s` are a function of the seed
# and `s`. Here is a power cut in step 28 of 40, with a checkpoint every 20 steps.
#
# **Predict:** the resumed run repeats the steps 21 to 28. Will its weights after step 40 be those of a run that was
# left alone to 7 digits, or to the last bit?

# %%
def run(folder, fails_in_step=None, resume=None):
    served = []

    def collate(items):                                   # called once a step: here the power can fail
        served.append(len(items))
        if len(served) == fails_in_step:
            raise SystemError("power cut")
        return {"input_ids": np.stack(items), "labels": np.stack(items)}

    arguments = TrainingArguments(folder, max_steps=40, learning_rate=1e-2, save_steps=20, logging_steps=40,
                                  disable_tqdm=True)
    model = GPT(config, fastest, seed=0)
    Trainer(model, arguments, collate, train_dataset).train(resume_from_checkpoint=resume)
    return model.params, len(served)

# %%
with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two, contextlib.redirect_stderr(sys.stdout):
    alone, _ = run(one)
    try:
        run(two, fails_in_step=28)
    except SystemError as error:
        print(error, "in step 28")
    resumed, steps = run(two, resume=True)
print(f"resumed: {steps} steps; the same bits in all {len(alone)} parameters:",
      all(np.array_equal(alone[name], resumed[name]) for name in alone))

# %% [markdown]
# To the last bit. That is worth more than it sounds: it can be *tested*, while "about the same" cannot.
#
# ## What is asked: causal, masked, knowledge
#
# So far the question was always "what comes next?". There are others, and a *collator* asks them: it makes a batch out
# of blocks of tokens, and decides what the model sees and what it is to predict. A label of -100 means "not asked
# here".
#
# - **causal** (GPT): sees everything to the left, predicts the next token, at every position;
# - **masked** (BERT): sees the whole text in both directions, but some of the tokens are hidden behind a special token
#   `<mask>`, and it predicts what stood there. BERT hides 15 %; we 30 %, twice as many questions in a short run;
# - **knowledge** (ERNIE, salient span masking): masked, but names are hidden as a whole.
#
# To see the difference, a small invented world, whose facts can be counted. Its names are invented too, so nothing but
# this text can teach them:

# %%
world = World(people=6, cities=6, countries=6)
story = world.text(60, filler=0.2)                        # each fact 60 times, and some that tell nothing
words = Tokenizer.train(story, vocab_size=400)
words.add_special_tokens({"mask_token": "<mask>"})
print(story[:180])
print(f"{len(world.triples)} facts; the first three:", *map(tuple, world.triples[:3]), sep="\n  ")

# %%
names, share = Gazetteer(world.names(), words), dict(mlm_probability=0.3, seed=0)
collators = {"causal": DataCollatorForLanguageModeling(words, mlm=False),
             "masked": DataCollatorForLanguageModeling(words, **share),
             "knowledge": DataCollatorForKnowledge(words, names, **share)}


def draw(panel, title, sees, asked):
    """Above what the model sees, below what it is to predict at that place."""
    x = 0
    for seen, target in zip(sees, asked, strict=True):
        changed = target and seen != target
        panel.text(x, 1, seen, family="monospace", fontsize=8, color=RED if changed and title != "causal" else "black",
                   bbox=dict(facecolor="#eeeeee", edgecolor="none", pad=1.5))
        panel.text(x, 0, target, family="monospace", fontsize=8, color=GREEN)
        x += max(len(seen), len(target)) + 1.6
    panel.set(title=title, xlim=(0, 150), ylim=(-0.5, 1.8))
    panel.axis("off")

# %%
def pieces(ids):
    return [words.decode([i]).strip(" ").replace("\n", "\\n") if i >= 0 else "" for i in ids]


example = np.array(words.encode("Ada Geiklamun was born in Gadraral.\nThe capital of Leisolia is Bidrobeir."))
figure, panels = plt.subplots(3, 1, figsize=(11, 3.4))
for panel, (name, collator) in zip(panels, collators.items(), strict=True):
    batch = collator([example], keys=[(2,)])              # the key decides what is hidden
    sees, labels = batch["input_ids"][0], batch["labels"][0]
    if name == "causal":
        sees, labels = sees[:-1], labels[1:]              # the Trainer does this shift
    draw(panel, name, pieces(sees), pieces(labels))
plt.show()

# %% [markdown]
# Black on grey is what the model sees, green what it must predict there, red what was put in place of the truth. Not
# every chosen token becomes `<mask>`: of ten, eight do, one becomes any token, one stays. The others are there because
# a trained model meets text without `<mask>`: it must not learn "no mask, nothing to do".
#
# ### Exercise 4 (8 minutes): masking
#
# Write it. `chosen` says which tokens are asked about; `draw` holds a random number from 0 to 1 for each token: below
# 0.8 it becomes `mask_id`, from 0.8 to below 0.9 the token in `others`, else it stays.

# %%
def mask_tokens(ids, chosen, draw, others, mask_id):
    """ids, draw, others (T,), chosen (T,) bool -> what the model sees (T,), labels (T,), -100 where nothing is asked"""
    ...

# %%
ten, draws = np.arange(10, 20), np.array([0.1, 0.85, 0.95, 0.5, 0.85, 0.95, 0.79, 0.8, 0.9, 0.0])
chosen = np.array([1, 1, 1, 0, 0, 0, 1, 1, 1, 0], bool)
check(mask_tokens,
      case(ten, np.zeros(10, bool), draws, ten[::-1], 99, want=(ten, np.full(10, -100)),
           why="nothing is chosen, so nothing changes and nothing is asked"),
      case(ten, chosen, draws, ten[::-1], 99, want=(np.array([99, 18, 12, 13, 14, 15, 99, 12, 18, 19]),
           np.array([10, 11, 12, -100, -100, -100, 16, 17, 18, -100])),
           why="result 0, what is seen: of the chosen, below 0.8 the mask, from there to below 0.9 another token; "
               "result 1, the labels: all chosen are asked, also those that stayed as they are"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `np.where(condition, a, b)`, three times. Only chosen tokens may change.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def mask_tokens(ids, chosen, draw, others, mask_id):
#     sees = np.where(chosen & (draw < 0.8), mask_id, ids)
#     sees = np.where(chosen & (draw >= 0.8) & (draw < 0.9), others, sees)
#     labels = np.where(chosen, ids, -100)
#     return sees, labels
# ```
# </details>

# %% [markdown]
# Two short runs, alike but for the collator. The model's attention must be *bidirectional* (`causal=False`), which the
# Trainer sees to.
#
# **Predict:** which of the two losses ends lower? Before you answer: in the picture, how hard is it to guess a single
# hidden piece of a name, and how hard a name of which nothing is left?

# %%
def fill_in_model(collator, steps=450):
    shape = ModelConfig(vocab_size=len(words), block_size=64, n_layer=1, n_head=4, n_embd=64, n_inner=128,
                        position="rope", causal=False)
    data = TextDataset.from_tokens(words.encode(story), 16)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        arguments = TrainingArguments(folder, max_steps=steps, learning_rate=5e-3, lr_scheduler_type="cosine",
                                      warmup_steps=20, adam_beta2=0.99, per_device_train_batch_size=32,
                                      logging_steps=10, save_strategy="no", disable_tqdm=True)
        trainer = Trainer(GPT(shape, fastest, seed=0), arguments, collator, data)
        trainer.train()
    return trainer.model, [(entry["step"], entry["loss"]) for entry in trainer.state.log_history]

# %%
filled = {name: fill_in_model(collators[name]) for name in ("masked", "knowledge")}
figure, panel = plt.subplots(figsize=(8, 3.2))
for name, (_, curve) in filled.items():
    panel.plot(*zip(*curve, strict=True), label=name)
panel.axhline(math.log(len(words)), color=GREY, linestyle="--", linewidth=1, label="uniform")
panel.set(title="The same model, asked two kinds of questions", xlabel="step", ylabel="nats per token asked",
          ylim=(0, 6.2))
panel.legend(frameon=False)
plt.show()

# %% [markdown]
# The masked model's loss is lower, and that does not make it the better model: its questions are easier. Of
# `G·ad·ra·ra·l` with one piece missing, the other pieces tell which name it is, and nothing has to be known about the
# world. Let us ask both models for names in sentences that they have not read in this wording, once with one piece
# hidden at a time, once with the whole name hidden.

# %%
def belief(model, sentence, name, whole):
    """The mean probability that the model gives to the true pieces of the name."""
    before, after = sentence.split("{object}")
    name = words.encode(" " + name)
    text = np.array(words.encode(before.removesuffix(" ")) + name + words.encode(after))
    places = len(words.encode(before.removesuffix(" "))) + np.arange(len(name))
    rows = np.tile(text, (len(name), 1))                                    # (pieces, T)
    for row, place in zip(rows, places, strict=True):
        row[places if whole else place] = words.mask_token_id
    logits = model.forward(rows)[np.arange(len(name)), places].astype(float)            # (pieces, V)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (p[np.arange(len(name)), name] / p.sum(axis=-1)).mean()

# %%
asked = [(sentence, name) for sentence, name, *_ in world.questions()
         if not sentence.startswith("{") and len(words.encode(" " + name)) > 1]
figure, panel = plt.subplots(figsize=(8, 3))
for offset, whole, color, label in ((-0.2, False, BLUE, "one piece hidden"), (0.2, True, RED, "the whole name hidden")):
    found = [np.mean([belief(model, *question, whole) for question in asked]) for model, _ in filled.values()]
    bars = panel.bar(np.arange(2) + offset, found, 0.38, color=color, label=label)
    panel.bar_label(bars, fmt="%.2f")
panel.set(title=f"{len(asked)} questions in new wordings", ylabel="probability of the truth", ylim=(0, 1))
panel.set_xticks(range(2), [f"trained {name}" for name in filled])
panel.legend(frameon=False)
plt.show()

# %% [markdown]
# A piece among its neighbours is easy for the model that was trained on pieces; a whole name is hard for both. Names
# are knowledge, and that takes far longer to learn than the few hundred steps of this notebook. Whether hiding whole
# names makes a model learn more facts must be measured with longer runs, several seeds and controls that hide as much:
# `minigpt bench knowledge` does that, and [knowledge.md](../minigpt/bench/results/knowledge.md) holds what it found.
#
# Last, a blank filled in: each city of this world in the same sentence, in the place of as many masks as it has pieces
# (so the bars need not add up to 1).

# %%
fact = next(triple for triple in world.triples if triple.relation == "born_in")
cities = world.entities["city"]
figure, panel = plt.subplots(figsize=(8, 3))
for offset, (name, (model_of, _)) in zip((-0.2, 0.2), filled.items(), strict=True):
    beliefs = [belief(model_of, f"{fact.subject} was born in {{object}}.", city, True) for city in cities]
    panel.bar(np.arange(len(cities)) + offset, beliefs, 0.38, label=f"trained {name}")
panel.set_xticks(range(len(cities)), [f"{city}\n(true)" if city == fact.object else city for city in cities])
panel.set(title=f"{fact.subject} was born in ___", ylabel="probability of its pieces")
panel.legend(frameon=False)
plt.show()

# %% [markdown]
# Where a wrong city stands higher than the true one, the model has learnt that a city belongs here, and not yet which.
# That is how knowledge comes: first the grammar of the sentence, then the kind of thing, last the thing itself.

# %% [markdown]
# ## Summary
#
# - A new model's loss is `ln V`; with uniform, unigram and bigram lines in the picture a loss curve can be read. Below
#   the bigram's line a model uses its context.
# - AdamW moves every parameter by about the learning rate, whatever the size of its gradient. Warm-up, cosine and
#   clipping at norm 1 keep the steps sensible. With far too high a learning rate the loss ends near the unigram's line.
# - Low loss on text that was read often is memory. Only text put aside tells what was learnt.
# - Two backends agree to the last digits at first and drift apart slowly; one backend gives the same bits every time.
#   So a run that is killed and resumed can end with exactly the weights of one that was not: weights, moments and step
#   are saved, and the batches follow from the seed and the step.
# - Collators decide what is asked: every next token, hidden tokens, or hidden names. Losses of different questions
#   cannot be compared.
#
# **Next:** [tutorial 6](06_layernorm_in_cpp.ipynb) makes these operations fast; [tutorial 12](12_sampling.ipynb) is
# about what comes out of a trained model. The assignment [a4_train](assignments/a4_train) has you train a GPT end to
# end, with ablations.
#
# ## Papers
#
# - Kingma, Ba, *Adam: A Method for Stochastic Optimization*, [arXiv:1412.6980](https://arxiv.org/abs/1412.6980).
# - Loshchilov, Hutter, *Decoupled Weight Decay Regularization* (AdamW),
#   [arXiv:1711.05101](https://arxiv.org/abs/1711.05101), and *SGDR* (the cosine),
#   [arXiv:1608.03983](https://arxiv.org/abs/1608.03983).
# - Pascanu, Mikolov, Bengio, *On the difficulty of training recurrent neural networks* (clipping),
#   [arXiv:1211.5063](https://arxiv.org/abs/1211.5063).
# - Radford and others, *Language Models are Unsupervised Multitask Learners* (GPT-2), 2019.
# - Devlin, Chang, Lee, Toutanova, *BERT*, [arXiv:1810.04805](https://arxiv.org/abs/1810.04805).
# - Sun and others, *ERNIE: Enhanced Representation through Knowledge Integration*,
#   [arXiv:1904.09223](https://arxiv.org/abs/1904.09223).
# - Guu, Lee, Tung, Pasupat, Chang, *REALM* (salient span masking),
#   [arXiv:2002.08909](https://arxiv.org/abs/2002.08909).
