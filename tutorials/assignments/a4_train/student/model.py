"""Tasks 3.1 and 3.2: the whole model: embedding, the layers, a last norm, and the head, which is the matrix wte
again."""

import numpy as np
from given import ops

from .block import block_backward, block_forward


def of_layer(params, i):
    """The parameters of layer i, by the names that block.py knows."""
    start = f"h.{i}."
    return {name[len(start):]: param for name, param in params.items() if name.startswith(start)}


def forward(params, tokens, targets, config):
    """tokens, targets (B, T) -> the mean loss over the targets that are not -100, a float, and a dictionary of what the
    backward pass needs:

    tokens, targets, blocks (a list: what block_forward saved in each layer), h, mean, rstd, y (the last norm's input
    and results), logits (B, T, V), lse (B, T).

    targets[b, t] is what position t is to predict: it is not shifted here. The logits are y wte^T.
    """
    # BEGIN SOLUTION 3.1
    h, blocks = ops.embedding_forward(tokens, params["wte"], params["wpe"]), []                 # (B, T, C)
    for i in range(config["n_layer"]):
        h, saved = block_forward(h, of_layer(params, i), config["n_head"])
        blocks.append(saved)
    y, mean, rstd = ops.layernorm_forward(h, params["norm.weight"], params["norm.bias"])
    logits = ops.linear_forward(y, params["wte"])                                               # (B, T, V)
    losses, lse = ops.cross_entropy_forward(logits, targets)                                    # (B, T)
    loss = float(losses.sum() / np.count_nonzero(targets != -100))
    return loss, dict(tokens=tokens, targets=targets, blocks=blocks, h=h, mean=mean, rstd=rstd, y=y, logits=logits,
                      lse=lse)
    # END SOLUTION


def backward(params, saved, config):
    """The gradients of that loss, {name: array}: one for each of params, with its name and shape.

    wte is used twice: its two gradients add up.
    """
    # BEGIN SOLUTION 3.2
    targets, grads = saved["targets"], {}
    dloss = 1 / np.count_nonzero(targets != -100)
    dlogits = ops.cross_entropy_backward(dloss, saved["logits"], targets, saved["lse"])         # (B, T, V)
    dy, dhead, _ = ops.linear_backward(dlogits, saved["y"], params["wte"])
    dh, grads["norm.weight"], grads["norm.bias"] = ops.layernorm_backward(
        dy, saved["h"], params["norm.weight"], saved["mean"], saved["rstd"])
    for i in reversed(range(config["n_layer"])):
        dh, of_block = block_backward(dh, saved["blocks"][i], of_layer(params, i), config["n_head"])
        grads |= {f"h.{i}.{name}": grad for name, grad in of_block.items()}
    dwte, grads["wpe"] = ops.embedding_backward(dh, saved["tokens"], params["wte"], params["wpe"])
    grads["wte"] = dhead + dwte
    return grads
    # END SOLUTION
