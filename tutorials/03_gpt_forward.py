# %% [markdown]
# # 3. A whole GPT in NumPy
#
# **You will be able to** write the forward pass of a GPT in some forty lines and get the same numbers as a real one;
# count the parameters and FLOPs of any GPT, GPT-3 among them; watch a prediction grow from layer to layer; say what a
# loss of 3.6 means.
#
# **Needs:** a laptop; NumPy and matplotlib.  **Before:** [2](02_attention.ipynb)  **Time:** about 60 minutes

# %%
import math
import zlib

import matplotlib.pyplot as plt
import numpy as np
from lesson import BLUE, GREEN, GREY, RED, case, check, here, seconds, source

from minigpt import GPT, ModelConfig, TextDataset, Tokenizer, ops
from minigpt.ops import numpy_ops

model = GPT.from_pretrained(here("checkpoint"), ops="numpy")
tokenizer = Tokenizer.from_pretrained(here("checkpoint"))
P = model.params                                                      # {name: array}
for name, array in list(P.items())[:14]:
    print(f"{name:20} {array.shape}")

# %% [markdown]
# A GPT takes the ids of T tokens and gives, for each place, a probability for every token of the vocabulary to come
# next. Everything that it knows is in arrays such as these: the two tables of the beginning, and then twelve arrays for
# each layer (here layer 0). This tutorial uses each of them once, in order. At the end stands a function of your own
# that gives the numbers of the package, and you will have a picture of what happens on the way.
#
# The letters are those of the whole course: T tokens, C numbers for each (here 128), H heads of D = C / H numbers, V
# tokens in the vocabulary (1,024), L layers (4).

# %% [markdown]
# ## 1. Count first
#
# A model's size is its number of parameters, and that is arithmetic. One layer has
#
# - attention: q, k and v (3C, C) with 3C biases, projection (C, C) with C: 4C² + 4C;
# - the *MLP* (section 4): up (4C, C) with 4C biases, down (C, 4C) with C: 8C² + 5C;
# - two norms of 2C numbers each: 4C.
#
# Together 12C² + 13C. Add the table of tokens VC, the table of places PC (P is the longest text), and a last norm, 2C.

# %%
V, block, C, L = 1024, 128, 128, 4
by_hand = L * (12 * C**2 + 13 * C) + V * C + block * C + 2 * C
print(f"by hand {by_hand:,}; in the arrays {sum(array.size for array in P.values()):,}")

# %% [markdown]
# ### Exercise 1 (5 minutes): GPT-2 and GPT-3
#
# Make a function of it, and you can count what nobody could run on a laptop. GPT-2 is V = 50,257, P = 1,024, C = 768,
# L = 12. People call it "124M". GPT-3 has 96 layers of C = 12,288, and P = 2,048.

# %%
def count_parameters(V, P, C, L):                                     # four integers -> one
    ...


# %%
gpt3 = ModelConfig.preset("gpt3-175b")
check(count_parameters, case(1024, 128, 128, 4, want=940_800, why="this model: compare with the cell above"),
      case(50257, 1024, 768, 12, want=124_439_808, why="GPT-2; its output uses the table of tokens again"),
      case(50257, 2048, 12288, 96, want=gpt3.num_parameters(), why="GPT-3"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# The formula stands above, as the line `by_hand = ...`. 13C are the biases and the two norms.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def count_parameters(V, P, C, L):
#     layer = 12 * C**2 + 13 * C
#     return V * C + P * C + L * layer + 2 * C
# ```
# </details>

# %% [markdown]
# ## 2. Tokens become vectors
#
# A token is an id, and ids are names, not quantities: 712 is not twice 356. So each has a row of C numbers, learned, in
# the table `wte` (word token embedding). The place has one, too, in `wpe`. Their sum is what the model starts with.

# %%
text = "GREMIO:\nGood morrow, neighbour Baptista."
ids = np.array(tokenizer.encode(text))                                # (T,)
h = P["wte"][ids] + P["wpe"][:len(ids)]                               # (T, C)
print(ids, "->", h.shape)

# %% [markdown]
# **Predict:** nothing but the prediction of next tokens has shaped these rows. Which rows lie nearest to that of
# ` king`? Which to that of `?`?

# %%
spelling = [token.decode(errors="replace") for token in tokenizer.tokens]
unit = P["wte"] / np.linalg.norm(P["wte"], axis=1, keepdims=True)     # (V, C), every row of length 1
for word in (" king", " my", " hath", " night", "?", "ing"):
    likeness = unit @ unit[spelling.index(word)]                      # (V,) cosines
    print(f"{word!r:8} is near", *(repr(spelling[id]) for id in np.argsort(-likeness)[1:6]))

# %% [markdown]
# Tokens that can stand in the same places have come to lie together.

# %% [markdown]
# ## 3. Layernorm
#
# Sums of many terms grow, and products of grown numbers grow faster. So before each part of the model a **layernorm**
# brings every token's C numbers to mean 0 and variance 1:
#
# y = (x - mean) / √(variance + eps) · weight + bias
#
# with eps = 10⁻⁵, so that a row of equal numbers does not divide by 0; and weight and bias, C learned numbers each, so
# that the model may have another scale where it needs one. Each token is treated by itself.
#
# ### Exercise 2 (10 minutes): layernorm
#
# The mean and the variance are over the last axis. The variance is the mean of the squared distances from the mean.

# %%
def layernorm_by_hand(x, weight, bias):                               # (..., C), (C,), (C,) -> (..., C)
    ...


# %%
def example(x, why):
    weight, bias = np.random.default_rng(1).standard_normal((2, x.shape[-1]))
    return case(x, weight, bias, want=numpy_ops.layernorm_forward(x, weight, bias)[0], why=why)


some = np.random.default_rng(0).standard_normal((3, 8))
check(layernorm_by_hand, example(some, "mean and variance over the last axis; divide by C, not C - 1"),
      example(0.003 * some, "eps is added to the variance, under the root"),
      example(np.ones((2, 4)), "equal numbers: only eps stands between you and 0 / 0"),
      example(np.stack([some, some + 5]), "keepdims=True, so that any axes may come before"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `centred = x - x.mean(axis=-1, keepdims=True)`, and the variance is the mean of `centred**2`.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def layernorm_by_hand(x, weight, bias):
#     centred = x - x.mean(axis=-1, keepdims=True)
#     variance = (centred**2).mean(axis=-1, keepdims=True)
#     return centred / np.sqrt(variance + 1e-5) * weight + bias
# ```
# </details>

# %% [markdown]
# ## 4. Attention and the MLP
#
# A layer has two parts. *Attention* you know: it moves information between tokens. The **MLP** (multi-layer perceptron)
# then works on each token by itself: a matrix to 4C numbers, a bend, a matrix back to C. Without the bend the two
# matrices would be one. GPT's bend is **gelu**, a smooth way of cutting off the negative; GPT-2 computes it
# approximately, as
#
# gelu(x) = ½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))

# %%
def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


points = np.linspace(-4, 4, 200)
figure, panel = plt.subplots(figsize=(8, 2.6))
panel.plot(points, np.maximum(points, 0), "--", color=GREY, label="max(x, 0), the relu")
panel.plot(points, gelu(points), label="gelu")
panel.set(xlabel="x", ylabel="gelu(x)", title="gelu: nearly 0 on the left, nearly x on the right, no corner")
panel.legend()
plt.show()

# %% [markdown]
# The functions that a layer needs. `name` says which arrays they use, "h.2.attn" for instance. A matrix is stored as
# (outputs, inputs), so a product is `x @ weight.T + bias`.

# %%
def linear(x, name):                                                  # (T, inputs) -> (T, outputs)
    return x @ P[name + ".weight"].T + P[name + ".bias"]


def layernorm(x, name):                                               # (T, C) -> (T, C)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-5) * P[name + ".weight"] + P[name + ".bias"]


def mlp(x, name):                                                     # (T, C) -> (T, C)
    return linear(gelu(linear(x, name + ".up")), name + ".down")      # (T, 4C) in between

# %%
def attention(x, name, H=4):                                          # (T, C) -> (T, C)
    T, C = x.shape
    qkv = linear(x, name + ".qkv")                                    # (T, 3C)
    q, k, v = qkv.reshape(T, 3, H, C // H).transpose(1, 2, 0, 3)      # (H, T, D) each
    s = q @ k.swapaxes(-1, -2) / math.sqrt(C // H)                    # (H, T, T)
    s = np.where(np.tri(T, dtype=bool), s, -np.inf)
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)                             # (H, T, T)
    joined = (p @ v).transpose(1, 0, 2).reshape(T, C)                 # heads side by side again
    return linear(joined, name + ".proj")


x = layernorm(h, "h.0.norm1")
print("attention", attention(x, "h.0.attn").shape, " mlp", mlp(x, "h.0.mlp").shape)

# %% [markdown]
# ## 5. The residual stream
#
# How are the parts put together? Not one after the other: each part *adds* its result to what is there. The sum h runs
# through the model from the first table to the last norm, and is called the **residual stream**. Every part reads a
# normalised copy of it, and writes by adding:
#
#     h = embedding of tokens + embedding of places
#     for each layer i:
#         h = h + attention(norm1(h))
#         h = h + mlp(norm2(h))
#     logits = norm(h) @ wte.T
#
# Adding keeps open a straight way from the end to the beginning, on which the gradient comes back undiminished
# (tutorial 4). The last line compares the final vector of each token with the rows of all V tokens: dot products again.
# The results are the **logits**, one for each token that might come next, and their softmax is the probabilities. That
# the same table `wte` serves as the input and the output is called *tied*; GPT-2 does so.
#
# ### Exercise 3 (15 minutes): the GPT
#
# Write it down with `layernorm`, `attention` and `mlp` from above. The names are h.0.norm1, h.0.attn, h.0.norm2,
# h.0.mlp, then h.1 and so on to h.3, at last norm. The check compares with the package.

# %%
def gpt(ids):                                                         # (T,) ids -> (T, V) logits
    ...


# %%
other = np.array(tokenizer.encode("KING RICHARD III:\nMy kingdom for a"))
check(gpt, case(ids, want=model.forward(ids[None])[0], why="positions? both additions in each layer? the last norm?"),
      case(other, want=model.forward(other[None])[0]), tolerance=1e-5)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The lines above the exercise are nearly Python. `h` starts as `P["wte"][ids] + P["wpe"][:len(ids)]`, and a part is
# called so: `attention(layernorm(h, f"h.{i}.norm1"), f"h.{i}.attn")`.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def gpt(ids):
#     h = P["wte"][ids] + P["wpe"][:len(ids)]
#     for i in range(4):
#         h = h + attention(layernorm(h, f"h.{i}.norm1"), f"h.{i}.attn")
#         h = h + mlp(layernorm(h, f"h.{i}.norm2"), f"h.{i}.mlp")
#     return layernorm(h, "norm") @ P["wte"].T
# ```
# </details>

# %% [markdown]
# To look into it, keep everything that is added. This function returns the list of all terms, 1 + 2L of them; the
# stream at any point is the sum of the first few, and at the end the sum of all.

# %%
def terms(ids):                                                       # (T,) -> what each part adds, (T, C) each
    added = [P["wte"][ids] + P["wpe"][:len(ids)]]
    for i in range(4):
        added.append(attention(layernorm(sum(added), f"h.{i}.norm1"), f"h.{i}.attn"))
        added.append(mlp(layernorm(sum(added), f"h.{i}.norm2"), f"h.{i}.mlp"))
    return added


def head(h):                                                          # (T, C) -> (T, V) logits
    return layernorm(h, "norm") @ P["wte"].T


logits = head(sum(terms(ids)))
theirs = model.forward(ids[None])[0]                                  # (T, V)
print(f"logits up to {np.abs(theirs).max():.1f}; ours are off by {np.abs(logits - theirs).max():.1e} at most")

# %% [markdown]
# Equal but for rounding: a 32-bit number has 7 digits. Now the last row of logits as probabilities:

# %%
def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


for prompt in (text, "LADY ANNE:\nWhat is", "First Citizen:\nWe are ready to", "is your name not Gremio?\n\n"):
    h = sum(terms(np.array(tokenizer.encode(prompt))))                # (T, C)
    p = softmax(head(h)[-1])                                          # (V,)
    print(f"{prompt[-24:]!r:28}", *(f"{spelling[id]!r} {p[id]:.0%} " for id in np.argsort(-p)[:5]))

# %% [markdown]
# ## 6. Along the stream
#
# **Predict:** how long is a token's vector at the beginning, and after each part? Which part of which layer adds most?

# %%
added = terms(ids)
names = ["embedding", *(f"{part} {i}" for i in range(4) for part in ("attention", "mlp"))]
stream = np.cumsum(added, axis=0)                                     # (1 + 2L, T, C)
lengths = [np.linalg.norm(a, axis=-1).mean() for a in added]
figure, panel = plt.subplots()
panel.bar(range(9), lengths, color=[GREY] + [BLUE, GREEN] * 4, label="what the part adds")
panel.plot(range(9), np.linalg.norm(stream, axis=-1).mean(axis=1), "o-", color=RED, label="the stream after it")
panel.set_xticks(range(9), names, rotation=20)
panel.set(ylabel="length of a token's vector", title="The stream grows, since every part adds to it")
panel.legend()
plt.show()

# %% [markdown]
# In this model the first MLP writes most: it turns a token's row and what attention brought from just before into
# something like a word. Later parts add corrections. Each of them is added to a longer vector, so it changes the
# direction less.
#
# Since the stream has the same shape everywhere, one can apply the head early and ask: what would the model predict if
# it stopped here? That is the **logit lens** (nostalgebraist 2020).
#
# **Predict:** before the first layer h knows only the token itself, and input and output use the same table. What will
# the lens show in the first row?

# %%
shown = slice(0, 15)
figure, panel = plt.subplots(figsize=(8, 3.1))
certain = np.zeros((5, 15))
for row in range(5):
    p = softmax(head(stream[2 * row]))[shown]                         # (15, V), after `row` layers
    certain[row] = p.max(axis=1)
    for column, id in enumerate(p.argmax(axis=1)):
        color = "white" if certain[row, column] < 0.6 else "black"
        panel.text(column, row, repr(spelling[id])[1:-1], ha="center", va="center", fontsize=8, color=color)
panel.imshow(certain, aspect="auto", vmin=0, vmax=1)
panel.set_xticks(range(15), [repr(spelling[id])[1:-1] for id in ids[shown]], fontsize=8)
panel.set_yticks(range(5), ["embedding", *(f"layer {i}" for i in range(4))])
panel.set(xlabel="the token at this place", title="Most probable next token after each layer (bright: certain)")
plt.show()

# %% [markdown]
# The embedding predicts the token itself again, with near certainty: a row is most like itself. The first layer turns
# *what is here* into *what comes next*, the others make it better. How much better? That takes a number for all places
# at once, which is the next section.

# %% [markdown]
# ## 7. The loss
#
# A model is good if it gave much probability to what really came next. The **cross-entropy** loss of a place is
# -log p(true next token), and the loss of a text is the mean over its places. Perfect is 0. A model that knows nothing
# gives each token 1/V, and loses log V: with V = 1,024 that is 6.93.
#
# With logits there is no need for the probabilities: -log p = log Σ exp(logits) - logit of the true one. And with the
# largest logit taken out first nothing overflows.
#
# ### Exercise 4 (10 minutes): cross-entropy
#
# Return the mean loss of T places.

# %%
def cross_entropy(logits, targets):                                   # (T, V), (T,) ids -> a number
    ...


# %%
def loss_case(logits, targets, why):
    losses, _ = numpy_ops.cross_entropy_forward(logits, targets)
    return case(logits, targets, want=float(losses.mean()), why=why)


row = np.random.default_rng(2).standard_normal((5, 7))
check(cross_entropy, case(np.zeros((3, 8)), np.array([0, 5, 7]), want=math.log(8), why="nothing known: log V"),
      loss_case(row, np.array([3, 1, 4, 1, 5]), "place t, column targets[t]; the mean, natural logarithm"),
      loss_case(row * 1000, np.array([3, 1, 4, 1, 5]),
                "take the largest of each row out first; and p itself may round to 0, so do not take log p"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `logits[np.arange(T), targets]` picks one number from each row. With m the largest of the row,
# log Σ exp(l) = m + log Σ exp(l - m).
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def cross_entropy(logits, targets):
#     m = logits.max(axis=-1)
#     log_sum = m + np.log(np.exp(logits - m[:, None]).sum(axis=-1))
#     picked = logits[np.arange(len(targets)), targets]
#     return (log_sum - picked).mean()
# ```
# </details>

# %% [markdown]
# Now the model on text that it was not trained on, the last tenth of tiny Shakespeare, in blocks of 128 tokens. With
# targets, `model.forward` returns the mean loss, and `model.losses` holds that of every token. Here are the first
# places of a block, each token coloured by what it cost.

# %%
plays = here("data/shakespeare.txt").read_text(encoding="utf-8")
tokens = np.array(tokenizer.encode(plays))
_, unseen = TextDataset.from_tokens(tokens, 129).split(0.1)
blocks = np.array([unseen[i] for i in range(len(unseen))])            # (blocks, 129)
loss = model.forward(blocks[:1, :-1], blocks[:1, 1:])
print(f"loss {loss:.2f}; the first tokens cost {model.losses[0, :8].round(1)}")

# %%
figure, panel = plt.subplots(figsize=(8, 2.6))
x = y = 0
for id, cost in zip(blocks[0, 1:], model.losses[0], strict=True):
    for character in spelling[id]:
        panel.add_patch(plt.Rectangle((x, y), 1, 0.9, color=plt.cm.Reds(min(cost / 12, 1))))
        style = dict(ha="center", va="center", family="monospace", fontsize=9)
        panel.text(x + 0.5, y + 0.46, character.replace("\n", "↵"), **style)
        x, y = (x + 1, y) if character != "\n" and x < 75 else (0, y + 1)
panel.set(xlim=(0, 76), ylim=(y + 1, 0), title="What each token cost: the redder, the less expected")
panel.axis("off")
plt.show()

# %% [markdown]
# Beginnings of words and names are dear, their ends mostly cheap, and so is what always follows: the line's end after a
# speaker's colon.
#
# To say whether a loss is good, compare with models of no understanding. *Uniform* gives every token 1/V. *Unigram*
# gives each its frequency. *Bigram* looks at one token back: a table of V × V counts, about as many numbers as our
# model has parameters (and ten imaginary occurrences for each token, spread as the unigram says, so that no pair that
# never occurred gets probability 0). And each can be written in **bits per character**, which does not depend on the
# tokenizer: divide by log 2, and by the characters per token. It is the size to which one could compress the text with
# the model, so gzip's may stand beside them.

# %%
train, test = tokens[:len(tokens) - len(unseen.tokens)], np.array(unseen.tokens)
unigram = (np.bincount(train, minlength=V) + 1) / (len(train) + V)                             # (V,)
bigram = np.zeros((V, V))
np.add.at(bigram, (train[:-1], train[1:]), 1)
bigram = (bigram + 10 * unigram) / (bigram.sum(axis=1, keepdims=True) + 10)                    # rows add up to 1
losses = {"uniform": math.log(V), "unigram": -np.log(unigram[test]).mean(),
          "bigram": -np.log(bigram[test[:-1], test[1:]]).mean(),
          "this GPT": np.mean([model.forward(b[:, :-1], b[:, 1:]) for b in np.array_split(blocks, 22)])}
characters = len(tokenizer.decode(test))
bits = {name: loss / math.log(2) * len(test) / characters for name, loss in losses.items()}
bits["gzip"] = 8 * len(zlib.compress(tokenizer.decode(test).encode(), 9)) / characters
for name, value in losses.items():
    print(f"{name:9} loss {value:.2f} a token: like {math.exp(value):4.0f} equal choices; {bits[name]:.2f} bits")

# %%
figure, panel = plt.subplots(figsize=(8, 2.6))
order = sorted(bits, key=bits.get, reverse=True)
bars = panel.barh(order, [bits[name] for name in order], color=[GREY, GREY, GREY, GREY, BLUE])
panel.bar_label(bars, fmt="%.2f", padding=3)
panel.set(xlabel="bits per character", title="The last tenth of the text, which none of them has seen")
plt.show()

# %% [markdown]
# The exponential of a loss is called **perplexity**: a die with so many faces would be as hard to predict. (gzip starts
# with no knowledge of Shakespeare, the others have counted a million characters of him.)
#
# And the logit lens as a number: the loss of the prediction read off after each layer.

# %%
lens = np.zeros(5)
for block in blocks[::24]:                                            # every 24th is enough
    stream = np.cumsum(terms(block[:-1]), axis=0)
    for row in range(5):
        losses_here, _ = numpy_ops.cross_entropy_forward(head(stream[2 * row]), block[1:])
        lens[row] += losses_here.mean() / len(blocks[::24])
figure, panel = plt.subplots(figsize=(8, 2.8))
panel.plot(["embedding", "layer 0", "layer 1", "layer 2", "layer 3"], lens, "o-")
panel.axhline(math.log(V), linestyle="--", color=GREY, label="log V: knowing nothing")
panel.set(ylabel="loss, read off here", title="Each layer makes the prediction better")
panel.legend()
plt.show()

# %% [markdown]
# The embedding is worse than knowing nothing: it is certain of a wrong answer. The first layer brings most, each of the
# others a little.

# %% [markdown]
# ## 8. What a token costs
#
# A matrix of N numbers costs 2N FLOPs for each token, a multiplication and an addition for each number. Per layer that
# is 2 × 12C² = 24C², and the head takes 2VC. Only attention itself depends on the length, 4TC a layer (tutorial 2). So
# the rule of thumb: **2 FLOPs per parameter per token**, forward.

# %%
for name in ("this model", "gpt2", "gpt3-175b"):
    config = model.config if name == "this model" else ModelConfig.preset(name)
    C, L, V, T = config.n_embd, config.n_layer, config.vocab_size, config.block_size
    by_hand = L * (24 * C**2 + 4 * T * C) + 2 * V * C
    N = config.num_parameters()
    print(f"{name:10} N = {N:,}; FLOPs a token by hand {by_hand:,}, {by_hand / (2 * N):.2f} times 2N; "
          f"the package says {config.flops_per_token():,}")

# %%
figure, panel = plt.subplots(figsize=(8, 2.6))
groups = {"attention's matrices": ("attn.qkv", "attn.proj"), "attention itself": ("scores", "reduce"),
          "MLP": ("mlp.up", "mlp.down"), "head": ("head",)}
configs = {"GPT-3": gpt3, "GPT-2": ModelConfig.preset("gpt2"), "this model": model.config}
left = np.zeros(3)
for group, parts in groups.items():
    share = [sum(c.forward_flops()[part] for part in parts) / c.flops_per_token() for c in configs.values()]
    panel.barh(list(configs), share, left=left, label=group)
    left += share
panel.set(xlabel="share of the FLOPs of a token, at the longest text", title="Where the arithmetic is")
panel.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.25), fontsize=9)
plt.show()

# %% [markdown]
# The larger the model, the more the matrices of its layers are everything. So a good product of matrices is the first
# thing that a fast GPT needs ([tutorial 7](07_matmul.ipynb)).

# %% [markdown]
# ## 9. Let it write
#
# To write, take the most probable token, append it, and start again. That is **greedy** decoding.
#
# **Predict:** always the most probable token — will this be the best Shakespeare the model can do?

# %%
written = tokenizer.encode("First Citizen:\nWe are ready to")
for _ in range(60):
    logits = head(sum(terms(np.array(written))))                      # (T, V)
    written.append(int(logits[-1].argmax()))
print(tokenizer.decode(written))

# %% [markdown]
# It goes in circles: what has just been said makes itself more probable. To draw from the probabilities instead gives
# livelier text, and how to draw well is tutorial 12. There is a waste as well: for each new token all the earlier
# places are computed again, though the mask lets them see nothing new. [Tutorial 12](12_sampling.ipynb) keeps their
# keys and values.

# %% [markdown]
# ## 10. The real lines
#
# The package's model is your loop. Three things differ: the addition is fused with the norm that follows it, arrays
# are kept and used again, and no operation is NumPy's own: all go through `ops`, so that the same lines run on every
# backend.

# %%
source("minigpt/model.py", 'h = self.buffer("embedding"', 'h, y = self._norm_forward("norm"')

# %%
inputs = blocks[:8, :-1]                                              # (B, T)
flops = model.config.flops_per_token() * inputs.size
reference = model.forward(inputs)
for name in ("numpy", "cpp"):
    if why_not := ops.available()[name]:
        print(f"{name}: does not load here: {why_not}")
        continue
    same = GPT.from_pretrained(here("checkpoint"), ops=name)
    took = seconds(same.forward, inputs, repeats=3)
    print(f"{name:5} off by {np.abs(same.forward(inputs) - reference).max():.1e}; {took * 1e3:5.0f} ms for "
          f"{inputs.size} tokens, {flops / took / 1e9:.1f} GFLOP/s by the count above")

# %% [markdown]
# The same model on kernels in C++: the same numbers but for rounding, and on most machines in less time.
#
# ## Summary
#
# - A GPT is two tables, L layers of 12C² + 13C parameters, a norm, and the first table again as the output. GPT-2
#   has 124,439,808 parameters, GPT-3 175 billion; both are a line of arithmetic.
# - Each part reads a normalised copy of the residual stream and adds to it; attention moves information between tokens,
#   the MLP works on each token by itself. Ours gives the package's logits but for rounding.
# - The logit lens: the embedding predicts the token itself; each layer makes the prediction better.
# - The loss is the mean of -log p of the true token: log V = 6.93 for knowing nothing, 3.6 for this model; in bits per
#   character models of different tokenizers can be compared.
# - A token costs 2 FLOPs per parameter, and 4TC a layer for attention itself.
#
# What to try next: the lens on a text of your own. [Assignment A1](assignments/a1_ops/README.md) asks for these
# operations, forward and backward; [the next tutorial](04_backpropagation.ipynb) derives the backward pass.
#
# ## Papers
#
# - A. Radford, J. Wu, R. Child, D. Luan, D. Amodei, I. Sutskever: Language models are unsupervised multitask learners.
#   2019. GPT-2.
# - T. Brown et al.: Language models are few-shot learners. 2020, [arXiv:2005.14165](https://arxiv.org/abs/2005.14165).
#   GPT-3.
# - J. L. Ba, J. R. Kiros, G. E. Hinton: Layer normalization. 2016, [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)
# - D. Hendrycks, K. Gimpel: Gaussian error linear units. 2016, [arXiv:1606.08415](https://arxiv.org/abs/1606.08415)
# - O. Press, L. Wolf: Using the output embedding to improve language models. 2016,
#   [arXiv:1608.05859](https://arxiv.org/abs/1608.05859). Tied tables.
# - nostalgebraist: interpreting GPT: the logit lens. 2020, a post on LessWrong; N. Elhage et al.: A mathematical
#   framework for transformer circuits. 2021, transformer-circuits.pub. The residual stream.
