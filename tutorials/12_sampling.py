# %% [markdown]
# # 12. Sampling, the KV cache, and where decode time goes
#
# **You will be able to** turn a model's numbers into text by temperature, top-k, top-p and min-p, and say what each of
# them cuts off; write the cache that makes a token cost the same however long the text is; and compute, before you run
# a model, how many tokens a second it can write at best and how much memory its texts need.
#
# **Needs:** a laptop.  **Before:** [2](02_attention.ipynb)  **Time:** about 60 minutes

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from lesson import BLUE, GREEN, GREY, ORANGE, RED, case, check, here, seconds, source

from minigpt import GPT, ModelConfig, Tokenizer, ops
from minigpt.generate import KVCache, sampling

model, tokenizer = GPT.from_pretrained(here("checkpoint")), Tokenizer.from_pretrained(here("checkpoint"))
config = model.config
ops.set_num_threads(1)                     # a step of so small a model is done before a second core has woken up
print(f"trained on Shakespeare: {config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels, "
      f"{config.vocab_size} tokens")

# %% [markdown]
# ## What a model says
#
# A GPT takes a text, cut into tokens, and gives one number for each token of its vocabulary, a *logit*: the higher,
# the better the token fits as the next. `softmax` makes probabilities of them: e to the power of each, divided by
# their sum. (Taking away the largest logit first changes nothing but keeps the powers small.)

# %%
def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()

def next_logits(prompt):                                           # -> (V,)
    ids = tokenizer.encode(prompt)
    return model.forward(np.array([ids]), last=True)[0, 0].astype(np.float64)

prompts = ("KING RICHARD", "My lord, the")
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4))
for panel, prompt in zip(panels, prompts, strict=True):
    p = softmax(next_logits(prompt))
    best = p.argsort()[::-1][:12]
    panel.barh([repr(tokenizer.decode([i])) for i in best], p[best])
    panel.invert_yaxis(), panel.set_title(f"after {prompt!r}"), panel.set_xlabel("probability")
plt.show()

# %% [markdown]
# On the left the model is nearly sure: there are two King Richards. On the right a hundred tokens would do. One rule
# has to serve both.
#
# ## Drawing a token
#
# To draw from these probabilities, lay the tokens side by side on a line from 0 to 1, each as long as its probability,
# throw a uniform random number u on the line, and take the token that it hits. The ends of the pieces are the running
# sums of p; the token is the first whose running sum is above u.
#
# ### Exercise 1 (5 minutes): draw
#
# Write it. A token of probability 0 must never come, not even for u = 0.

# %%
def draw(p, u):                            # p (V,), u in [0, 1) -> the token's number, an int
    ...

# %%
check(draw, case(np.array([0.5, 0.3, 0.2]), 0.6, want=1, why="0.6 lies between 0.5 and 0.8: the second token"),
      case(np.array([0.5, 0.3, 0.2]), 0.9, want=2, why="the running sums are 0.5, 0.8, 1.0"),
      case(np.array([0.25, 0.75]), 0.25, want=1, why="u = 0.25 is not below 0.25: the first piece is [0, 0.25)"),
      case(np.array([0.0, 1.0]), 0.0, want=1, why="the first token has probability 0: its sum is not above 0"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `np.cumsum` gives the running sums; `argmax` of an array of False and True is the place of the first True. `int(...)`
# makes it a plain number.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def draw(p, u):
#     return int((p.cumsum() > u).argmax())
# ```
#
# </details>

# %%
p, rng = softmax(next_logits("KING RICHARD")), np.random.default_rng(0)
drawn = (p.cumsum() > rng.random((5000, 1))).argmax(axis=-1)               # 5000 draws at once
best = p.argsort()[::-1][:4]
order = np.r_[best, np.setdiff1d(np.arange(len(p)), best)]                 # these four first, for the picture
edges = np.r_[0, p[order].cumsum()]

# %%
plt.figure(figsize=(8, 1.9))
for i, color in enumerate((BLUE, ORANGE, GREEN, RED)):
    share = (drawn == best[i]).mean()
    plt.barh(0, p[best[i]], left=edges[i], color=color,
             label=f"{tokenizer.decode([best[i]])!r}: p = {p[best[i]]:.3f}, drawn {share:.3f}")
plt.barh(0, 1 - edges[4], left=edges[4], color=GREY, label="all others")
plt.plot(rng.random(40), np.full(40, 0.55), "v", color="black", ms=5)
plt.yticks([]), plt.xlim(0, 1), plt.xlabel("u")
plt.legend(ncols=2, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.45))
plt.title("the tokens as pieces of a line; 40 of the random numbers")
plt.show()

# %% [markdown]
# ## Temperature
#
# Divide all logits by a number T before the softmax. T below 1 makes large differences larger: the likely becomes
# likelier. T above 1 evens out. In probabilities: p becomes proportional to p to the power 1/T.
#
# **Predict:** look at the likeliest token after 'My lord, the' in the picture above. How likely is it at T = 0.5? And
# at T = 0.1?

# %%
logits = next_logits("My lord, the")
ranked = np.sort(logits)[::-1]
for T, color in ((0.1, RED), (0.5, ORANGE), (1.0, BLUE), (2.0, GREY)):
    p = softmax(ranked / T)
    surprise = -(p * np.log2(np.maximum(p, 1e-300))).sum()
    plt.semilogx(np.arange(1, len(p) + 1), p.cumsum(), color=color,
                 label=f"T = {T}: the first {p[0]:.0%}, {surprise:.1f} bits")
plt.title("how much the likeliest n tokens have together, after 'My lord, the'")
plt.xlabel("n"), plt.ylabel("probability together"), plt.legend()
plt.show()

# %% [markdown]
# The bits are the *entropy*, how surprising a draw is on average: 1024 equally likely tokens would be 10 bits. At T
# near 0 only the likeliest is left: *greedy* choice.
#
# **Predict:** always the likeliest token: is that the best text?

# %%
def write(prompt, n, **how):
    return tokenizer.decode(model.generate(tokenizer.encode(prompt), n, eos_token_id=None, **how))

print(write("ROMEO:\n", 130, temperature=0))

# %% [markdown]
# The likeliest continuation of a text that has said something twice is to say it again, and each repetition makes the
# next one likelier. Count it: the share of groups of 4 tokens that the text has had before.

# %%
def repeated(ids, group=4):
    groups = [tuple(ids[i:i + group]) for i in range(len(ids) - group + 1)]
    return 1 - len(set(groups)) / len(groups)

temperatures, shares = [0, 0.25, 0.5, 0.75, 1.0, 1.25], []
starts = np.array([tokenizer.encode("ROMEO:\nI")] * 4)
for T in temperatures:
    texts = model.generate(starts, 120, temperature=T, seed=0, eos_token_id=None)
    shares.append(np.mean([repeated(text.tolist()) for text in texts]))
real = tokenizer.encode(here("data/shakespeare.txt").read_text(encoding="utf-8")[:100_000])
real_share = np.mean([repeated(real[i:i + 120]) for i in range(0, len(real) - 120, 120)])
plt.plot(temperatures, shares, "o-", label="the model"), plt.ylim(0)
plt.axhline(real_share, color=GREY, ls=":", label="Shakespeare"), plt.legend()
plt.title("groups of 4 tokens that were there before, in 120 tokens"), plt.xlabel("temperature")
plt.ylabel("share")
plt.show()

# %% [markdown]
# ## Cutting off the tail
#
# At T = 1 the model's own probabilities are used, and still the text is worse than it could be. Look at the right
# panel above once more: after 'My lord, the' each of hundreds of tokens is unlikely, but together they are drawn
# often, and the model knows little about them. One bad token, and what follows it must make sense of it. So the tail
# is cut off, and the rest is scaled to sum to 1. Three rules are common:
#
# - *top-k*: keep the k likeliest;
# - *top-p* (nucleus): keep the fewest that together have at least probability p;
# - *min-p*: keep those with at least a share m of the likeliest one's probability.
#
# **Predict:** top-k with k = 50, top-p with 0.9, min-p with 0.1: how many tokens does each keep after 'KING RICHARD',
# how many after 'My lord, the'?

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
for panel, prompt in zip(panels, prompts, strict=True):
    p = np.sort(softmax(next_logits(prompt)))[::-1]
    kept = {"top-k 50": 50, "top-p 0.9": int((p.cumsum() - p < 0.9).sum()),
            "min-p 0.1": int((p >= 0.1 * p[0]).sum())}
    panel.loglog(np.arange(1, len(p) + 1), p, color=BLUE)
    for (rule, n), color in zip(kept.items(), (GREY, GREEN, RED), strict=True):
        panel.axvline(n, color=color, ls="--", label=f"{rule}: {n} tokens, {p[:n].sum():.0%}")
    panel.set_title(f"after {prompt!r}"), panel.set_xlabel("rank of the token"), panel.legend(fontsize=8)
panels[0].set_ylabel("probability")
plt.show()

# %% [markdown]
# The fixed k keeps far too many on the left. The other two follow the shape of the distribution; min-p is stricter
# where the model is unsure.
#
# ### Exercise 2 (10 minutes): top-p
#
# Write `top_p`: the probabilities after cutting, in their old places, 0 where cut, with sum 1. The token with which
# the running sum reaches `share` is kept.

# %%
def top_p(p, share):                       # p (V,) -> (V,)
    ...

# %%
check(top_p, case(np.array([0.2, 0.5, 0.3]), 0.7, want=np.array([0, 0.625, 0.375]),
                  why="0.5 is not enough, 0.5 + 0.3 is: two are kept, and divided by 0.8"),
      case(np.array([0.2, 0.5, 0.3]), 0.5, want=np.array([0.0, 1, 0]),
           why="the likeliest alone reaches 0.5, and no other is needed"),
      case(np.array([0.1, 0.2, 0.3, 0.4]), 0.85, want=np.array([0, 2, 3, 4]) / 9,
           why="three are needed; they stay in their places"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Sort from large to small with `order = p.argsort()[::-1]`. A token is kept if those before it in this order have less
# than `share` together: `p[order].cumsum() - p[order] < share`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def top_p(p, share):
#     order = p.argsort()[::-1]
#     ranked = p[order]
#     before = ranked.cumsum() - ranked
#     kept = np.zeros_like(p)
#     kept[order] = np.where(before < share, ranked, 0)
#     return kept / kept.sum()
# ```
#
# </details>

# %% [markdown]
# Here are the package's lines. They do the same for a batch of texts, and find the probability of the last token that
# is kept rather than its rank; min-p it has not.

# %%
source(sampling.probabilities)

# %%
logits, many = next_logits("My lord, the"), 1000
ours = (softmax(logits).cumsum() > np.random.default_rng(7).random((many, 1))).argmax(axis=-1)
theirs = sampling.sample(np.tile(logits, (many, 1)), np.random.default_rng(7))
print(f"given the same random numbers, sample draws the same token in {(ours == theirs).sum()} of {many} cases")

# %%
settings = {"T = 1": dict(), "T = 0.8, top-k 50": dict(temperature=0.8, top_k=50),
            "T = 0.9, top-p 0.9": dict(temperature=0.9, top_p=0.9)}
for name, how in settings.items():
    print(f"--- {name}\n{write('JULIET:', 45, seed=3, **how)}\n")

# %% [markdown]
# ## The cache
#
# To write the next token, the model reads the whole text so far. The simplest loop gives it the whole text every time:
# for T tokens, 1 + 2 + ... + T = T (T + 1) / 2 positions are computed. But attention is *causal*: a position looks
# only at those before it, so nothing that was computed for them changes when a token is added. Is it so?

# %%
ids = np.array([tokenizer.encode("But soft, what light through yonder window breaks?")])    # (1, T)
whole = model.forward(ids)                                                                 # (1, T, V)
for T in (3, 6, ids.shape[1]):
    print(f"the first {T} tokens alone: logits differ by {np.abs(model.forward(ids[:, :T]) - whole[:, :T]).max():.1e}")

# %% [markdown]
# (The last digits may differ, where the machine adds in another order.) So each position needs to be computed once.
# What later positions need of it is, in every layer, its *key* and its *value*: a new query is compared with all keys,
# and the values are averaged with the weights that result. Keep those, the *KV cache*, and a token costs the work of
# one position, and one look at all keys and values.
#
# ### Exercise 3 (12 minutes): one step with a cache
#
# One head of attention, one new token. `keys` and `values` are buffers with room for many tokens, of which `length`
# are filled. Put k and v behind them, on copies of the buffers, and return the new token's output, softmax(keys · q /
# √D) times the values, over the tokens that are there, with the two buffers.

# %%
def step(q, k, v, keys, values, length):   # (D,) (D,) (D,) (room, D) (room, D) int -> (D,), keys, values
    keys, values = keys.copy(), values.copy()
    ...

# %%
def attention(q, k, v):                    # the definition, for the last of T tokens: (T, D) each -> (D,)
    return softmax(k @ q[-1] / np.sqrt(q.shape[1])) @ v

def wanted(T, room, D):
    q, k, v = rng.standard_normal((3, T, D))
    keys, values = (np.full((room, D), 7.0) for _ in range(2))             # what is not filled yet holds anything
    keys[:T - 1], values[:T - 1] = k[:-1], v[:-1]
    after = [np.r_[x, np.full((room - T, D), 7.0)] for x in (k, v)]
    return case(q[-1], k[-1], v[-1], keys, values, T - 1, want=(attention(q, k, v), *after),
                why=f"{T} tokens in a buffer for {room}: keys[:{T}] count, the new one among them")

check(step, wanted(1, 4, 2), wanted(5, 8, 4), wanted(16, 16, 8))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `keys[length] = k`, and from then on only `keys[:length + 1]`. D is `len(q)`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def step(q, k, v, keys, values, length):
#     keys, values = keys.copy(), values.copy()
#     keys[length], values[length] = k, v
#     weights = softmax(keys[:length + 1] @ q / np.sqrt(len(q)))
#     return weights @ values[:length + 1], keys, values
# ```
#
# </details>

# %% [markdown]
# The package's cache is that, for all heads of a layer and a batch of texts, without the copies:

# %%
source(KVCache.__init__)
source(type(KVCache(config).layers[0]).append)

# %%
cache = KVCache(config)
one_by_one = [model.forward(ids[:, t:t + 1], cache=cache)[:, 0] for t in range(ids.shape[1])]
print(f"token by token with the cache: logits differ by {np.abs(np.stack(one_by_one, 1) - whole).max():.1e}")

# %% [markdown]
# Now the cost. For each step, without and with the cache, count the FLOPs of the matrix products (2 for each weight
# that a token meets, and what attention adds), then measure. The checkpoint sees only 128 tokens; a larger model with
# random weights shows the curve better.
#
# **Predict:** at 512 tokens, how many times faster is a step with the cache?

# %%
larger = GPT(ModelConfig(vocab_size=1024, block_size=512, n_layer=4, n_head=6, n_embd=384), seed=0)
tokens, lengths = rng.integers(0, 1024, (1, 512)), [1, 32, 64, 128, 192, 256, 384, 512]
cache = KVCache(larger.config)
larger.forward(tokens, cache=cache, last=True)                             # fills it

def with_cache(T):
    cache.length = T - 1                                                   # forget what comes after
    larger.forward(tokens[:, T - 1:T], cache=cache, last=True)

recomputed = [seconds(partial(larger.forward, tokens[:, :T], last=True), repeats=3) * 1e3 for T in lengths]
cached = [seconds(with_cache, T) * 1e3 for T in lengths]
counted = sum(larger.config.flops_per_token(t) for t in range(1, 513)), \
    sum(t * larger.config.flops_per_token(t) for t in range(1, 513))
print(f"512 tokens: {counted[0] / 1e9:.1f} GFLOP with the cache, {counted[1] / 1e9:.0f} without")
print(f"the last of them took {cached[-1]:.2f} ms with the cache, {recomputed[-1]:.1f} ms without: "
      f"{recomputed[-1] / cached[-1]:.0f} times")

# %%
plt.semilogy(lengths, recomputed, "o-", color=RED, label="all computed again")
plt.semilogy(lengths, cached, "o-", color=GREEN, label="with the cache")
plt.title("the time of one more token"), plt.xlabel("tokens in the text"), plt.ylabel("ms"), plt.legend()
plt.show()

# %% [markdown]
# The last step needs some 500 times fewer FLOPs with the cache, and the clock says less than that on most machines. A
# step with the cache does so little arithmetic that something else must be its limit.
#
# ## Where decode time goes
#
# A step for one text multiplies every weight matrix by one vector: each weight is read from memory, used for one
# multiplication and one addition, and not needed again. 2 FLOPs for 4 bytes. That is as memory-bound as it gets
# ([6](06_layernorm_in_cpp.ipynb) draws the roofline). So the hand count for decoding is short:
#
# **tokens per second ≤ bandwidth / bytes of the weights**
#
# Measure the bandwidth by a dot product of a large array with itself, which reads it once, and take a model that does
# not fit in the caches.

# %%
big = GPT(ModelConfig(vocab_size=16384, block_size=512, n_layer=6, n_head=8, n_embd=512), seed=0)
large = np.ones(2 ** 25, np.float32)
bandwidth = large.nbytes / seconds(np.dot, large, large)
weight_bytes = 4 * big.num_parameters()
limit = bandwidth / weight_bytes

# %%
def cache_of_64(texts):                                                    # as after 64 tokens
    cache = KVCache(big.config, texts)
    for layer in cache.layers:
        layer.k[:, :, :64] = layer.v[:, :, :64] = 0
    return cache

def decode(cache, texts):
    cache.length = 64
    big.forward(np.zeros((texts, 1), np.int64), cache=cache, last=True)

cache = cache_of_64(1)
measured = 1 / seconds(decode, cache, 1)
print(f"{weight_bytes / 1e6:.0f} MB of weights at {bandwidth / 1e9:.1f} GB/s: at most {limit:.0f} tokens/s")
print(f"measured: {measured:.0f} tokens/s, {measured / limit:.0%} of that")

# %% [markdown]
# (More than 100 % can come out where a large cache holds a good part of the weights from one token to the next.)
#
# **Predict:** now 16 texts at once, each one token further. The arithmetic is 16 times as much. How much longer does a
# step take?

# %%
batches, steps = [1, 2, 4, 8, 16, 32, 64], []
for B in batches:
    steps.append(seconds(decode, cache_of_64(B), B, repeats=3))
print("  ".join(f"{B}: {t * 1e3:.1f} ms" for B, t in zip(batches, steps, strict=True)))
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2))
panels[0].plot(batches, np.array(steps) * 1e3, "o-"), panels[0].set_ylabel("ms"), panels[0].set_ylim(0)
panels[0].set_title("time of a step")
panels[1].loglog(batches, batches / np.array(steps), "o-", base=2, label="measured")
panels[1].loglog(batches, limit * np.array(batches), color=GREY, ls=":", base=2, label="if only weights counted")
panels[1].set_title("tokens per second, all texts together"), panels[1].legend()
for panel in panels:
    panel.set_xlabel("texts at once")
plt.show()

# %% [markdown]
# The weights are read once for all texts, so 16 texts take far less than 16 times as long as one: the intensity grows
# by half a FLOP per byte with every text. Then arithmetic becomes the limit, and the curve bends: that is the
# roofline's corner, met from the left. This is why services put many users' texts in one batch.
#
# The same holds within a text. A *prompt* is known in advance, so all its positions go through the model in one pass,
# each weight serving them all.
#
# **Predict:** a prompt of 256 tokens at once, or token by token: which ratio of tokens per second?

# %%
prompt = rng.integers(0, big.config.vocab_size, (1, 256))

def read_prompt():
    cache.length = 0
    big.forward(prompt, cache=cache)                                       # logits of all, as when one by one

at_once = 256 / seconds(read_prompt, repeats=3)
flops = big.config.flops_per_token(128)
print(f"prompt: {at_once:.0f} tokens/s, {at_once * flops / 1e9:.0f} GFLOP/s; "
      f"one by one: {measured:.0f} tokens/s, {measured * flops / 1e9:.0f} GFLOP/s; ratio {at_once / measured:.1f}")

# %%
intensity = np.array([0.5, 0.5 * 16, 0.5 * 256])
rates = np.array([measured, 16 / steps[4], at_once]) * flops / 1e9
peak = rates.max()
at = np.array([0.2, peak * 1e9 / bandwidth, 500])
plt.loglog(at, np.minimum(at * bandwidth / 1e9, peak), color=GREY, label="roof: bandwidth, and the best rate reached")
for i, name in enumerate(("one text", "16 texts", "a prompt of 256")):
    plt.plot(intensity[i], rates[i], "o", ms=9, color=(RED, ORANGE, GREEN)[i], label=f"{name}: {rates[i]:.0f} GFLOP/s")
plt.title("reading and writing on the roofline"), plt.legend(fontsize=9)
plt.xlabel("FLOPs per byte of weights read"), plt.ylabel("GFLOP/s")
plt.show()

# %% [markdown]
# Fewer bytes per weight move the limit of one text directly. With 16-bit weights half the bytes are read, with 8 bits
# a quarter, with 4 bits an eighth. (This package's models compute in 32 bits; the numbers are the count, not a
# measurement.)

# %%
for name, parameters in (("GPT-2", ModelConfig.preset("gpt2").num_parameters()),
                         ("Llama 3 70B", ModelConfig.preset("llama3-70b").num_parameters())):
    for bits in (32, 16, 8, 4):
        size = parameters * bits / 8
        print(f"{name:12} {bits:2} bits: {size / 1e9:7.2f} GB, at most {bandwidth / size:8.2f} tokens/s here, "
              f"{3.35e12 / size:7.0f} at the 3.35 TB/s of an H100")

# %% [markdown]
# ## How large the cache is
#
# The cache trades memory for time. Of each token it keeps, in each layer, a key and a value of every head of keys and
# values: **2 · layers · heads · head size** numbers. Two inventions make it smaller:
#
# - *grouped heads*: several heads of queries share one head of keys and values (`n_kv_head` of `ModelConfig`);
# - *latent attention* (DeepSeek): only a short vector is kept, `kv_lora_rank` numbers, from which the keys and values
#   of all heads are made again, and one key of `qk_rope_head_dim` numbers that carries the position: **layers ·
#   (kv_lora_rank + qk_rope_head_dim)** numbers.
#
# ### Exercise 4 (8 minutes): bytes of cache
#
# Write it for a ModelConfig: it has `n_layer`, `n_head`, `n_kv_head`, `head_size`, and `kv_lora_rank`, which is 0
# where attention is not latent.

# %%
def cache_bytes(config, tokens, bytes_each):
    ...

# %%
preset = ModelConfig.preset
check(cache_bytes, case(preset("gpt2"), 1, 4, want=73728, why="2 * 12 layers * 12 heads * 64 * 4 bytes"),
      case(preset("llama3-70b"), 8192, 2, want=2684354560, why="8 heads of keys and values, not 64: n_kv_head"),
      case(preset("deepseek-v3"), 1, 2, want=70272, why="latent: 61 layers of 512 + 64 numbers, not twice"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Numbers per layer and token: `2 * n_kv_head * head_size`, or with a latent `kv_lora_rank + qk_rope_head_dim`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def cache_bytes(config, tokens, bytes_each):
#     numbers = 2 * config.n_kv_head * config.head_size
#     if config.kv_lora_rank:
#         numbers = config.kv_lora_rank + config.qk_rope_head_dim
#     return config.n_layer * numbers * tokens * bytes_each
# ```
#
# </details>

# %%
def per_token(c, heads=None):                                              # numbers kept of a token
    latent = c.kv_lora_rank + c.qk_rope_head_dim
    whole = (heads or c.n_kv_head) * (c.head_size + c.v_head_size)             # DeepSeek's values are shorter than keys
    return c.n_layer * (latent if c.kv_lora_rank and not heads else whole)

cache = KVCache(config)
real = sum(layer.k.nbytes + layer.v.nbytes for layer in cache.layers)
print(f"the checkpoint: {4 * per_token(config) * config.block_size:,} bytes counted, {real:,} in the package's cache")
models = ("gpt2", "gpt3-175b", "llama3-70b", "deepseek-v3")
kept, without = [[2 * per_token(preset(m), heads) / 1024 for m, heads in pairs] for pairs in (
    [(m, None) for m in models], [(m, preset(m).n_head) for m in models])]
for i, m in enumerate(models):
    print(f"{m:12} {kept[i]:8.1f} KB a token in 16 bits; {80e9 / (kept[i] * 1024):11,.0f} tokens in 80 GB")

# %%
places = np.arange(len(models))
plt.barh(places - 0.2, without, 0.38, color=GREY, label="keys and values of all heads")
plt.barh(places + 0.2, kept, 0.38, color=BLUE, label="what is kept")
plt.yticks(places, models), plt.gca().invert_yaxis(), plt.xscale("log")
plt.title("KV cache of one token, in 16 bits"), plt.xlabel("KB"), plt.legend()
plt.show()

# %% [markdown]
# GPT-3's cache for one text of 2048 tokens is 9.7 GB, which are read for every token beside the weights. Llama 3 70B
# keeps an eighth of what 64 heads would need; DeepSeek-V3, with 128 heads, about a seventieth.
#
# ## Two models, one text
#
# If reading the weights is what a token costs, and a batch is nearly free, then one pass should check several tokens.
# *Speculative decoding*: a small, quick model (the draft, with probabilities q) proposes some tokens; the large one
# (p) looks at all of them in one pass, and keeps a proposed token x with probability min(1, p(x) / q(x)). If it
# refuses, it draws a replacement from the part of p that q did not cover, max(p - q, 0), scaled to sum 1.
#
# **Predict:** the draft below thinks differently from the large model. Whose distribution will the tokens have in the
# end?

# %%
p = np.array([0.45, 0.25, 0.15, 0.10, 0.05])                               # the large model
q = np.array([0.20, 0.45, 0.05, 0.05, 0.25])                               # the draft
many = 100_000
proposed = rng.choice(5, many, p=q)
accepted = rng.random(many) < np.minimum(1, p / q)[proposed]
rest = np.maximum(p - q, 0)
result = np.where(accepted, proposed, rng.choice(5, many, p=rest / rest.sum()))
for i, (name, values, color) in enumerate((("p, large model", p, BLUE), ("q, draft", q, GREY),
                                           ("result", np.bincount(result) / many, GREEN))):
    plt.bar(np.arange(5) + 0.27 * (i - 1), values, 0.25, color=color, label=name)
plt.title(f"{accepted.mean():.1%} accepted; counted: {np.minimum(p, q).sum():.1%}")
plt.xlabel("token"), plt.ylabel("probability"), plt.legend()
plt.show()

# %% [markdown]
# Exactly p. Token x comes by acceptance with q(x) · min(1, p(x) / q(x)) = min(p(x), q(x)), and by replacement with
# what is missing to p(x). So the draft decides only how often it is right, a = Σ min(p, q), and never what is written.
#
# ### Exercise 5 (7 minutes): what it gains
#
# The draft proposes n tokens; each is accepted with probability a, if all before it were. The pass of the large model
# gives one more token in any case (the replacement, or the one after the last). How many tokens does a pass give on
# average?

# %%
def tokens_per_pass(a, n):                 # -> a float
    ...

# %%
check(tokens_per_pass, case(0.5, 1, want=1.5, why="one in any case, and half of the time the proposed one"),
      case(0.5, 2, want=1.75, why="the second proposal counts only if the first was accepted: 1 + a + a²"),
      case(0.9, 4, want=4.0951, why="1 + a + a² + a³ + a⁴"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# The token number i is accepted with probability a to the power i. Add them up, and 1.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def tokens_per_pass(a, n):
#     return float(sum(a ** i for i in range(n + 1)))
# ```
#
# </details>

# %% [markdown]
# How good is a cheap draft for our checkpoint? The cheapest there is: count which token follows which in the text (a
# *bigram* table), and compare it with the model on a passage from the last tenth of the text, which neither has seen.

# %%
text = here("data/shakespeare.txt").read_text(encoding="utf-8")
seen = np.array(tokenizer.encode(text[:int(0.9 * len(text))]))
table = np.full((config.vocab_size, config.vocab_size), 0.01)              # so that nothing is impossible
np.add.at(table, (seen[:-1], seen[1:]), 1)
table /= table.sum(axis=1, keepdims=True)                                  # row: the token before
new = np.array(tokenizer.encode(text[int(0.95 * len(text)):][:2000]))[:config.block_size]
large_model = np.apply_along_axis(softmax, 1, model.forward(new[None])[0].astype(np.float64))   # (T, V)
agreement = np.minimum(large_model, table[new]).sum(axis=1)                # (T,)
a = agreement.mean()
print(f"the draft would be accepted {a:.0%} of the time")
plt.hist(agreement, bins=20, range=(0, 1))
plt.axvline(a, color=RED, label="mean"), plt.legend()
plt.title("where a table of pairs agrees with the model"), plt.xlabel("probability of acceptance")
plt.ylabel("positions")
plt.show()

# %% [markdown]
# So large a share of the tokens needs no large model. (The package has no speculative decoding; with the cache's
# `length`, which may be set back when proposals are refused, it is a short exercise.)
#
# ## The whole loop
#
# All of this together is `minigpt.generate.stream`. These are its last lines: cut the text if it outgrows the block,
# give the model only what the cache has not seen, draw, go on.

# %%
source("minigpt/generate/__init__.py", "for _ in range(max_new_tokens):", "text = np.concatenate([text, ids[:, None]]")

# %%
start = tokenizer.encode("ROMEO:\n")
kinds = {"with the cache": True, "without": False}
made = {name: model.generate(start, 100, seed=1, use_cache=use, eos_token_id=None) for name, use in kinds.items()}
for name, use in kinds.items():
    t = seconds(partial(model.generate, start, 100, seed=1, use_cache=use, eos_token_id=None), repeats=2)
    print(f"{name:15} {100 / t:6.0f} tokens/s")
same = sum(x == y for x, y in zip(*made.values(), strict=True))
print(f"{same} of {len(start) + 100} tokens are the same in both")

# %% [markdown]
# ## Summary
#
# - A token is drawn by laying probabilities on a line; temperature sharpens or flattens them, top-p and min-p cut the
#   tail where the shape says so, top-k at a fixed place. Greedy choice repeats itself.
# - Causal attention never changes what was computed: keeping 2 · layers · heads · head size numbers for each token
#   turns about T² / 2 positions of work into T.
# - One text at a time reads all weights for 2 FLOPs per 4 bytes: tokens per second ≤ bandwidth / bytes of the weights.
# - More texts, or a prompt, use each weight many times and are limited by arithmetic instead.
# - GPT-3 keeps 4.5 MB a token in 16 bits, Llama 3 70B 320 KB with grouped heads, DeepSeek-V3 68.6 KB with a latent.
# - Speculative decoding writes exactly the large model's distribution, several tokens a pass.
#
# Write the sampler yourself, from tokenizer to text, in the assignment [a5_text](assignments/a5_text/README.md).
#
# ## Papers
#
# - A. Holtzman, J. Buys, L. Du, M. Forbes, Y. Choi, *The Curious Case of Neural Text Degeneration* (top-p), 2019,
#   [arXiv:1904.09751](https://arxiv.org/abs/1904.09751)
# - M. N. Nguyen and others, *Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs*, 2024,
#   [arXiv:2407.01082](https://arxiv.org/abs/2407.01082)
# - N. Shazeer, *Fast Transformer Decoding: One Write-Head is All You Need*, 2019,
#   [arXiv:1911.02150](https://arxiv.org/abs/1911.02150)
# - J. Ainslie and others, *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*,
#   2023, [arXiv:2305.13245](https://arxiv.org/abs/2305.13245)
# - DeepSeek-AI, *DeepSeek-V2* (latent attention), 2024, [arXiv:2405.04434](https://arxiv.org/abs/2405.04434)
# - R. Pope and others, *Efficiently Scaling Transformer Inference*, 2022,
#   [arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
# - Y. Leviathan, M. Kalman, Y. Matias, *Fast Inference from Transformers via Speculative Decoding*, 2022,
#   [arXiv:2211.17192](https://arxiv.org/abs/2211.17192)
# - C. Chen and others, *Accelerating Large Language Model Decoding with Speculative Sampling*, 2023,
#   [arXiv:2302.01318](https://arxiv.org/abs/2302.01318)
