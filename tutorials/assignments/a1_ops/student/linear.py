"""Tasks 1.1 and 1.2: y = x W^T + bias, the layer in which a GPT spends most of its time.

Shapes: `...` are any leading axes (batch, time), K inputs, N outputs. The weight is (N, K), as in torch.nn.Linear.
Every function keeps the dtype of its arguments, and leaves the arguments as they are.
"""

import numpy as np


def linear_forward(x, weight, bias=None):
    """x (..., K), weight (N, K), bias (N,) or None -> y (..., N)."""
    # BEGIN SOLUTION 1.1
    y = x @ weight.T                                                          # (..., N)
    return y if bias is None else y + bias
    # END SOLUTION


def linear_backward(dy, x, weight):
    """dy (..., N), x (..., K), weight (N, K) -> dx (..., K), dweight (N, K), dbias (N,).

    dy is the gradient of the loss with respect to y. The weight and the bias meet every row of x, so their gradients
    are sums over all leading axes.
    """
    # BEGIN SOLUTION 1.2
    dy_rows = dy.reshape(-1, dy.shape[-1])                                    # (rows, N)
    x_rows = x.reshape(-1, x.shape[-1])                                       # (rows, K)
    dx = dy @ weight                                                          # (..., K)
    dweight = dy_rows.T @ x_rows                                              # (N, K)
    dbias = np.sum(dy_rows, axis=0)                                           # (N,)
    return dx, dweight, dbias
    # END SOLUTION
