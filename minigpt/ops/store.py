"""Where the NumPy ops put their results: into the caller's arrays, where there are any."""


def store(result, out):
    """Returns `result`, written into `out` where the caller gave one."""
    if out is None:
        return result
    out[...] = result
    return out


def store_grad(result, grad, accumulate):
    """The same for the gradient of a parameter, which `accumulate` adds to what is there."""
    if grad is None or result is None:
        return result
    if accumulate:
        grad += result
    else:
        grad[...] = result
    return grad
