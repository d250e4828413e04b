# %% [markdown]
# # 4. Backpropagation by hand
#
# **You will be able to** derive the backward pass of every operation of a GPT, from a linear layer to attention; prove
# a gradient right or wrong by finite differences, and say how small an error that proof can see; put the pieces
# together to the backward pass of a whole GPT; count what it costs in arithmetic and in memory.
#
# **Needs:** a laptop; NumPy; the derivative of `f(g(x))`.  **Before:** [3](03_gpt_forward.ipynb)
# **Time:** about 75 minutes

# %%
import matplotlib.pyplot as plt
import numpy as np
from lesson import BLUE, GREEN, GREY, ORANGE, RED, case, check, here, seconds, source

from minigpt import GPT, ModelConfig
from minigpt.ops import numpy_ops as ops

rng = np.random.default_rng(0)

# %% [markdown]
# ## Why not just try?
#
# To train a model is to move each of its parameters a little in the direction that lowers the loss. For that we need,
# for each parameter, a slope: by how much does the loss grow when this number grows by a little?
#
# One could try: move one parameter, compute the loss again, put the parameter back, go on to the next. That takes one
# forward pass for every parameter. The other way, *backpropagation*, gives all slopes at once.
#
# **Predict:** the trained model beside these tutorials has 940,800 parameters. How long would trying take, for one step
# of training? And how many forward passes is backpropagation worth: a thousand, a hundred, ten, two?

# %%
model = GPT.from_pretrained(here("checkpoint"), ops="numpy")
tokens = rng.integers(model.config.vocab_size, size=(4, 65))


def forward():
    return model.forward(tokens[:, :-1], tokens[:, 1:])


def forward_and_backward():
    forward()
    model.backward()


time_forward = seconds(forward)
time_backward = seconds(forward_and_backward) - time_forward
print(f"by trying: {model.num_parameters():,} forward passes of {1e3 * time_forward:.0f} ms are "
      f"{model.num_parameters() * time_forward / 3600:.1f} hours for one step of training")
print(f"by backpropagation: as long as {time_backward / time_forward:.1f} forward passes")

# %% [markdown]
# The rest of this tutorial is how that is possible. There is one rule in it, and one method to find out whether we
# have applied it correctly.
#
# ## The rule
#
# The loss `L` is one number. For an array `x` anywhere in the computation let `dx` be the array of slopes of `L`:
# `dx[i]` is the derivative of `L` with respect to `x[i]`. So `dx` always has the shape of `x`. It is called the
# *gradient* of `x` (of `L` with respect to `x`, in full), and all code of this project writes it with a `d` in front.
#
# An operation computes `y = f(x)`, and what comes after it computes `L` from `y`. Going backwards, somebody hands us
# `dy`. The chain rule says what we hand on: every `x[i]` reaches `L` through every `y[j]` that depends on it, and these
# ways add up,
#
# $$dx_i = \sum_j dy_j \, \frac{\partial y_j}{\partial x_i} .$$
#
# The table of all `∂y[j] / ∂x[i]` is the *Jacobian* `J` of the operation, with a row for each output and a column for
# each input. Then the rule reads `dx = dy @ J`: a *vector-Jacobian product*. This is all there is to backpropagation.
# What is left is to find, for each operation, a way of computing `dy @ J` without ever making `J`.
#
# How large would it be? Take the first linear layer of the MLP in our model, 128 numbers to 512, on 64 tokens. Outputs:
# 64 · 512; inputs: 64 · 128.

# %%
outputs, inputs = 64 * 512, 64 * 128
print(f"J: {outputs:,} x {inputs:,} numbers of 4 bytes = {outputs * inputs * 4 / 1e9:.2f} GB; "
      f"dy: {outputs * 4 / 1e3:.0f} kB, dx: {inputs * 4 / 1e3:.0f} kB")

# %% [markdown]
# Jacobians are never made because they are mostly zeros, or copies of each other, or both. Here are those of three
# operations on 4 tokens of 3 channels (12 numbers in, 12 out), found by moving each input a little. Each of them has a
# structure, and each structure will become a short formula below.

# %%
def jacobian(f, x, h=1e-6):
    """J[j, i]: how much output j grows per unit of input i. Every input is moved there and back."""
    moves = h * np.eye(x.size).reshape(x.size, *x.shape)
    return np.stack([(f(x + move) - f(x - move)).ravel() for move in moves], axis=1) / (2 * h)


x, W = rng.normal(size=(4, 3)), rng.normal(size=(3, 3))
shown = {"gelu: each element for itself": ops.gelu_forward,
         "linear: each token for itself": lambda x: x @ W.T,
         "causal attention: tokens mix": lambda x: ops.attention_forward(*[x[None, None]] * 3)[0][0, 0]}
figure, panels = plt.subplots(1, 3, figsize=(9, 3.2))
for panel, (title, f) in zip(panels, shown.items(), strict=True):
    J = jacobian(f, x)
    panel.imshow(J, cmap="RdBu", vmin=-1.5, vmax=1.5)
    panel.set(title=f"{title}\n{np.mean(np.abs(J) < 1e-9):.0%} zeros", xlabel="input", ylabel="output",
              xticks=range(0, 12, 3), yticks=range(0, 12, 3))
plt.show()

# %% [markdown]
# One more thing about the rule before we use it: *which way round?* A model is a chain of operations, so its Jacobian
# is a product `J3 @ J2 @ J1`. The gradient of the loss is the row `dy` times that product, and a product can be
# multiplied out from either end. Say each `J` is `n` x `n`:
#
# - from the end of the model, `((dy @ J3) @ J2) @ J1`: three times a row times a matrix, 3 · 2n² FLOPs;
# - from its beginning, `dy @ (J3 @ (J2 @ J1))`: two products of matrices and one of a row, 2 · 2n³ + 2n² FLOPs.
#
# **Predict:** for `n = 600`, by what factor does the first take fewer FLOPs? Is the measured factor of the times as
# large, or smaller?

# %%
n = 600
J1, J2, J3 = rng.normal(size=(3, n, n))
dy = rng.normal(size=(1, n))
from_the_end = seconds(lambda: ((dy @ J3) @ J2) @ J1)
from_the_beginning = seconds(lambda: dy @ (J3 @ (J2 @ J1)))
print(f"FLOPs: {(4 * n**3 + 2 * n**2) / (6 * n**2):.0f} times as many from the beginning")
print(f"time: {from_the_beginning / from_the_end:.0f} times as long")

# %% [markdown]
# (On a quiet machine the factor of the times is smaller: a product of two matrices uses each number it fetches `n`
# times, a row times a matrix only once, so the row waits for memory. [Tutorial 7](07_matmul.ipynb) is about that.) We
# go from the end because there is *one* loss. That is why it is called *back*propagation, and why it gets all slopes
# for the price of a few forward passes.
#
# ## The judge: finite differences
#
# A wrong gradient does not crash. The loss still falls, only more slowly, and nobody notices for a week. So every
# backward function that we write is put before a judge who knows nothing of calculus: move the input a little, and look
# at what the loss does. Moving both ways is far better than moving one way, by Taylor:
#
# - one-sided: $\frac{f(x+h) - f(x)}{h} = f'(x) + \frac{h}{2} f''(x) + \dots$
# - central: $\frac{f(x+h) - f(x-h)}{2h} = f'(x) + \frac{h^2}{6} f'''(x) + \dots$
#
# So take a tiny `h`? There is a second error. Computers round: `f(x+h)` is only known to a relative `ε` (1.1e-16 in
# float64, 6e-8 in float32), and dividing by `h` makes that `ε / h`. One error falls with `h`, the other grows, and
# their sum is least where `h²/6 ≈ ε/h`, that is `h ≈ (6ε)^(1/3)`.
#
# **Predict:** for `f(x) = e^x` at `x = 1`, the error is drawn against `h` on logarithmic axes. What shape has the
# curve? Where is its lowest point in float64, and where in float32? Compute `(6ε)^(1/3)` first.

# %%
h = np.logspace(-15, 0, 200)
figure, panel = plt.subplots(figsize=(8, 3.6))
for label, dtype, central, color in (("float64, one-sided", np.float64, False, ORANGE),
                                     ("float64, central", np.float64, True, BLUE),
                                     ("float32, central", np.float32, True, RED)):
    at, step = dtype(1), h.astype(dtype)
    back = at - step if central else at
    slope = (np.exp(at + step) - np.exp(back)) / (step * dtype(2 if central else 1))
    panel.loglog(h, np.abs(slope / np.e - 1) + 1e-17, color=color, label=label)
    if central:
        panel.axvline((3 * np.finfo(dtype).eps) ** (1 / 3), color=color, linestyle=":", linewidth=1)
panel.set(title="How wrong the measured slope of exp at 1 is (dotted: the h that we computed)", xlabel="h",
          ylabel="relative error", ylim=(1e-13, 10))
panel.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# Three U's. (NumPy's `eps` is the distance between 1 and the next number, which is twice the largest rounding error.)
# Read off what each can prove: in float64 the central difference knows some ten digits of a slope, in float32 at its
# best four or five, and only if one hits the right `h`. And that was one exponential; a loss is a sum over thousands of
# such numbers. So: **gradients are checked in float64, with central differences and `h` near 1e-5**, whatever the
# precision in which one will train. At the far left of the float32 curve the error is exactly 100 %: `1 + h` is 1, the
# difference 0.
#
# ### Exercise 1 (8 minutes): the judge
#
# Write `numeric_gradient`: the gradient of a function `f` that takes an array and returns one number, by central
# differences, element by element. `np.ndindex(*x.shape)` gives all indices of an array of any shape. `f` must be called
# with arrays that differ from `x` in one element; `x` itself must stay as it is.

# %%
def numeric_gradient(f, x, h=1e-5):
    """f: (any shape) -> a number;  x: float64 -> the gradient, of the shape of x"""
    ...

# %%
def cubes(x):
    return (x ** 3).sum()


def mixed(x):
    return np.exp(x[0] * x[1]).sum()


x = rng.normal(1, 0.5, size=(2, 3))
check(numeric_gradient,
      case(cubes, x, want=3 * x ** 2, why="each element is x^3, so its slope is 3 x^2: moved both ways, over 2 h?"),
      case(mixed, x, want=x[::-1] * np.exp(x[0] * x[1]), why="is only one element moved at a time?"), tolerance=1e-8)

# %% [markdown]
# <details><summary>Hint</summary>
#
# For each index `i`: two copies of `x`, one with `+= h` at `i`, the other with `-= h`. Two names for one array are not
# two copies.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def numeric_gradient(f, x, h=1e-5):
#     slopes = np.zeros(x.shape)
#     for i in np.ndindex(*x.shape):
#         there, back = x.copy(), x.copy()
#         there[i] += h
#         back[i] -= h
#         slopes[i] = (f(there) - f(back)) / (2 * h)
#     return slopes
# ```
# </details>

# %% [markdown]
# Element by element is thorough, and slow. For large arrays there is a quicker judge: move *all* elements at once,
# along a random direction `u`. If the gradient is right, the loss must grow at the rate `sum(dx * u)`. Two evaluations
# check an array of any size, and an error in any element shows, because a random direction has a part along everything.

# %%
def disagreement(loss, x, dx, h=1e-5):
    """How far the claimed gradient dx is from the measured slope, along one random direction; relative."""
    u = np.random.default_rng(1).normal(size=x.shape)
    measured = (loss(x + h * u) - loss(x - h * u)) / (2 * h)
    claimed = (dx * u).sum()
    return abs(measured - claimed) / abs(measured)


x = rng.normal(1, 0.5, size=(20, 30))
print(f"3 x^2, the gradient of cubes:      {disagreement(cubes, x, 3 * x ** 2):.1e}")
almost = 3 * x ** 2
almost[7, 11] *= 1.01
print(f"the same, 1 % off in one of 600:   {disagreement(cubes, x, almost):.1e}")

# %% [markdown]
# ## Linear: the shapes decide
#
# `y = x W^T + b`, in one element `y[r, n] = sum_k x[r, k] W[n, k] + b[n]`: `r` counts rows (tokens), `k` inputs, `n`
# outputs. Suppose `dy (rows, N)` is given. Who depends on what?
#
# - `x[r, k]` goes into `y[r, n]` for every `n`, with the factor `W[n, k]`: `dx[r, k] = sum_n dy[r, n] W[n, k]`;
# - `W[n, k]` goes into `y[r, n]` for every *row*, with the factor `x[r, k]`: `dW[n, k] = sum_r dy[r, n] x[r, k]`;
# - `b[n]` goes into `y[r, n]` for every row, with the factor 1: `db[n] = sum_r dy[r, n]`.
#
# The first two are products of matrices, and one need not remember which: `dx` must be (rows, K), and of a (rows, N)
# and an (N, K) array only `dy @ W` is that. `dW` must be (N, K), so it is `dy.T @ x`. Note what the second one means: a
# sum over tokens. Every token leaves its remark on the same weights, an *outer product* of what it wanted (`dy`) and
# what it saw (`x`), and the remarks are added up:

# %%
x, dy = rng.normal(size=(3, 8)), rng.normal(size=(3, 6))                    # 3 tokens, K = 8, N = 6
remarks = [np.outer(dy[r], x[r]) for r in range(3)]
figure, panels = plt.subplots(1, 4, figsize=(9, 2.4))
for panel, remark, title in zip(panels, [*remarks, dy.T @ x], ["token 0", "token 1", "token 2", "dW: the sum"],
                                strict=True):
    panel.imshow(remark, cmap="RdBu", vmin=-4, vmax=4)
    panel.set(title=title, xlabel="k, what it saw")
panels[0].set_ylabel("n, what it wanted")
plt.show()
print("sum of the three - dy.T @ x:", np.abs(sum(remarks) - dy.T @ x).max())

# %% [markdown]
# ### Exercise 2 (8 minutes): linear, backwards
#
# In a GPT there are two axes of rows: `x` is (B, T, K), texts and tokens. Write `linear_backward` for it. Every token
# of every text uses the same weights and the same bias.

# %%
def linear_backward(dy, x, weight):
    """dy (B, T, N), x (B, T, K), weight (N, K) -> dx (B, T, K), dweight (N, K), dbias (N,)"""
    ...

# %%
dy, x, weight = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 3)), rng.normal(size=(4, 3))
check(linear_backward,
      case(dy[:1, :1], x[:1, :1], weight, want=ops.linear_backward(dy[:1, :1], x[:1, :1], weight),
           why="one token only: dx, dweight and dbias are in this order, and each has the shape of what it belongs to"),
      case(dy, x, weight, want=ops.linear_backward(dy, x, weight),
           why="all tokens of all texts share weight and bias: sum (do not average) all axes but the last"),
      tolerance=1e-12)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `dy.reshape(-1, N)` makes one axis of rows out of both. `dx` needs no reshaping: `@` works on the last axis.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def linear_backward(dy, x, weight):
#     dy_rows = dy.reshape(-1, dy.shape[-1])                                # (rows, N)
#     x_rows = x.reshape(-1, x.shape[-1])                                   # (rows, K)
#     dx = dy @ weight                                                      # (B, T, K)
#     dweight = dy_rows.T @ x_rows                                          # (N, K)
#     dbias = dy_rows.sum(axis=0)                                           # (N,)
#     return dx, dweight, dbias
# ```
# </details>

# %% [markdown]
# The best known mistake here is `dbias = dy.sum(axis=0)`. It leaves a (T, N) array, and NumPy's broadcasting may carry
# it a long way before anything breaks: a bias (N,) minus a step (T, N) is a "bias" (T, N), another one for every
# position, which even trains. A gradient that has not exactly the shape of its parameter is wrong; it is worth an
# assertion. The rule behind it: **what broadcasting copied in the forward pass, the backward pass sums.**
#
# ## Softmax and cross-entropy
#
# `p = softmax(s)` makes probabilities of scores: `p[j] = exp(s[j]) / sum_i exp(s[i])`. Moving one score moves all
# probabilities, since they must add up to 1. With the quotient rule, `∂p[j]/∂s[i] = p[j] ([i = j] - p[i])`, where
# `[i = j]` is 1 if the two are the same and 0 otherwise. Into the chain rule:
#
# $$ds_i = \sum_j dp_j \, p_j \, ([i = j] - p_i) = p_i \, (dp_i - \sum_j p_j \, dp_j) .$$
#
# In words: take from `dp` its mean, weighted with the probabilities, and multiply by `p`. No Jacobian is left, and the
# work is as small as that of the forward pass.
#
# **Predict:** what is `ds` if `dp` is the same for all, say 5 everywhere?

# %%
def softmax(s):
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(dp, p):
    return p * (dp - (p * dp).sum(axis=-1, keepdims=True))


s, dp = rng.normal(size=(2, 10)), rng.normal(size=(2, 10))
p = softmax(s)
print("dp = 5 everywhere:", np.abs(softmax_backward(np.full((2, 10), 5.0), p)).max())
print("any dp, the sum of each row of ds:", softmax_backward(dp, p).sum(axis=-1))
print(f"against differences: {disagreement(lambda s: (softmax(s) * dp).sum(), s, softmax_backward(dp, p)):.1e}")

# %% [markdown]
# (Nearly) nothing: the probabilities add up to 1 whatever the scores do, so to wish all of them larger is to wish
# nothing. Seen from the other side, adding a constant to all scores changes no probability, so `ds` has no part in that
# direction: it adds up to 0.
#
# (The last line shows how to check an operation that returns many numbers: weigh them with any fixed `dp` and add them
# up. Then that is the loss, and `dp` is its gradient at the operation's output.)
#
# At the end of a GPT stands cross-entropy: the loss of a token is `-log p[target]`. So `dp` is `-1 / p[target]` at the
# target and 0 elsewhere; `sum_j p[j] dp[j]` is -1; and the softmax's formula gives `ds = p + (p · dp)`, that is
#
# $$ds = p - \mathrm{onehot}(target) .$$
#
# The division is gone, which is good: `p[target]` may be as small as 1e-30. What the model believed, less what was
# true. The surest mistakes get the strongest pull, and no score is ever pulled by more than 1.

# %%
def cross_entropy_backward(logits, targets):
    """logits (rows, V), targets (rows,) -> the gradient of the mean loss, (rows, V)"""
    ds = softmax(logits)
    ds[np.arange(len(targets)), targets] -= 1
    return ds / len(targets)


logits, targets = rng.normal(0, 2, size=(3, 12)), np.array([2, 7, 7])
ds = cross_entropy_backward(logits, targets)
_, lse = ops.cross_entropy_forward(logits, targets)
theirs = ops.cross_entropy_backward(1 / 3, logits, targets, lse)
print(f"largest difference from numpy_ops.cross_entropy_backward: {np.abs(ds - theirs).max():.1e}")

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 2.8))
panels[0].bar(range(12), softmax(logits)[0], color=[RED if i == 2 else BLUE for i in range(12)])
panels[0].set(title="what the model believes (red: the truth)", xlabel="token", ylabel="probability")
panels[1].bar(range(12), 3 * ds[0], color=[RED if i == 2 else BLUE for i in range(12)])
panels[1].set(title="the gradient of its score: p - onehot", xlabel="token", ylabel="slope of the loss")
plt.show()

# %% [markdown]
# A step of training goes *against* the gradient: the true token's score rises, all others fall, each by as much as it
# had been believed in.
#
# ## Layernorm: three terms
#
# Layernorm takes a row `x` of `C` numbers to mean 0 and variance 1, then scales and shifts each channel:
#
#     mean = x.mean();   r = 1 / sqrt(((x - mean)²).mean() + eps);   xhat = (x - mean) r;   y = xhat weight + bias
#
# The outer part is easy: `dbias = sum dy` and `dweight = sum dy xhat` over all rows, and `dxhat = dy weight`. From
# `xhat` to `x` there are three ways, because `x[i]` also moves the mean and the variance of its row:
#
# 1. directly, with the factor `r`: `r dxhat[i]`;
# 2. through the mean, `∂mean/∂x[i] = 1/C`, by which every `xhat[j]` falls: `-r mean(dxhat)`;
# 3. through `r`. With `c = x - mean`, the variance is `mean(c²)`, so `∂variance/∂x[i] = 2 c[i] / C` (the mean's own
#    move drops out, as `c` adds up to 0), and `∂r/∂variance = -r³/2`. All `xhat[j] = c[j] r` follow `r`:
#    `sum_j dxhat[j] c[j] · (-r³/2) · 2 c[i] / C`, which is, with `xhat = c r`, `-r xhat[i] mean(dxhat xhat)`.
#
# Together:
#
# $$dx = r \, \big( \, dxhat - \mathrm{mean}(dxhat) - xhat \cdot \mathrm{mean}(dxhat \cdot xhat) \, \big) .$$
#
# There is a picture in it. Layernorm does not notice when a constant is added to `x`, nor when `x - mean` grows as a
# whole. So `dx` can have no part along `(1, 1, ..., 1)`, and none along `xhat`. The second and third term take these
# two parts away; nothing else happens. For `C = 3` one can see it: all `xhat` lie in the plane with mean 0, on a
# circle.

# %%
def normalise(x, eps=1e-5):
    mean = x.mean(axis=-1, keepdims=True)                                   # (..., 1)
    r = 1 / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + eps)   # (..., 1)
    return (x - mean) * r, r


xhat, r = normalise(np.array([0.3, 2.0, -0.4]))
dxhat = np.array([1.6, 1.4, -0.2])
in_plane = dxhat - dxhat.mean()                                             # the second term has been taken away
tangent = in_plane - xhat * (dxhat * xhat).mean()                           # and the third
axes = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])             # two directions that span the plane
print(f"what is left has along (1, 1, 1): {abs(tangent.sum()):.0e}, along xhat: {abs(tangent @ xhat):.0e}")

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(1, 1.3))
angle = np.linspace(0, 2 * np.pi, 100)
panels[0].plot(3 ** 0.5 * np.cos(angle), 3 ** 0.5 * np.sin(angle), color=GREY, linewidth=1)
for vector, start, color in ((xhat, 0 * xhat, GREY), (in_plane, xhat, ORANGE), (tangent, xhat, GREEN)):
    (x0, y0), (dx0, dy0) = axes @ start, axes @ vector
    panels[0].arrow(x0, y0, dx0, dy0, color=color, width=0.03, length_includes_head=True)
panels[0].set(title="the plane of mean 0: grey xhat,\norange dxhat - mean, green what is left", aspect="equal",
              xlabel="first direction", ylabel="second direction", xlim=(-2.2, 2.2), ylim=(-2, 3))
terms = {"dxhat": dxhat, "- its mean": in_plane, "- its part along xhat": tangent}
for i, ((label, values), color) in enumerate(zip(terms.items(), (GREY, ORANGE, GREEN), strict=True)):
    panels[1].bar(np.arange(3) + 0.27 * (i - 1), values, 0.25, label=label, color=color)
panels[1].axhline(0, color="black", linewidth=0.5)
panels[1].set(title="the same, channel by channel", xticks=range(3), xlabel="channel", ylabel="gradient")
panels[1].legend(frameon=False)
plt.show()

# %% [markdown]
# The green arrow touches the circle: it is the only way in which `xhat` can move. (`eps` makes `xhat` a little shorter
# than the circle, which leaves the trace of its direction that is printed above.)
#
# Many people test a backward pass with the loss `y.sum()`, for which `dy` is 1 everywhere: it is the first thing that
# comes to mind. Below stand the right formula and two wrong ones, one that forgets the third term, and that one
# times 1000.
#
# **Predict:** with `weight = 1`, which of the three does the test with `dy = 1` find wrong?

# %%
x = rng.normal(1, 2, size=(4, 16))
xhat, r = normalise(x)
formulas = {
    "right": lambda d: r * (d - d.mean(-1, keepdims=True) - xhat * (d * xhat).mean(-1, keepdims=True)),
    "without the third term": lambda d: r * (d - d.mean(-1, keepdims=True)),
    "1000 times that": lambda d: 1000 * r * (d - d.mean(-1, keepdims=True)),
}
for name, dxhat in (("dy = 1     ", np.ones((4, 16))), ("dy random  ", rng.normal(size=(4, 16)))):
    for what, formula in formulas.items():
        def loss(x, dxhat=dxhat):
            return (normalise(x)[0] * dxhat).sum()
        found = np.abs(jacobian(loss, x).reshape(x.shape) - formula(dxhat)).max()
        print(f"{name} {what:24} largest distance from finite differences: {found:.1e}")

# %% [markdown]
# None of them. The sum of a row of `xhat` is 0, whatever `x` is, so its gradient is 0, and all three formulas return 0,
# which is right. A judge who asks only one question, and that one a question to which everybody knows the answer, is
# worth nothing. **Test a backward pass with a random `dy`**, and with weights that are not 1 and biases that are not 0.
#
# ### Exercise 3 (12 minutes): layernorm, backwards
#
# Write it for any number of leading axes, with `dweight` and `dbias` too. `mean` and `rstd` (the `r` above) were kept
# by the forward pass; they have the shape of `x` without its last axis.

# %%
def layernorm_backward(dy, x, weight, mean, rstd):
    """dy, x (..., C), weight (C,), mean, rstd (...) -> dx (..., C), dweight (C,), dbias (C,)"""
    ...

# %%
def layernorm_case(shape, why):
    x, dy = rng.normal(2, 3, shape), rng.normal(size=shape)
    weight, bias = rng.normal(1, 0.5, shape[-1]), rng.normal(size=shape[-1])
    _, mean, rstd = ops.layernorm_forward(x, weight, bias)
    arguments = dy, x, weight, mean, rstd
    return case(*arguments, want=ops.layernorm_backward(*arguments), why=why)


check(layernorm_backward,
      layernorm_case((1, 8), "one row. Result 0: dxhat is dy * weight, and there are three terms. Result 1: dy * xhat"),
      layernorm_case((5, 8), "rows: dweight and dbias add up over them, the two means of dx are taken in each row"),
      layernorm_case((2, 3, 8), "texts and tokens: dweight and dbias sum all axes but the last"), tolerance=1e-12)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `mean[..., None]` has a last axis of length 1, which broadcasts against `x`. Compute `xhat`, then `dxhat`, then the
# three terms with `.mean(axis=-1, keepdims=True)`.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def layernorm_backward(dy, x, weight, mean, rstd):
#     xhat = (x - mean[..., None]) * rstd[..., None]                        # (..., C)
#     dxhat = dy * weight                                                   # (..., C)
#     along_ones = dxhat.mean(axis=-1, keepdims=True)                       # (..., 1)
#     along_xhat = (dxhat * xhat).mean(axis=-1, keepdims=True)              # (..., 1)
#     dx = rstd[..., None] * (dxhat - along_ones - xhat * along_xhat)       # (..., C)
#     rows = tuple(range(x.ndim - 1))                                       # all axes but the last
#     return dx, (dy * xhat).sum(axis=rows), dy.sum(axis=rows)
# ```
# </details>

# %% [markdown]
# ## GELU: each element for itself
#
# An operation that works element by element has a diagonal Jacobian, so `dx = dy * f'(x)`. For GPT-2's gelu,
# `y = x/2 (1 + tanh u)` with `u = √(2/π) (x + 0.044715 x³)`, the product rule and `tanh' = 1 - tanh²` give
# `f' = (1 + tanh u)/2 + x/2 (1 - tanh² u) du/dx`.

# %%
def gelu_backward(dy, x):
    a, b = np.sqrt(2 / np.pi), 0.044715
    t = np.tanh(a * (x + b * x ** 3))
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * a * (1 + 3 * b * x ** 2))


x = np.linspace(-4, 4, 400)
slope = gelu_backward(np.ones(400), x)
theirs = ops.gelu_backward(np.ones(400), x)
print(f"largest difference from numpy_ops.gelu_backward: {np.abs(slope - theirs).max():.1e}")
figure, panel = plt.subplots(figsize=(8, 2.8))
panel.plot(x, ops.gelu_forward(x), label="gelu")
panel.plot(x, slope, label="its slope")
panel.axhline(0, color="black", linewidth=0.5)
panel.set(title=f"gelu's slope lies between {slope.min():.2f} and {slope.max():.2f}", xlabel="x", ylim=(-0.5, 2))
panel.legend(frameon=False)
plt.show()

# %% [markdown]
# Where the slope is near 0, left of -3, nothing passes back: a neuron that is off does not learn. And the slope needs
# `x`, the *input* of gelu. We will have to keep it.
#
# ## Attention: five products
#
# One head, forward ([tutorial 2](02_attention.ipynb)): `S = scale Q K^T`, `P = softmax(S)` row by row over the keys
# that a query may see, `O = P V`. We have `dO (T, D)`. Every step of the way back has been done above:
#
# - `O = P V` is a product of matrices, as in linear: `dV = P^T dO`, `dP = dO V^T`;
# - softmax: `dS = P (dP - sum_j P dP)`, the sum along each row;
# - `S = scale Q K^T`, a product again: `dQ = scale dS K`, `dK = scale dS^T Q`.
#
# Where a query may not look, `P` is 0, and so is `dS`: the mask needs no line of its own.

# %%
T, D = 12, 16
q, k, v, do = rng.normal(size=(4, T, D))
scale = D ** -0.5
mask = np.tril(np.ones((T, T), bool))                                       # query i sees the keys j <= i
P = softmax(np.where(mask, scale * q @ k.T, -np.inf))                       # (T, T)
dP = do @ v.T                                                               # (T, T)
dS = softmax_backward(dP, P)                                                # (T, T)
figure, panels = plt.subplots(1, 3, figsize=(9, 3))
for panel, values, title in zip(panels, (P, dP, dS), ("P", "dP", "dS"), strict=True):
    limit = np.abs(values).max()
    panel.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit)
    panel.set(title=f"{title}: {values.min():.2f} to {values.max():.2f}", xlabel="key", ylabel="query",
              xticks=range(0, 12, 3), yticks=range(0, 12, 3))
plt.show()
print(f"the largest sum of a row of dS: {np.abs(dS.sum(axis=-1)).max():.1e}")

# %% [markdown]
# `dP` has values above the diagonal too, but they meet a `P` of 0. In the first row there is only one key to see: `P`
# is 1, and nothing can be learnt, so `dS` is 0 there.
#
# The softmax's sum, `delta[i] = sum_j P[i, j] dP[i, j]`, runs along a whole row of two T x T arrays. That is awkward
# for a kernel that never wants to hold a row (FlashAttention, [tutorial 8](08_flash_attention.ipynb)). But put in what
# `dP` is: `dP[i, j] = dO[i] · V[j]`.
#
# **Predict:** `sum_j P[i, j] (dO[i] · V[j])`: pull `dO[i]` out of the sum. What is left inside, and how many numbers
# are needed for `delta` then?

# %%
O = P @ v                                                                   # (T, D), what the forward pass returned
delta_from_rows = (P * dP).sum(axis=-1)                                     # T x T numbers, twice
delta_from_outputs = (do * O).sum(axis=-1)                                  # T x D numbers, twice
print(f"largest difference: {np.abs(delta_from_rows - delta_from_outputs).max():.1e}")
print(f"for T = 4096, D = 64: {2 * 4096 * 4096:,} numbers or {2 * 4096 * 64:,}, {4096 // 64} times fewer")

# %% [markdown]
# Inside is `sum_j P[i, j] V[j]`, which is the output `O[i]` that we already have. This small identity is one of the two
# reasons why FlashAttention can go backwards at all; `lse`, below, is the other.
#
# ### Exercise 4 (12 minutes): attention, backwards
#
# Write it for one head, with the causal mask. Compute `P` again from `q` and `k`.

# %%
def attention_backward(do, q, k, v):
    """do, q, k, v (T, D) -> dq, dk, dv (T, D); causal, scale 1 / sqrt(D)"""
    ...

# %%
def attention_case(T, D, why):
    q, k, v, do = rng.normal(size=(4, 1, 1, T, D))
    grads = ops.attention_backward(do, q, k, v, *ops.attention_forward(q, k, v))
    return case(*(x[0, 0] for x in (do, q, k, v)), want=tuple(x[0, 0] for x in grads), why=why)


check(attention_backward,
      attention_case(6, 4, "result 0 (dq), 1 (dk): softmax_backward, the mask, the scale, dk's transpose; 2 is dv"),
      attention_case(5, 9, "here the scale is 1 / 3: it belongs to S, and so to dq and to dk"), tolerance=1e-12)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The lines for `P`, `dP` and `dS` stand in the cells above. `dk[j]` collects from all queries `i` that look at key `j`,
# so the sum runs over the *first* axis of `dS`.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def attention_backward(do, q, k, v):
#     T, D = q.shape
#     scale = 1 / np.sqrt(D)
#     s = np.where(np.tril(np.ones((T, T), bool)), scale * q @ k.T, -np.inf)
#     p = softmax(s)                                                        # (T, T)
#     dv = p.T @ do                                                         # (T, D)
#     dp = do @ v.T                                                         # (T, T)
#     delta = (do * (p @ v)).sum(axis=-1, keepdims=True)                    # (T, 1)
#     ds = scale * p * (dp - delta)                                         # (T, T)
#     return ds @ k, ds.T @ q, dv
# ```
# </details>

# %% [markdown]
# The package's own. It recomputes `P` in one line from `lse`, the logarithm of each row's sum of exponentials that the
# forward pass returned (`P = exp(S - lse)`), and groups of query heads may share a key head. The rest is yours:

# %%
source("minigpt/ops/numpy_ops.py", "delta = (dout * out).sum", "dv = (p.swapaxes")
q, k, v, do = rng.normal(size=(4, 2, 3, 9, 8))                              # B = 2, H = 3, T = 9, D = 8
out, lse = ops.attention_forward(q, k, v)
grads = ops.attention_backward(do, q, k, v, out, lse)
losses = (lambda x: (ops.attention_forward(x, k, v)[0] * do).sum(),
          lambda x: (ops.attention_forward(q, x, v)[0] * do).sum(),
          lambda x: (ops.attention_forward(q, k, x)[0] * do).sum())
for name, loss, x, dx in zip(("dq", "dk", "dv"), losses, (q, k, v), grads, strict=True):
    print(f"{name} against finite differences: {disagreement(loss, x, dx):.1e}")

# %% [markdown]
# ## Where ways meet, gradients add
#
# The rule was a sum over all the ways in which a number reaches the loss. Three places of a GPT are nothing but that.
#
# **The residual connection.** `h2 = h + f(h)`: `h` reaches `h2` by two ways, so `dh = dh2 + (what f hands back)`. The
# plain `dh2` in this sum is why deep models can be trained: whatever the branches do, the gradient also comes through
# untouched.
#
# **The embedding.** `x[t] = wte[tokens[t]]` copies rows, so backwards the rows are summed: `dwte[tokens[t]] += dx[t]`,
# for every `t`. In NumPy one writes `dwte[tokens] += dx`, and this is where it goes wrong.
#
# **Predict:** the text is `the cat saw the cat and the dog`, and `dx` is 1 for every token. What does
# `dwte[tokens] += dx` leave in the row of `the`?

# %%
words = "the cat saw the cat and the dog".split()
vocabulary = sorted(set(words))
ids = np.array([vocabulary.index(word) for word in words])
fancy, added = np.zeros(len(vocabulary)), np.zeros(len(vocabulary))
fancy[ids] += np.ones(len(ids))
np.add.at(added, ids, np.ones(len(ids)))
figure, panel = plt.subplots(figsize=(8, 2.6))
panel.bar(np.arange(len(vocabulary)) - 0.2, fancy, 0.38, color=RED, label="dwte[tokens] += dx")
panel.bar(np.arange(len(vocabulary)) + 0.2, added, 0.38, color=BLUE, label="np.add.at(dwte, tokens, dx)")
panel.set(title="What arrives in each row of the table", ylabel="gradient", yticks=range(4))
panel.set_xticks(range(len(vocabulary)), vocabulary)
panel.legend(frameon=False)
plt.show()

# %% [markdown]
# `a[ids] += b` reads all rows first, adds, and writes all back: of three additions to one row the last write survives.
# `np.add.at` adds one after the other. (On a GPU the same trap is called a race, and the same cure an atomic addition.)
# With real text the mistake drops most of the gradient of frequent tokens, and the model still learns, worse.
#
# **Tied weights.** GPT-2 uses one table twice: rows of `wte` go in at the bottom as embeddings, and the logits at the
# top are `y wte^T`. Two ways to the loss, so two gradients, which are added: the head's, a dense `dlogits^T y`, and the
# embedding's, the rows above.
#
# ## A whole GPT
#
# Now we have all pieces. A layer of GPT-2, forward, with what has to be kept; below it the layer backward. Read the two
# side by side: each line has its counterpart in the other, in reverse order. (The functions are the package's. They
# compute what yours compute; `linear_backward` and `layernorm_backward` return three gradients, so `back` takes the
# last two to the side.)

# %%
def heads(x, n):
    return x.reshape(*x.shape[:2], n, -1).swapaxes(1, 2)                                # (B, n, T, D)


def merged(x):
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)                         # (B, T, n D)

# %%
def layer_forward(w, h, H):
    """w(name) gives a weight. h (B, T, C) -> h (B, T, C), and what the backward pass needs"""
    n1, m1, r1 = ops.layernorm_forward(h, w("norm1.weight"), w("norm1.bias"))
    qkv = ops.linear_forward(n1, w("attn.qkv.weight"), w("attn.qkv.bias"))              # (B, T, 3 C)
    q, k, v = np.split(heads(qkv, 3 * H), 3, axis=1)                                    # (B, H, T, D) each
    out, lse = ops.attention_forward(q, k, v)                                           # (B, H, T, D)
    a = merged(out)                                                                     # (B, T, C)
    h2 = h + ops.linear_forward(a, w("attn.proj.weight"), w("attn.proj.bias"))
    n2, m2, r2 = ops.layernorm_forward(h2, w("norm2.weight"), w("norm2.bias"))
    up = ops.linear_forward(n2, w("mlp.up.weight"), w("mlp.up.bias"))                   # (B, T, 4 C)
    act = ops.gelu_forward(up)                                                          # (B, T, 4 C)
    h3 = h2 + ops.linear_forward(act, w("mlp.down.weight"), w("mlp.down.bias"))
    return h3, (h, n1, m1, r1, q, k, v, out, lse, a, h2, n2, m2, r2, up, act)

# %%
def layer_backward(w, dh3, H, kept, grads):
    """dh3 (B, T, C) -> dh (B, T, C); grads gets the gradients of the layer's weights"""
    h, n1, m1, r1, q, k, v, out, lse, a, h2, n2, m2, r2, up, act = kept

    def back(name, dx, dweight, dbias):
        grads[name + ".weight"], grads[name + ".bias"] = dweight, dbias
        return dx

    dact = back("mlp.down", *ops.linear_backward(dh3, act, w("mlp.down.weight")))
    dup = ops.gelu_backward(dact, up)
    dn2 = back("mlp.up", *ops.linear_backward(dup, n2, w("mlp.up.weight")))
    dh2 = dh3 + back("norm2", *ops.layernorm_backward(dn2, h2, w("norm2.weight"), m2, r2))
    da = back("attn.proj", *ops.linear_backward(dh2, a, w("attn.proj.weight")))
    dqkv = np.concatenate(ops.attention_backward(heads(da, H), q, k, v, out, lse), axis=1)   # (B, 3 H, T, D)
    dn1 = back("attn.qkv", *ops.linear_backward(merged(dqkv), n1, w("attn.qkv.weight")))
    return dh2 + back("norm1", *ops.layernorm_backward(dn1, h, w("norm1.weight"), m1, r1))

# %% [markdown]
# Around the layers: embeddings below, the last norm, the tied head and the loss above. The gradients of one training
# step, by hand:

# %%
def loss_and_grads(config, p, tokens, targets):
    B, T, H, L = *tokens.shape, config.n_head, config.n_layer
    layers = [lambda name, i=i: p[f"h.{i}.{name}"] for i in range(L)]
    h, kept, grads = p["wte"][tokens] + p["wpe"][:T], [], {}
    for w in layers:
        h, saved = layer_forward(w, h, H)
        kept.append(saved)
    y, mean, rstd = ops.layernorm_forward(h, p["norm.weight"], p["norm.bias"])
    logits = y @ p["wte"].T                                                             # (B, T, V)
    losses, lse = ops.cross_entropy_forward(logits, targets)
    dlogits = ops.cross_entropy_backward(1 / (B * T), logits, targets, lse)
    dh, grads["norm.weight"], grads["norm.bias"] = ops.layernorm_backward(
        dlogits @ p["wte"], h, p["norm.weight"], mean, rstd)
    return losses.mean(), down_the_layers(p, layers, dh, H, kept, grads, tokens, dlogits, y)

# %%
def down_the_layers(p, layers, dh, H, kept, grads, tokens, dlogits, y):
    for i, w in reversed(list(enumerate(layers))):
        of_layer = {}
        dh = layer_backward(w, dh, H, kept[i], of_layer)
        grads |= {f"h.{i}.{name}": grad for name, grad in of_layer.items()}
    V, C = p["wte"].shape
    grads["wte"] = dlogits.reshape(-1, V).T @ y.reshape(-1, C)                          # as the head ...
    np.add.at(grads["wte"], tokens, dh)                                                 # ... and as the embedding
    grads["wpe"] = np.zeros_like(p["wpe"])
    grads["wpe"][:tokens.shape[1]] = dh.sum(axis=0)                                     # all texts use it
    return grads

# %% [markdown]
# A tiny GPT in float64, with all weights random (at its start a GPT has biases of 0 and norms of 1, which would hide
# mistakes, as we have seen). First against the package's model, which does the same with buffers that it keeps:

# %%
config = ModelConfig(vocab_size=17, block_size=8, n_layer=2, n_head=2, n_embd=12)
p = {name: rng.normal("norm" in name and name.endswith("weight"), 0.3, shape)
     for name, shape in config.parameter_shapes().items()}
tiny = GPT(config, ops="numpy", params=p)
tokens = rng.integers(17, size=(3, 9))
ids, targets = tokens[:, :-1], tokens[:, 1:]
loss, grads = loss_and_grads(config, p, ids, targets)
print(f"loss: {loss:.12f} by hand, {tiny.forward(ids, targets):.12f} by GPT")
tiny.zero_grad()
tiny.backward()
worst = max(np.abs(grads[name] - tiny.grads[name]).max() for name in p)
print(f"{len(p)} parameters, {tiny.num_parameters():,} numbers: the gradients differ by at most {worst:.1e}")

# %% [markdown]
# And both before the judge: of every parameter five elements are moved, each there and back, and the loss of the whole
# model is computed anew.

# %%
errors = {}
for name, param in p.items():
    for place in rng.choice(param.size, 5, replace=False):
        i, losses = np.unravel_index(place, param.shape), []
        before = param[i]
        for move in (1e-5, -1e-5):
            param[i] = before + move
            losses.append(tiny.forward(ids, targets))
        param[i] = before
        measured, largest = (losses[0] - losses[1]) / 2e-5, np.abs(grads[name]).max()
        errors.setdefault(name, []).append(abs(measured - grads[name][i]) / largest)
print(f"worst of {5 * len(p)}: {max(map(max, errors.values())):.1e} of its parameter's largest gradient")

# %%
figure, panel = plt.subplots(figsize=(8, 5.4))
for row, found in enumerate(errors.values()):
    panel.semilogx(np.maximum(found, 1e-14), [row] * len(found), "o", color=BLUE, markersize=4)
panel.axvline(1e-5 ** 2, color=GREY, linestyle=":")
panel.set_yticks(range(len(errors)), errors, fontsize=8)
panel.set(title="Every kind of parameter against finite differences (dotted: h²)", xlim=(5e-15, 1e-3),
          xlabel="error, relative to the parameter's largest gradient")
panel.invert_yaxis()
plt.show()

# %% [markdown]
# That is about as far as the U-shaped curve lets one see. Had a term been forgotten anywhere, a whole row of dots would
# stand at the right edge.
#
# Here are the real lines. They are those above, but that a norm and the addition before it are one operation
# (`residual_layernorm`), so that a line of its backward pass adds both ways into `dh`:

# %%
source(GPT._trunk_backward)

# %%
source("minigpt/model.py", "dy = self.linear_backward(name + \".proj\"", "return self.linear_backward(name + \".qkv\"")

# %% [markdown]
# ## What it costs: arithmetic
#
# A linear layer of `rows` tokens, `K` to `N`, takes 2 · rows · K · N FLOPs (one multiplication and one addition for
# each). Backwards there are *two* products of the same size, `dx` and `dW`. So, all in all, the backward pass costs
# twice the forward pass, and a step of training three times: that is where the "6 FLOPs per parameter and token" of the
# scaling laws come from, 2 forward and 4 backward.
#
# Attention is a little different: forward two products (`S` and `O`); backward `dV`, `dP`, `dQ`, `dK`, and `S` again:
# five, 2.5 times.

# %%
parts = model.config.forward_flops(64)                                      # {part: FLOPs per token}, for texts of 64
scores = parts["scores"] + parts["reduce"]
linear = sum(parts.values()) - scores
print(f"forward, per token: {linear:,} FLOPs in linear layers, {scores:,} in attention")
print(f"by hand: 2 x (4 layers of 12 x 128² weights + a head of 1024 x 128) = {2 * (4 * 12 * 128**2 + 1024 * 128):,}; "
      f"attention 4 layers x 2 products x 2 x 64 x 128 = {4 * 2 * 2 * 64 * 128:,}")
print(f"backward / forward, counted: {(2 * linear + 2.5 * scores) / (linear + scores):.2f}")
print(f"backward / forward, measured at the beginning of this tutorial: {time_backward / time_forward:.2f}")

# %% [markdown]
# Measured and counted are near each other on most machines, and never the same: norms, gelu and the softmaxes are no
# products and count 0 here, but they take time, forward and backward.
#
# ## What it costs: memory
#
# A forward pass that is only to give an answer may forget everything behind it. One that is to be followed by a
# backward pass must keep what the formulas above ask for. Count it for one token in one layer, in numbers:
#
# | kept | because | numbers |
# |---|---|---|
# | `h`, twice | layernorm's `xhat` | 2 C |
# | both norms' outputs | `x` in the `dW` of `attn.qkv` and of `mlp.up` | 2 C |
# | `q`, `k`, `v` | attention | 3 C |
# | attention's output | `delta`, and `x` in the `dW` of `attn.proj` | C |
# | `up` | gelu's slope | 4 C |
# | `act` | `x` in the `dW` of `mlp.down` | 4 C |
# | `mean` and `rstd`, twice, and `lse` | | 4 + H |
#
# That makes 16 C + 4 + H. On top come, once, the last norm's `h`, `y`, `mean` and `rstd`, and for the loss the logits
# (V) and their `lse`. The model keeps just these in `model.saved`:

# %%
def numbers_kept(config, B, T):
    C, H, L, V = config.n_embd, config.n_head, config.n_layer, config.vocab_size
    return B * T * (L * (16 * C + 4 + H) + 2 * C + 2 + V + 1)


B, T = 8, 128
batch = rng.integers(model.config.vocab_size, size=(B, T))
model.forward(batch, batch)
arrays = [array for saved in model.saved.values() for array in saved if getattr(array, "dtype", None) == np.float32]
measured = sum(array.nbytes for array in arrays)
counted = 4 * numbers_kept(model.config, B, T)
print(f"counted: {counted / 1e6:.2f} MB, kept: {measured / 1e6:.2f} MB, ratio {measured / counted:.4f}; "
      f"the weights are {4 * model.num_parameters() / 1e6:.2f} MB")

# %% [markdown]
# The activations grow with the batch, everything else does not: the weights, as many gradients, and two more numbers
# for each weight that the optimiser AdamW keeps ([tutorial 5](05_training.ipynb)). The same count for this model, and
# for GPT-2 with texts of 1024 tokens:

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2))
for panel, config, T in ((panels[0], model.config, 128), (panels[1], ModelConfig.preset("gpt2"), 1024)):
    batches, bottom = (1, 4, 16), np.zeros(3)
    weights = np.full(3, 4 * config.num_parameters() / 1e9)
    activations = 4 * np.array([numbers_kept(config, B, T) for B in batches]) / 1e9
    for label, part, color in (("weights", weights, BLUE), ("gradients", weights, RED), ("AdamW", 2 * weights, GREEN),
                               ("kept activations", activations, ORANGE)):
        panel.bar(range(3), part, bottom=bottom, label=label, color=color)
        bottom = bottom + part
    panel.set(title=f"{config.num_parameters() / 1e6:.1f} M parameters, {T} tokens a text", ylabel="GB",
              xlabel="texts in the batch", xticks=range(3), xticklabels=batches)
panels[0].legend(frameon=False)
plt.show()

# %% [markdown]
# That is why batches are cut into micro-batches, and why gradients are then added up: `accumulate=True` in every
# backward function of the package. Another way is to keep only each layer's `h`, C numbers instead of 16 C, and to
# compute the layer's forward pass again when its backward pass comes ("gradient checkpointing"): a third more
# arithmetic.
#
# **Predict:** the attention above was computed backwards from `lse`, without the probabilities `P`. Suppose we had kept
# `P`, H · T numbers for each token and layer. For GPT-2 (C = 768, H = 12) and texts of T = 1024, how does that compare
# with the 16 C that are kept? And for T = 8192?

# %%
for T in (64, 1024, 8192):
    print(f"T = {T:5}: P {12 * T:7,} numbers for each token and layer, all the rest {16 * 768:,}")

# %% [markdown]
# ## Summary
#
# - Backpropagation is one rule, `dx = dy @ J`, applied from the loss backwards, and `J` is never made. It costs twice
#   the forward pass, where trying would cost one forward pass for each parameter.
# - Gradients are proved by central differences in float64, `h` near 1e-5. Rounding (`ε/h`) and curvature (`h²/6`) make
#   a U; float32 leaves four or five digits at best. Test with a random `dy`: layernorm's gradient for `dy = 1` is 0,
#   and most wrong formulas pass.
# - Shapes decide: `dx = dy W`, `dW = dy^T x`, `db` sums all axes but the last. What was copied forward is summed
#   backward: biases, embeddings, tied weights, residual connections.
# - softmax: `p (dp - sum(p dp))`; with cross-entropy: `p - onehot`; layernorm: take away the parts along 1 and along
#   `xhat`; attention: five products, and `delta = rowsum(dO O)`.
# - A layer keeps 16 C + 4 + H numbers for each token. Keeping attention's probabilities too would double that at
#   T = 1024 in GPT-2.
#
# **Next:** [5. Training on real text](05_training.ipynb). The assignment [A1](assignments/a1_ops/README.md) asks for
# all of these operations, graded.
#
# ## Papers
#
# - Rumelhart, Hinton, Williams, *Learning representations by back-propagating errors*, Nature 323, 1986.
# - Baydin, Pearlmutter, Radul, Siskind, *Automatic differentiation in machine learning: a survey*, 2015,
#   [arXiv:1502.05767](https://arxiv.org/abs/1502.05767).
# - Ba, Kiros, Hinton, *Layer Normalization*, 2016, [arXiv:1607.06450](https://arxiv.org/abs/1607.06450).
# - Press, Wolf, *Using the Output Embedding to Improve Language Models* (tied weights), 2016,
#   [arXiv:1608.05859](https://arxiv.org/abs/1608.05859).
# - Dao, Fu, Ermon, Rudra, Ré, *FlashAttention* (`delta` from the outputs), 2022,
#   [arXiv:2205.14135](https://arxiv.org/abs/2205.14135).
# - Chen, Xu, Zhang, Guestrin, *Training Deep Nets with Sublinear Memory Cost* (gradient checkpointing), 2016,
#   [arXiv:1604.06174](https://arxiv.org/abs/1604.06174).
