"""Tasks 2.1 and 2.2: gelu, the activation between the two linear layers of GPT-2's MLP, in its tanh form
(Hendrycks, Gimpel 2016, arXiv:1606.08415):

    y = 0.5 x (1 + tanh(u)),    u = sqrt(2 / pi) (x + 0.044715 x^3)
"""

import numpy as np

SQRT_2_OVER_PI = 0.7978845608028654
CUBIC = 0.044715


def gelu_forward(x):
    """x of any shape -> y of the same shape."""
    # BEGIN SOLUTION 2.1
    u = SQRT_2_OVER_PI * (x + CUBIC * x * x * x)
    return 0.5 * x * (1 + np.tanh(u))
    # END SOLUTION


def gelu_backward(dy, x):
    """dy, x of one shape -> dx of the same shape. The derivative of tanh(u) is (1 - tanh(u)^2) du/dx."""
    # BEGIN SOLUTION 2.2
    t = np.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
    du = SQRT_2_OVER_PI * (1 + 3 * CUBIC * x * x)
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du)
    # END SOLUTION
