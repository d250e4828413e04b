"""The GPT: forward pass and hand-written backward pass, written once over `ops` (and +) for every backend.

Read `_trunk_forward` and `_trunk_backward` side by side: each line of the one has its counterpart in the other, in
reverse order; then the three pairs that they call, `_norm_*`, `_attention_*` and `mlp_*`. Two branches have a file of
their own, with the same pair of functions: latent_attention.py, and moe.py, the mixture of experts. Shapes stand at the
end of the lines, in the letters of numpy_ops.py: C = n_embd, H = n_head, Hkv = n_kv_head, D = head_size, F = n_inner.

The residual stream `h` runs through all layers; each norm adds to it what the last branch (attention or MLP) made, and
hands the normalised sum to the next branch. Activations and gradients live in buffers that the model keeps, because
fresh memory costs more than arithmetic: after the first step nothing large is allocated.
"""

from __future__ import annotations

import functools
import math
import operator
import reprlib
from types import ModuleType

import numpy as np

from . import ops as backends
from .config import ModelConfig, is_trained
from .generate import generate
from .latent_attention import latent_attention_backward, latent_attention_forward
from .moe import experts_backward, experts_forward
from .ops.memory import aligned_empty, aligned_zeros
from .ops.numpy_ops import rope_tables

INIT_STD = 0.02


class GPT:
    """A GPT of the shape `config`, computed by `ops` (a backend's name or module; None: the fastest that loads here).

    params   {name: array}, the weights, named and shaped as config.parameter_shapes() says. Random from `seed` as in
             GPT-2, the same on every backend, or the arrays given as `params` (not copied).
    grads    {name: array}, the sum of the gradients since zero_grad().
    losses   (B, T), the loss of every token in the last forward pass that had targets, 0 where the target was -100.
             Overwritten by the next.
    router_loss    what router_aux_loss and router_z_loss add to that pass' mean loss. forward() returns the mean loss
                   alone; the gradients of backward() are those of the sum.
    expert_counts  {layer: (E,)}, how many tokens each expert got in training since zero_grad()
    """

    def __init__(self, config: ModelConfig, ops: str | ModuleType | None = None, seed: int = 0,
                 params: dict[str, np.ndarray] | None = None):
        if not isinstance(config, ModelConfig):
            raise TypeError(f"GPT: config is {config!r}, must be a ModelConfig")
        self.config = config
        self.ops = backends.load(ops or backends.default()) if ops is None or isinstance(ops, str) else ops
        if not hasattr(self.ops, "linear_forward"):
            raise TypeError(f"GPT: ops is {ops!r}, must be a backend's name or module")
        if config.n_expert and not hasattr(self.ops, "moe_router_forward"):
            raise ValueError(f"GPT: ops is {self.ops.name!r}, must be numpy or cpp: others have no mixture of experts")
        self.params = random_params(config, seed) if params is None else checked_params(config, params)
        self.dtype = self.params["wte"].dtype
        self.losses = None
        self.router_loss, self.expert_counts = 0.0, {}
        self.eos_token_id = None            # where generate() ends a text; from_pretrained sets it
        self._buffers = {}                  # {name: (flat array, the view of it that was last in use)}
        self.saved, self.keep = {}, False   # {part of the model: what its backward pass needs}, and whether it is kept
        self.share = 1.0                    # the last backward pass' part of all targets, which router_loss counts with
        if config.position == "rope":
            self.cos, self.sin = rope_tables(config.block_size, config.rope_size, config.rope_base, dtype=self.dtype)

    def num_parameters(self) -> int:
        return self.config.num_parameters()

    @functools.cached_property
    def grads(self):                        # made when first asked for: a model that only generates has none
        return {name: aligned_zeros(x.shape, self.dtype) for name, x in self.params.items() if is_trained(name)}

    def zero_grad(self):
        self.expert_counts.clear()
        for grad in self.grads.values():
            grad.fill(0)

    def resize_token_embeddings(self, new_num_tokens: int):
        """Makes wte (and an untied head) new_num_tokens rows long, and returns wte, (new_num_tokens, C). New rows are
        the mean of the old ones, so that a new token is neither likelier nor stranger than others at first (J. Hewitt,
        "Initializing New Word Embeddings for Pretrained Language Models", 2021). Call it after the tokenizer has
        grown, and before a Trainer is made. ValueError for what is no number of tokens;
        after a MemoryError the model is as before."""
        config, resized = self.config.with_vocab_size(new_num_tokens), {}
        for name in {"wte", self._head_name()}:
            old = self.params[name]
            new = resized[name] = aligned_empty((config.vocab_size, old.shape[1]), self.dtype)
            new[:len(old)] = old[:len(new)]
            new[len(old):] = old.mean(axis=0)
        self.config = config
        self.params.update(resized)
        self.__dict__.pop("grads", None)
        self.saved = {}
        return self.params["wte"]

    def __repr__(self):
        return f"GPT({self.config}, ops={self.ops.name!r})"

    # -----------------------------------------------------------------------------------------------------------
    # the whole model

    def forward(self, tokens, targets=None, cache=None, last=False):
        """Without targets: logits (B, T, V), a new array; with last=True those of the last position only, (B, 1, V).
        With targets: the mean loss over the targets that are not -100, a float (0.0 if none is counted), and backward()
        may follow.

        tokens (B, T) integers; targets (B, T) integers, aligned to the positions: targets[b, t] is what position t is
        to predict (for a causal model the next token; the caller has shifted them). cache is a KVCache that holds the
        text before `tokens` and takes them in. ValueError for tokens out of range or longer than block_size.
        """
        if targets is None:
            y = self._trunk_forward(tokens, cache, keep=False)                                      # (B, T, C)
            if last:
                y = y[:, -1:]                                                                       # (B, 1, C)
            return self._head_forward(y, None)                                                      # (B, T, V)
        if cache is not None:
            raise ValueError("GPT.forward: a cache was given with targets, must be None when training")
        y = self._trunk_forward(tokens, None, keep=True)                                            # (B, T, C)
        logits, lse, targets, counted = self._losses_forward(y, targets)
        self.saved["head"] = y, logits, lse, targets, counted
        return self._mean_loss(counted)

    def backward(self, divisor: int | None = None):
        """Adds the gradient of sum(losses) / divisor, of the last forward pass with targets, to `grads`. divisor is the
        number of targets counted in that pass unless given: with gradient accumulation, give the number in all of
        the micro-batches together."""
        if "head" not in self.saved:
            raise ValueError("GPT.backward: there is no forward pass with targets to go back through")
        y, logits, lse, targets, counted = self.saved.pop("head")
        dloss = 1.0 / max(counted if divisor is None else divisor, 1)
        self.share = counted * dloss
        dlogits = self.ops.cross_entropy_backward(dloss, logits, targets, lse, grads=logits)        # (B, T, V)
        dy = self.buffer("dy", *y.shape)
        head = self._head_name()
        self.ops.linear_backward(dlogits, y, self.params[head], grads=(dy, self.grads[head], None), accumulate=True)
        self._trunk_backward(dy)

    def token_losses(self, tokens, targets):
        """The loss of every token, (B, T), 0 where the target is -100, without keeping what backward needs: for
        evaluation. The array is the model's own (`losses`) and is overwritten by the next call."""
        self._losses_forward(self._trunk_forward(tokens, None, keep=False), targets)
        return self.losses

    def _trunk_forward(self, tokens, cache, keep):
        """tokens (B, T) -> the output of the last norm (B, T, C)."""
        tokens = self._checked_tokens(tokens, cache)
        position = 0 if cache is None else cache.length
        self.saved, self.keep, self.router_loss = {}, keep, 0.0
        wte, wpe = self.params["wte"], self.params.get("wpe")
        h = self.buffer("embedding", *tokens.shape, self.config.n_embd)
        self.ops.embedding_forward(tokens, wte, wpe, position, out=h)                               # (B, T, C)
        branch = None                                                                               # (B, T, C)
        for i in range(self.config.n_layer):
            h, y = self._norm_forward(f"h.{i}.norm1", h, branch)
            branch = self._attention_forward(f"h.{i}.attn", y, position, None if cache is None else cache.layers[i])
            h, y = self._norm_forward(f"h.{i}.norm2", h, branch)
            branch = self._feed_forward(i, y)
        h, y = self._norm_forward("norm", h, branch)
        if cache is not None:
            cache.length += tokens.shape[1]
        if keep:
            self.saved["embedding"] = tokens
        return y

    def _trunk_backward(self, dy):
        """dy (B, T, C), the gradient of the last norm's output."""
        dh = self._norm_backward("norm", None, dy)                                                  # (B, T, C)
        for i in reversed(range(self.config.n_layer)):
            dy = self._feed_backward(i, dh)                          # a branch is added to h, so its gradient is dh
            dh = self._norm_backward(f"h.{i}.norm2", dh, dy)
            dy = self._attention_backward(f"h.{i}.attn", dh)
            dh = self._norm_backward(f"h.{i}.norm1", dh, dy)
        grads = self.grads["wte"], self.grads.get("wpe")
        self.ops.embedding_backward(dh, self.saved["embedding"], self.params["wte"], self.params.get("wpe"),
                                    grads=grads, accumulate=True)

    # -----------------------------------------------------------------------------------------------------------
    # the norm: h + branch, and the normalised sum

    def _norm_forward(self, name, h, branch):
        """h and branch (B, T, C; no branch before the first norm) -> their sum h, and y = norm(h), (B, T, C) each."""
        ops, eps, own = self.ops, self.config.norm_eps, self.own(name)
        weight, bias = self.weight_and_bias(name)                                                   # (C,)
        y, rstd = self.buffer(own + ".y", *h.shape), self.buffer(own + ".rstd", *h.shape[:-1])
        mean = None
        if self.config.norm == "rmsnorm":
            if branch is not None:
                h = np.add(h, branch, out=self.buffer(own + ".h", *h.shape))
            ops.rmsnorm_forward(h, weight, eps, out=(y, rstd))
        else:
            mean = self.buffer(own + ".mean", *h.shape[:-1])
            if branch is None:
                ops.layernorm_forward(h, weight, bias, eps, out=(y, mean, rstd))
            else:
                out = (self.buffer(own + ".h", *h.shape), y, mean, rstd)
                h, y, mean, rstd = ops.residual_layernorm_forward(branch, h, weight, bias, eps, out=out)
        if self.keep:
            self.saved[name] = h, mean, rstd
        return h, y

    def _norm_backward(self, name, dh, dy):
        """dy (B, T, C) reaches h through the norm, dh past it along the stream (not after the last norm, where it is
        None) -> the whole gradient of h, which is that of the stream before and of the branch alike. In place in dh."""
        h, mean, rstd = self.saved[name]
        (weight, _), (dweight, dbias) = self.weight_and_bias(name), self.grads_of(name)             # (C,)
        ops, last = self.ops, dh is None
        if last:
            dh = self.buffer("dh", *h.shape)
        if self.config.norm == "rmsnorm":
            dx = dh if last else self.buffer("dx", *h.shape)
            ops.rmsnorm_backward(dy, h, weight, rstd, grads=(dx, dweight), accumulate=True)
            if not last:
                dh += dx
        elif last:
            ops.layernorm_backward(dy, h, weight, mean, rstd, grads=(dh, dweight, dbias), accumulate=True)
        else:
            ops.residual_layernorm_backward(dh, dy, h, weight, mean, rstd, grads=(dh, dweight, dbias), accumulate=True)
        return dh

    # -----------------------------------------------------------------------------------------------------------
    # attention

    def _attention_forward(self, name, x, position, cache):
        """x (B, T, C) -> branch (B, T, C). `cache` is this layer's part of the KVCache, or None."""
        if self.config.kv_lora_rank:
            return latent_attention_forward(self, name, x, position, cache)
        (B, T, C), config, ops, own = x.shape, self.config, self.ops, self.own(name)
        qkv = self.buffer(own + ".qkv", B, T, (config.n_head + 2 * config.n_kv_head) * config.head_size)
        self.linear_forward(name + ".qkv", x, qkv)                                                  # (B, T, (H+2Hkv)D)
        q, k, v = self._split_heads(qkv)                                                            # (B, H | Hkv, T, D)
        if config.position == "rope":
            cos, sin = self.cos[position:position + T], self.sin[position:position + T]             # (T, D/2)
            ops.rope_forward(q, cos, sin, out=q)
            ops.rope_forward(k, cos, sin, out=k)
        if cache is not None:
            k, v = cache.append(position, k, v)                                                     # (B, Hkv, Tk, D)
        y, lse = self.buffer(own + ".y", B, T, C), self.buffer(own + ".lse", B, config.n_head, T)
        out = self.heads(y)                                                                         # (B, H, T, D)
        ops.attention_forward(q, k, v, config.causal, out=(out, lse))
        if self.keep:
            self.saved[name] = x, q, k, v, y, lse
        return self.linear_forward(name + ".proj", y, self.buffer("branch", B, T, C))

    def _attention_backward(self, name, dbranch):
        """dbranch (B, T, C) -> dx (B, T, C)."""
        if self.config.kv_lora_rank:
            return latent_attention_backward(self, name, dbranch)
        x, q, k, v, y, lse = self.saved[name]
        (B, T, C), config, ops = x.shape, self.config, self.ops
        dy = self.linear_backward(name + ".proj", dbranch, y, self.buffer("dattention", B, T, C))
        dqkv = self.buffer("dqkv", B, T, (config.n_head + 2 * config.n_kv_head) * config.head_size)
        dq, dk, dv = self._split_heads(dqkv)                                                        # (B, H | Hkv, T, D)
        ops.attention_backward(self.heads(dy), q, k, v, self.heads(y), lse, config.causal, grads=(dq, dk, dv))
        if config.position == "rope":
            ops.rope_backward(dq, self.cos[:T], self.sin[:T], grads=dq)
            ops.rope_backward(dk, self.cos[:T], self.sin[:T], grads=dk)
        return self.linear_backward(name + ".qkv", dqkv, x, self.buffer("dy", B, T, C))

    def heads(self, x):
        """The view of x (B, T, n D) as heads, (B, n, T, D): nothing is copied."""
        B, T, C = x.shape
        return x.reshape(B, T, -1, self.config.head_size).transpose(0, 2, 1, 3)

    def _split_heads(self, qkv):
        """The views q (B, H, T, D), k and v (B, Hkv, T, D) of the packed projection (B, T, (H + 2 Hkv) D)."""
        heads, H, Hkv = self.heads(qkv), self.config.n_head, self.config.n_kv_head
        return heads[:, :H], heads[:, H:H + Hkv], heads[:, H + Hkv:]

    # -----------------------------------------------------------------------------------------------------------
    # the MLP, or the mixture of experts in its place (moe.py)

    def _feed_forward(self, i, x):
        forward = experts_forward if self.config.has_experts(i) else GPT.mlp_forward
        return forward(self, f"h.{i}.mlp", x)

    def _feed_backward(self, i, dbranch):
        backward = experts_backward if self.config.has_experts(i) else GPT.mlp_backward
        return backward(self, f"h.{i}.mlp", dbranch)

    def mlp_forward(self, name, x):
        """x (B, T, C) -> branch (B, T, C)."""
        (B, T, C), own = x.shape, self.own(name)
        F = len(self.weight_and_bias(name + ".up")[0])                      # of the MLP or of the shared expert
        act, up = self.buffer(own + ".act", B, T, F), self.buffer(own + ".up", B, T, F)
        gate = None
        if self.config.activation == "swiglu":
            gate = self.linear_forward(name + ".gate", x, self.buffer(own + ".gate", B, T, F))      # (B, T, F)
            self.linear_forward(name + ".up", x, up)                                                # (B, T, F)
            self.ops.swiglu_forward(gate, up, out=act)                                              # (B, T, F)
        else:
            self.ops.linear_gelu_forward(x, *self.weight_and_bias(name + ".up"), out=(act, up))     # (B, T, F)
        if self.keep:
            self.saved[name] = x, gate, up, act
        return self.linear_forward(name + ".down", act, self.buffer("branch", B, T, C))

    def mlp_backward(self, name, dbranch):
        """dbranch (B, T, C) -> dx (B, T, C)."""
        x, gate, up, act = self.saved[name]
        dact = self.linear_backward(name + ".down", dbranch, act, self.buffer("dact", *act.shape))
        dx = self.buffer("dy", *x.shape)
        if self.config.activation == "swiglu":
            dgate, dup = self.buffer("dgate", *act.shape), self.buffer("dup", *act.shape)
            self.ops.swiglu_backward(dact, gate, up, grads=(dgate, dup))                            # (B, T, F)
            self.linear_backward(name + ".up", dup, x, dx)
            dx += self.linear_backward(name + ".gate", dgate, x, self.buffer("dx", *x.shape))
        else:
            dup = self.ops.gelu_backward(dact, up, grads=dact)                                      # (B, T, F)
            self.linear_backward(name + ".up", dup, x, dx)
        return dx

    # -----------------------------------------------------------------------------------------------------------
    # the head and the loss

    def _head_name(self):
        return "wte" if self.config.tied else "head.weight"

    def _head_forward(self, y, out):
        return self.ops.linear_forward(y, self.params[self._head_name()], out=out)                  # (B, T, V)

    def _losses_forward(self, y, targets):
        """y (B, T, C) -> self.losses (B, T), and for the backward pass logits (B, T, V), lse (B, T), the targets, and
        how many of them are counted."""
        targets = np.asarray(targets)
        if targets.shape != y.shape[:2]:
            raise ValueError(f"GPT.forward: targets has shape {targets.shape}, must be that of tokens, {y.shape[:2]}")
        logits = self._head_forward(y, self.buffer("logits", *targets.shape, self.config.vocab_size))
        out = self.buffer("losses", *targets.shape), self.buffer("lse", *targets.shape)
        self.losses, lse = self.ops.cross_entropy_forward(logits, targets, out=out)                 # (B, T)
        return logits, lse, targets, int(np.count_nonzero(targets != -100))

    def _mean_loss(self, counted):
        return float(self.losses.sum(dtype=np.float64)) / max(counted, 1)

    # -----------------------------------------------------------------------------------------------------------
    # helpers, for the branches in files of their own too

    def weight_and_bias(self, name):
        """Those of a linear layer or norm, the bias None if it has none."""
        name = self.config.stored_name(name)
        return self.params[name + ".weight"], self.params.get(name + ".bias")

    def grads_of(self, name):
        """Their gradients, to be added to."""
        name = self.config.stored_name(name)
        return self.grads[name + ".weight"], self.grads.get(name + ".bias")

    def linear_forward(self, name, x, out):
        return self.ops.linear_forward(x, *self.weight_and_bias(name), out=out)

    def linear_backward(self, name, dy, x, dx):
        weight, _ = self.weight_and_bias(name)
        self.ops.linear_backward(dy, x, weight, grads=(dx, *self.grads_of(name)), accumulate=True)
        return dx

    def own(self, name):
        """The prefix for a part's buffers: its own if backward will need them, else one for all layers."""
        return name if self.keep else name.rpartition(".")[2]

    def buffer(self, name, *shape):
        """The model's array of that name in the shape asked for, its contents undefined. It is made anew only when it
        has to grow."""
        flat, view = self._buffers.get(name, (None, None))
        if flat is not None and view.shape == shape:
            return view
        size = math.prod(shape)
        if flat is None or flat.size < size:
            flat = aligned_empty((size,), self.dtype)
        view = flat[:size].reshape(shape)
        self._buffers[name] = flat, view
        return view

    def _checked_tokens(self, tokens, cache):
        """tokens as an array (B, T) that fits the block. (That the ids are in range is checked by the embedding.)"""
        tokens = np.asarray(tokens)
        if tokens.ndim != 2:
            raise ValueError(f"GPT.forward: tokens has shape {tokens.shape}, must be (B, T)")
        if cache is not None and cache.batch_size != len(tokens):
            raise ValueError(f"GPT.forward: tokens has B = {len(tokens)}, must be the cache's, {cache.batch_size}")
        T, room = tokens.shape[1], self.config.block_size - (0 if cache is None else cache.length)
        if T > room:
            rest = "" if cache is None else f" less the {cache.length} in the cache"
            raise ValueError(f"GPT.forward: tokens has T = {T}, must be at most {room}: block_size{rest}")
        return tokens

    # -----------------------------------------------------------------------------------------------------------
    # other rooms of the house

    generate = generate                     # of minigpt.generate, the model being its first argument

    def save_pretrained(self, directory, tokenizer=None):
        """Writes the model as transformers lays it out; see minigpt.files.save_pretrained."""
        from .files import save_pretrained
        save_pretrained(self, directory, tokenizer)

    @classmethod
    def from_pretrained(cls, directory, ops=None) -> GPT:
        """Reads a model that save_pretrained or transformers wrote; see minigpt.files.load_pretrained."""
        from .files import load_eos_token_id, load_pretrained
        config, params = load_pretrained(directory)
        model = cls(config, ops, params=params)
        model.eos_token_id = load_eos_token_id(directory)
        return model


def random_params(config, seed):
    """GPT-2's start: normal with deviation 0.02, biases 0, norms 1; the two projections of a layer that are added to
    the residual stream start smaller by 1 / sqrt(2 n_layer), so that its variance does not grow with depth."""
    rng = np.random.default_rng(operator.index(seed))
    params = {}
    for name, shape in config.parameter_shapes().items():
        params[name] = aligned_empty(shape)
        if len(shape) == 1:
            params[name].fill("norm" in name and name.endswith("weight"))
            continue
        std = INIT_STD / math.sqrt(2 * config.n_layer) if name.endswith(("proj.weight", "down.weight")) else INIT_STD
        rng.standard_normal(dtype=np.float32, out=params[name])
        params[name] *= np.float32(std)
    return params


def checked_params(config, params):
    """params in the order of config.parameter_shapes(); ValueError or TypeError where they are others."""
    shapes = config.parameter_shapes()
    if not isinstance(params, dict) or not all(isinstance(param, np.ndarray) for param in params.values()):
        raise TypeError(f"GPT: params is {reprlib.repr(params)}, must be a dict of arrays")
    if params.keys() != shapes.keys():
        missing, unknown = sorted(shapes.keys() - params.keys()), sorted(params.keys() - shapes.keys())
        raise ValueError(f"GPT: params must have the names of config.parameter_shapes(): lacks {missing}, "
                         f"and has {unknown} besides")
    for name, shape in shapes.items():
        if params[name].shape != shape:
            raise ValueError(f"GPT: params[{name!r}] has shape {params[name].shape}, must be {shape}")
        dtype = params["wte"].dtype
        if dtype.kind != "f" or params[name].dtype != dtype:
            raise TypeError(f"GPT: params[{name!r}] is {params[name].dtype}, "
                            f"must be the floating point type of wte, {dtype}")
    return {name: params[name] for name in shapes}
