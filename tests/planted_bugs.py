"""Known-bad programs: mistakes that people make in these operations, each one edit of one file.

test_planted_bugs.py applies them to a copy of the project, one by one, and demands that the tests notice.
"""

from dataclasses import dataclass

NUMPY = "minigpt/ops/numpy_ops.py"
CPP = "csrc/cpp/"


@dataclass
class Bug:
    name: str        # what was done wrong
    op: str          # where it must show: the tests of this op are run
    file: str
    old: str         # occurs once in the file
    new: str


BUGS = [
    # ------------------------------------------------------------------------------------------ in NumPy
    Bug("a mask that is off by one: every query sees a key of the future", "attention_forward", NUMPY,
        "return j <= i + (Tk - Tq)", "return j <= i + (Tk - Tq) + 1"),
    Bug("a mask aligned top-left, as torch's is_causal", "attention_forward", NUMPY,
        "return j <= i + (Tk - Tq)", "return j <= i"),
    Bug("scores that are not scaled", "attention_forward", NUMPY,
        "    s = scale * (qg @ k[:, :, None].swapaxes(-1, -2))                                           # (B, Hkv, G, "
        "Tq, Tk)\n    if causal:\n        s = np.where(_causal_mask(Tq, Tk), s, -np.inf)\n    m = ",
        "    s = qg @ k[:, :, None].swapaxes(-1, -2)\n"
        "    if causal:\n        s = np.where(_causal_mask(Tq, Tk), s, -np.inf)\n    m = "),
    Bug("a running maximum that moves without rescaling the output", "attention_forward", NUMPY,
        "o = o * correction + p @ vt", "o = o + p @ vt"),
    Bug("a running maximum that moves without rescaling the sum", "attention_forward", NUMPY,
        "l = l * correction + p.sum", "l = l + p.sum"),
    Bug("grouped heads dealt out in turn: h % Hkv for h // group", "attention_forward", NUMPY,
        "kh, vh = k[b, h * Hkv // H], v[b, h * Hkv // H]", "kh, vh = k[b, h % Hkv], v[b, h % Hkv]"),
    Bug("a row that sees nothing: -inf - -inf is NaN", "attention_forward", NUMPY,
        "m = np.where(m == -np.inf, 0, m)         ", "m = m    "),
    Bug("dk without the scale", "attention_backward", NUMPY,
        "dk = (ds.swapaxes(-1, -2) @ qg).sum(axis=2)", "dk = (ds.swapaxes(-1, -2) @ qg).sum(axis=2) / scale"),
    Bug("the softmax's gradient without delta", "attention_backward", NUMPY,
        "ds = scale * p * (dp - delta)", "ds = scale * p * dp"),
    Bug("key heads that keep the gradient of one query head only", "attention_backward", NUMPY,
        "dv = (p.swapaxes(-1, -2) @ dog).sum(axis=2)", "dv = (p.swapaxes(-1, -2) @ dog)[:, :, -1]"),
    Bug("tiles of queries that start one tile too late", "attention_backward", NUMPY,
        "first_query = max(0, k0 - (Tk - Tq)) // BLOCK_Q * BLOCK_Q",
        "first_query = -(-max(0, k0 - (Tk - Tq)) // BLOCK_Q) * BLOCK_Q"),
    Bug("the variance as E[x^2] - E[x]^2", "layernorm_forward", NUMPY,
        "variance = (centred * centred).mean(axis=-1, keepdims=True)",
        "variance = (x * x).mean(axis=-1, keepdims=True) - mu * mu"),
    Bug("eps outside the square root", "layernorm_forward", NUMPY,
        "r = 1.0 / np.sqrt(variance + eps)", "r = 1.0 / (np.sqrt(variance) + eps)"),
    Bug("the unbiased variance, over C - 1", "layernorm_forward", NUMPY,
        "variance = (centred * centred).mean(axis=-1, keepdims=True)",
        "variance = (centred * centred).sum(axis=-1, keepdims=True) / max(x.shape[-1] - 1, 1)"),
    Bug("layernorm's gradient without the term of the mean", "layernorm_backward", NUMPY,
        "rstd[..., None] * (dxhat - dxhat.mean(axis=-1, keepdims=True)", "rstd[..., None] * (dxhat"),
    Bug("the gradient along the residual stream dropped", "residual_layernorm_backward", NUMPY,
        "return _store(dh + through_norm, dx)", "return _store(through_norm, dx)"),
    Bug("+= turned into =: gradients do not accumulate", "linear_backward", NUMPY,
        "        grad += result\n", "        grad[...] = result\n"),
    Bug("the bias' gradient as a mean over rows", "linear_backward", NUMPY,
        "_store_grad(dy_rows.sum(axis=0), dbias", "_store_grad(dy_rows.mean(axis=0), dbias"),
    Bug("repeated tokens that overwrite each other", "embedding_backward", NUMPY,
        "np.add.at(dwte, tokens, dx) ", "dwte[tokens] += dx "),
    Bug("positions that start at 0 whatever the cache holds", "embedding_forward", NUMPY,
        "x += wpe[position:position + T] ", "x += wpe[:T] "),
    Bug("gelu's gradient without the derivative of tanh", "gelu_backward", NUMPY,
        "(0.5 * (1.0 + t) + 0.5 * du_slope)", "(0.5 * (1.0 + t))"),
    Bug("the rotation the wrong way round", "rope_forward", NUMPY,
        "[a * cos - b * sin, b * cos + a * sin]", "[a * cos + b * sin, b * cos - a * sin]"),
    Bug("dlogits without the one-hot target", "cross_entropy_backward", NUMPY,
        "np.take_along_axis(p, target, axis=-1) - 1,", "np.take_along_axis(p, target, axis=-1),"),
    Bug("softmax without the maximum taken away", "cross_entropy_forward", NUMPY,
        "m = logits.max(axis=-1, keepdims=True) ", "m = 0 * logits.max(axis=-1, keepdims=True) "),
    Bug("ignored rows that still get a gradient", "cross_entropy_backward", NUMPY,
        "np.where(counted[..., None], dloss * p, 0)", "dloss * p"),
    Bug("AdamW without bias correction", "adamw", NUMPY,
        "mhat = m / (1 - beta1 ** step)", "mhat = m"),
    Bug("weight decay through the gradient, as plain Adam with L2", "adamw", NUMPY,
        "    g = grad * grad_scale\n", "    g = grad * grad_scale + weight_decay * param\n"),
    # ------------------------------------------------------------------------------------------ in C++
    Bug("C++: the diagonal masked away", "attention_forward", CPP + "attention/forward_1_naive.cpp",
        "shape.visible_keys(i)", "shape.visible_keys(i) - (shape.causal && i > 0)"),
    Bug("C++: the output not rescaled when the maximum moves", "attention_forward",
        CPP + "attention/forward_2_online_softmax.cpp", "o[d] *= correction;", "o[d] *= 1;"),
    Bug("C++: NaN swallowed by a comparison", "attention_forward", CPP + "attention/forward_2_online_softmax.cpp",
        "const float p = std::exp(s - m);", "const float p = s <= m ? std::exp(s - m) : 0;"),
    Bug("C++: the gradient of a query head added to the wrong key head", "attention_backward",
        CPP + "attention/backward_1_naive.cpp",
        "for (int64_t h = hkv * shape.group(); h < (hkv + 1) * shape.group(); h++) {",
        "for (int64_t h = hkv; h < shape.H; h += shape.Hkv) {"),
    Bug("C++: delta taken from dq's sum, without the output", "attention_backward",
        CPP + "attention/backward_1_naive.cpp", "delta += doi[d] * oi[d];", "delta += 0 * doi[d] * oi[d];"),
    Bug("C++: a tile of output not rescaled when the maximum moves", "attention_forward",
        CPP + "attention/forward_4_register_tile.cpp", "return correction[i] * load(c);", "return load(c);"),
    Bug("C++: dk left in powers of two, q having been packed times log2 e", "attention_backward",
        CPP + "attention/backward_3_register_tile.cpp", "Tk, D, LN2, dk.row", "Tk, D, 1, dk.row"),
    Bug("C++: a tile on the diagonal that starts one query too late", "attention_backward",
        CPP + "attention/backward_3_register_tile.cpp", "shape.first_query(j0 + j) - i0, 0);",
        "shape.first_query(j0 + j) - i0 + 1, 0);"),
    Bug("C++: the last row of an odd number dropped", "layernorm_forward", CPP + "layernorm/3_threads.cpp",
        "layernorm_forward_vectorised(x + at, weight, bias, end - begin, C,",
        "layernorm_forward_vectorised(x + at, weight, bias, (end - begin) / 2 * 2, C,"),
    Bug("C++: streaming that begins one float past an aligned address", "layernorm_forward", CPP + "simd.h",
        "std::min<int64_t>(n, LANES - misaligned);", "std::min<int64_t>(n, LANES - misaligned + 1);"),
    Bug("C++: accumulate ignored", "rmsnorm_backward", CPP + "rmsnorm/rmsnorm.cpp",
        "dweight[i] = accumulate ? dweight[i] + total : total;", "dweight[i] = total;"),
    Bug("C++: one-pass variance", "layernorm_forward", CPP + "layernorm/1_naive.cpp",
        "squares += (x[i] - mean[r]) * (x[i] - mean[r]);", "squares += x[i] * x[i] - mean[r] * mean[r];"),
    Bug("C++: the ragged end of a panel left out", "linear_forward", CPP + "linear/2_panels.cpp",
        "finish<1>(p, i, j, p.M, p.N, c,", "finish<1>(p, i, j, p.M, p.N / TILE_COLUMNS * TILE_COLUMNS, c,"),
    Bug("C++: the bias' gradient not added up over all rows", "linear_backward", CPP + "linear/linear.cpp",
        "for (int64_t i = begin; i < end; i++) {", "for (int64_t i = begin; i < end - 1; i++) {"),
    Bug("C++: 1 - beta2 in float32, which has lost its digits", "adamw", CPP + "adamw/adamw.cpp",
        "rest2 = 1 - a.beta2,", "rest2 = 1.0f - beta2,"),
    Bug("C++: the sum of squares in float32", "squared_norm", CPP + "adamw/adamw.cpp",
        "lane[k] += static_cast<double>(x[i + k]) * x[i + k];", "lane[k] += x[i + k] * x[i + k];"),
    Bug("C++: the loss scale missing at the target", "cross_entropy_backward", CPP + "cross_entropy/cross_entropy.cpp",
        "drow[targets[r]] -= dloss;", "drow[targets[r]] -= 1;"),
    Bug("C++: the backward rotation turns forward", "rope_backward", CPP + "rope/rope.cpp",
        "backwards ? -1 : 1", "backwards ? 1 : 1"),
    Bug("C++: rotation in place reads what it has just written", "rope_forward", CPP + "rope/rope.cpp",
        "second * c + first * s);", "second * c + at.load(from + i) * s);"),
    Bug("C++: every thread adds to all channels of the table", "embedding_backward", CPP + "embedding/embedding.cpp",
        "add_row(dx + r * C + begin, end - begin, dwte + tokens[r] * C + begin);",
        "add_row(dx + r * C, C, dwte + tokens[r] * C);"),
]
