"""Tasks 3.1 and 3.2: layernorm (Ba, Kiros, Hinton 2016, arXiv:1607.06450). Every row is a token's C channels."""

import numpy as np


def layernorm_forward(x, weight, bias, eps=1e-5):
    """y = (x - mean) * rstd * weight + bias, with rstd = 1 / sqrt(variance + eps), row by row.

    x (..., C), weight (C,), bias (C,) -> y (..., C), mean (...), rstd (...). The backward pass will want mean and rstd.
    HINT: rows may lie far from 0, and then E[x^2] - E[x]^2 is the difference of two large, nearly equal numbers.
    """
    # BEGIN SOLUTION 3.1
    mean = x.mean(axis=-1, keepdims=True)                                     # (..., 1)
    centred = x - mean                                                        # (..., C)
    variance = (centred * centred).mean(axis=-1, keepdims=True)               # (..., 1)
    rstd = 1 / np.sqrt(variance + np.asarray(eps, x.dtype))                   # (..., 1)
    return centred * rstd * weight + bias, mean[..., 0], rstd[..., 0]
    # END SOLUTION


def layernorm_backward(dy, x, weight, mean, rstd):
    """dy, x (..., C), weight (C,), mean and rstd (...) -> dx (..., C), dweight (C,), dbias (C,).

    With xhat = (x - mean) * rstd, the output is y = xhat * weight + bias. A change of one x moves mean and rstd too,
    and through them every element of the row's y.
    """
    # BEGIN SOLUTION 3.2
    xhat = (x - mean[..., None]) * rstd[..., None]                            # (..., C)
    dxhat = dy * weight                                                       # (..., C)
    dx = rstd[..., None] * (dxhat - dxhat.mean(axis=-1, keepdims=True)
                            - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))
    rows = tuple(range(dy.ndim - 1))
    return dx, (dy * xhat).sum(axis=rows), dy.sum(axis=rows)
    # END SOLUTION
