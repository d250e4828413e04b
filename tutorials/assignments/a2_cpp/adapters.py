"""Leads from the names that the tests know to your functions in C++. It is given: when your work is graded, it is this.

Results are made here, filled with NaN, so that what a function forgets to write is seen.
"""

import contextlib
import os
import resource

import numpy as np
from native import library

layernorm = library("student/layernorm.cpp")
attention = library("student/attention.cpp")
online = library("student/online.cpp")


def unwritten(*shape):
    return np.full(shape, np.nan, np.float32)


def layernorm_forward(x, weight, bias, eps):
    rows, C = x.size // x.shape[-1], x.shape[-1]
    y, mean, rstd = unwritten(*x.shape), unwritten(*x.shape[:-1]), unwritten(*x.shape[:-1])
    layernorm.layernorm_forward(x, weight, bias, rows, C, eps, y, mean, rstd)
    return y, mean, rstd


def layernorm_backward(dy, x, weight, mean, rstd):
    rows, C = x.size // x.shape[-1], x.shape[-1]
    dx, dweight, dbias = unwritten(*x.shape), unwritten(C), unwritten(C)
    layernorm.layernorm_backward(dy, x, weight, mean, rstd, rows, C, dx, dweight, dbias)
    return dx, dweight, dbias


def sizes(q, k):
    (B, H, Tq, D), Tk = q.shape, k.shape[2]
    return B * H, Tq, Tk, D


def attention_forward(q, k, v, causal=True):
    out, lse = unwritten(*q.shape), unwritten(*q.shape[:-1])
    attention.attention_forward(q, k, v, *sizes(q, k), causal, out, lse)
    return out, lse


def attention_backward(dout, q, k, v, out, lse, causal=True):
    dq, dk, dv = unwritten(*q.shape), unwritten(*k.shape), unwritten(*v.shape)
    attention.attention_backward(dout, q, k, v, out, lse, *sizes(q, k), causal, dq, dk, dv)
    return dq, dk, dv


def attention_absorb(q, k, v, diagonal, m, l, o):
    """One tile; m, l and o are left as they are, and returned updated."""
    m, l, o = m.copy(), l.copy(), o.copy()
    online.attention_absorb(q, k, v, *q.shape[:1], *k.shape, diagonal, m, l, o)
    return m, l, o


def attention_by_tiles(q, k, v, causal=True):
    """Attention, with the queries in tiles of 4 and the keys in tiles of odd sizes."""
    heads, Tq, Tk, D = sizes(q, k)
    out, lse = unwritten(heads, Tq, D), unwritten(heads, Tq)
    for h, (q_h, k_h, v_h) in enumerate(zip(*(x.reshape(heads, -1, D) for x in (q, k, v)), strict=True)):
        for i in range(0, Tq, 4):
            tile = q_h[i:i + 4]
            m, l, o = np.full(len(tile), -np.inf, np.float32), np.zeros(len(tile), np.float32), np.zeros_like(tile)
            j = 0
            for keys in (5, 1, 16, 3) * (Tk // 25 + 1):
                if k_h[j:j + keys].size:
                    diagonal = i + Tk - Tq - j if causal else keys
                    m, l, o = attention_absorb(tile, k_h[j:j + keys], v_h[j:j + keys], diagonal, m, l, o)
                j += keys
            out[h, i:i + 4], lse[h, i:i + 4] = o / l[:, None], m + np.log(l)
    return out.reshape(q.shape), lse.reshape(q.shape[:-1])


def attention_forward_tiled(q, k, v, causal=True):
    out, lse = unwritten(*q.shape), unwritten(*q.shape[:-1])
    online.attention_forward_tiled(q, k, v, *sizes(q, k), causal, out, lse)
    return out, lse


def attention_forward_tiled_in_little_memory(q, k, v, causal=True):
    """The same where memory ends 2 MB above what the arguments and results take."""
    attention_forward_tiled(q[:, :, :1].copy(), k[:, :, :1].copy(), v[:, :, :1].copy())       # the library is there now
    out, lse = unwritten(*q.shape), unwritten(*q.shape[:-1])
    with at_most(2 * 2**20):
        online.attention_forward_tiled(q, k, v, *sizes(q, k), causal, out, lse)
    return out, lse


@contextlib.contextmanager
def at_most(more):
    """Lets this process take `more` bytes of address space and no more, where /proc tells how much it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
