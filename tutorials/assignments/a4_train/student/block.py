"""Tasks 2.1 and 2.2: one layer of a GPT, which adds two branches to the residual stream:

    h = x + proj(attention(qkv(norm1(x))))
    y = h + down(gelu(up(norm2(h))))

`params` are those of this layer alone: norm1.weight, norm1.bias, attn.qkv.weight ... mlp.down.bias. The rows of the
packed projection qkv are first all of q, then all of k, then all of v, and each of these is n_head heads of
D = C / n_head side by side.
"""

import numpy as np
from given import ops


def block_forward(x, params, n_head):
    """x (B, T, C) -> y (B, T, C), and a dictionary of what the backward pass needs:

    x, mean1, rstd1, y1 (norm1's input and results), q, k, v (B, H, T, D), out (B, T, C: attention's result, the heads
    side by side again), lse (B, H, T), h, mean2, rstd2, y2 (norm2's), up (B, T, 4C: before the gelu), act (after it).
    """
    # BEGIN SOLUTION 2.1
    B, T, C = x.shape
    y1, mean1, rstd1 = ops.layernorm_forward(x, params["norm1.weight"], params["norm1.bias"])
    qkv = ops.linear_forward(y1, params["attn.qkv.weight"], params["attn.qkv.bias"])            # (B, T, 3C)
    q, k, v = qkv.reshape(B, T, 3, n_head, C // n_head).transpose(2, 0, 3, 1, 4)                # (B, H, T, D)
    heads, lse = ops.attention_forward(q, k, v)                                                 # (B, H, T, D)
    out = heads.transpose(0, 2, 1, 3).reshape(B, T, C)
    h = x + ops.linear_forward(out, params["attn.proj.weight"], params["attn.proj.bias"])
    y2, mean2, rstd2 = ops.layernorm_forward(h, params["norm2.weight"], params["norm2.bias"])
    up = ops.linear_forward(y2, params["mlp.up.weight"], params["mlp.up.bias"])                 # (B, T, 4C)
    act = ops.gelu_forward(up)                                                                  # (B, T, 4C)
    y = h + ops.linear_forward(act, params["mlp.down.weight"], params["mlp.down.bias"])
    return y, dict(x=x, mean1=mean1, rstd1=rstd1, y1=y1, q=q, k=k, v=v, out=out, lse=lse, h=h, mean2=mean2,
                   rstd2=rstd2, y2=y2, up=up, act=act)
    # END SOLUTION


def block_backward(dy, saved, params, n_head):
    """dy (B, T, C), `saved` by block_forward -> dx (B, T, C), and the gradients {name: array}, named as in params.

    Go through block_forward from its last line to its first. Where the stream was used twice, two gradients add up.
    """
    # BEGIN SOLUTION 2.2
    B, T, C = dy.shape
    grads = {}

    def linear(name, d, x):
        d, grads[f"{name}.weight"], grads[f"{name}.bias"] = ops.linear_backward(d, x, params[f"{name}.weight"])
        return d

    def norm(name, d, x, mean, rstd):
        weight = params[f"{name}.weight"]
        d, grads[f"{name}.weight"], grads[f"{name}.bias"] = ops.layernorm_backward(d, x, weight, mean, rstd)
        return d

    def heads(d):
        return d.reshape(B, T, n_head, C // n_head).transpose(0, 2, 1, 3)                       # (B, H, T, D)

    dup = ops.gelu_backward(linear("mlp.down", dy, saved["act"]), saved["up"])                  # (B, T, 4C)
    dy2 = linear("mlp.up", dup, saved["y2"])
    dh = dy + norm("norm2", dy2, saved["h"], saved["mean2"], saved["rstd2"])
    dout = linear("attn.proj", dh, saved["out"])
    dqkv = ops.attention_backward(heads(dout), saved["q"], saved["k"], saved["v"], heads(saved["out"]), saved["lse"])
    dqkv = np.stack(dqkv).transpose(1, 3, 0, 2, 4).reshape(B, T, 3 * C)
    dy1 = linear("attn.qkv", dqkv, saved["y1"])
    return dh + norm("norm1", dy1, saved["x"], saved["mean1"], saved["rstd1"]), grads
    # END SOLUTION
