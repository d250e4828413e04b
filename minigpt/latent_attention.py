"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): attention whose keys and values of all
heads are made from one small latent vector a token. Generation keeps it and one key that rope turns, kv_lora_rank +
qk_rope_head_dim numbers a token instead of 2 H D; the price is that each step makes the whole text's keys and values.

Read `latent_attention_forward` and `_backward` side by side. A head of a query or key has two parts, D = N + R: N
numbers without position (qk_nope_head_dim), and R that rope turns (qk_rope_head_dim), whose key all heads share. A
value has V numbers (v_head_dim) and zeros behind them, because the attention kernels want heads of one size; the
columns that zeros make in the output are cut off. kv_latent has L = kv_lora_rank numbers; q_latent, which queries are
made from, has Lq = q_lora_rank, or is x itself where that is 0.
"""


def latent_attention_forward(model, name, x, position, cache):
    """x (B, T, C) -> branch (B, T, C). `cache` is this layer's part of the KVCache, or None."""
    (B, T, C), config, ops, own, buffer = x.shape, model.config, model.ops, model.own(name), model.buffer
    N, R, V, L = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim, config.kv_lora_rank
    H, D = config.n_head, config.head_size
    cos, sin = model.cos[position:position + T], model.sin[position:position + T]                   # (T, R/2)

    q_latent = x
    if config.q_lora_rank:
        q_a = model.linear_forward(name + ".q_a", x, buffer(own + ".q_a", B, T, config.q_lora_rank))
        q_latent = _norm_forward(model, name + ".q_norm", q_a)                                      # (B, T, Lq)
    q = model.heads(model.linear_forward(name + ".q_b", q_latent, buffer(own + ".q", B, T, H * D)))  # (B, H, T, D)
    ops.rope_forward(q[..., N:], cos, sin, out=q[..., N:])

    kv_a = model.linear_forward(name + ".kv_a", x, buffer(own + ".kv_a", B, T, L + R))              # (B, T, L+R)
    kv_latent, k_rope = buffer(own + ".latent", B, T, L), kv_a[:, None, :, L:]                      # (B, 1, T, R)
    kv_latent[...] = kv_a[..., :L]
    kv_latent = _norm_forward(model, name + ".kv_norm", kv_latent)                                  # (B, T, L)
    ops.rope_forward(k_rope, cos, sin, out=k_rope)
    if cache is not None:
        kv_latent, k_rope = cache.append(position, kv_latent[:, None], k_rope)                      # (B, 1, Tk, L | R)
        kv_latent = kv_latent[:, 0]                                                                 # (B, Tk, L)
    Tk = kv_latent.shape[1]
    kv = model.linear_forward(name + ".kv_b", kv_latent, buffer(own + ".kv", B, Tk, H * (N + V)))
    kv = kv.reshape(B, Tk, H, N + V).transpose(0, 2, 1, 3)                                          # (B, H, Tk, N+V)
    k, v = buffer(own + ".k", B, H, Tk, D), buffer(own + ".v", B, H, Tk, D)
    k[..., :N], k[..., N:] = kv[..., :N], k_rope
    v[..., :V], v[..., V:] = kv[..., N:], 0

    out, lse = buffer(own + ".out", B, H, T, D), buffer(own + ".lse", B, H, T)
    ops.attention_forward(q, k, v, config.causal, out=(out, lse))                                   # scale 1 / sqrt(D)
    y = buffer(own + ".y", B, T, H * V)
    y.reshape(B, T, H, V)[...] = out[..., :V].transpose(0, 2, 1, 3)
    if model.keep:
        model.saved[name] = x, q_latent, kv_latent, q, k, v, out, lse, y
    return model.linear_forward(name + ".proj", y, buffer("branch", B, T, C))


def latent_attention_backward(model, name, dbranch):
    """dbranch (B, T, C) -> dx (B, T, C)."""
    x, q_latent, kv_latent, q, k, v, out, lse, y = model.saved[name]
    (B, T, C), config, ops, buffer = x.shape, model.config, model.ops, model.buffer
    N, R, V, L = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim, config.kv_lora_rank
    H, D = config.n_head, config.head_size
    cos, sin = model.cos[:T], model.sin[:T]                                                         # (T, R/2)

    dy = model.linear_backward(name + ".proj", dbranch, y, buffer("dattention", B, T, H * V))
    dout = buffer("dout", B, H, T, D)
    dout[..., :V], dout[..., V:] = dy.reshape(B, T, H, V).transpose(0, 2, 1, 3), 0
    dq_flat, dk, dv = buffer("dq", B, T, H * D), buffer("dk", B, H, T, D), buffer("dv", B, H, T, D)
    dq = model.heads(dq_flat)                                                                       # (B, H, T, D)
    ops.attention_backward(dout, q, k, v, out, lse, config.causal, grads=(dq, dk, dv))

    dkv = buffer("dkv", B, T, H * (N + V))
    heads = dkv.reshape(B, T, H, N + V).transpose(0, 2, 1, 3)                                       # (B, H, T, N+V)
    heads[..., :N], heads[..., N:] = dk[..., :N], dv[..., :V]
    dkv_latent = model.linear_backward(name + ".kv_b", dkv, kv_latent, buffer("dkv_latent", B, T, L))
    dkv_a = buffer("dkv_a", B, T, L + R)
    dkv_a[..., :L] = _norm_backward(model, name + ".kv_norm", dkv_latent)
    dk_rope = dkv_a[:, None, :, L:]                                                                 # (B, 1, T, R)
    dk[..., N:].sum(axis=1, keepdims=True, out=dk_rope)         # all heads have read the one key
    ops.rope_backward(dk_rope, cos, sin, grads=dk_rope)
    dx = model.linear_backward(name + ".kv_a", dkv_a, x, buffer("dy", B, T, C))

    ops.rope_backward(dq[..., N:], cos, sin, grads=dq[..., N:])
    dq_latent = model.linear_backward(name + ".q_b", dq_flat, q_latent, buffer("dq_latent", *q_latent.shape))
    if config.q_lora_rank:
        dq_latent = _norm_backward(model, name + ".q_norm", dq_latent)                              # (B, T, Lq)
        dq_latent = model.linear_backward(name + ".q_a", dq_latent, x, buffer("dx", B, T, C))
    dx += dq_latent
    return dx


def _norm_forward(model, name, x):
    """The rmsnorm of a latent x (B, T, L), into a buffer of its own."""
    own = model.own(name) + "_" + name.rpartition(".")[2]
    y, rstd = model.buffer(own + ".y", *x.shape), model.buffer(own + ".rstd", *x.shape[:-1])
    model.ops.rmsnorm_forward(x, model.weight_and_bias(name)[0], model.config.norm_eps, out=(y, rstd))
    if model.keep:
        model.saved[name] = x, rstd
    return y


def _norm_backward(model, name, dy):
    """dy (B, T, L) -> dx (B, T, L)."""
    (x, rstd), weight, dweight = model.saved[name], model.weight_and_bias(name)[0], model.grads_of(name)[0]
    dx = model.buffer("d" + name.rpartition(".")[2], *x.shape)
    model.ops.rmsnorm_backward(dy, x, weight, rstd, grads=(dx, dweight), accumulate=True)
    return dx
