"""The tests that you have. More are run when your work is graded, of other sizes and other numbers: see README.md.

The judge is minigpt's own GPT, of the same weights, in float64, where right programs differ by about 1e-15: 1e-9 of the
largest element is allowed, and 1e-6 after some steps. Nothing is small, 0 or 1 here, as it would be at the start of
training: there, much hides.
"""

import numpy as np
import pytest

from minigpt import GPT, ModelConfig
from minigpt.course.judging import as_tuple, equals, near, same_form
from minigpt.course.student import Failed
from minigpt.ops import numpy_ops as spec
from minigpt.train import schedule
from minigpt.train.optimizer import AdamW, global_norm

SETTINGS = dict(learning_rate=0.02, min_learning_rate=0.002, warmup=2, decay_steps=6, weight_decay=0.3, max_norm=1.5,
                beta1=0.8, beta2=0.95, eps=1e-8)


def make(rng, n_layer=2, n_head=2, n_embd=8, vocab_size=11, block_size=7, tied=True):
    """The dictionary of a model's shape, and minigpt's model of that shape with random weights in float64."""
    config = dict(vocab_size=vocab_size, block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    shape = ModelConfig(tied=tied, **config)
    params = {name: rng.normal(0.5 * (len(size) == 1), 0.5, size) for name, size in shape.parameter_shapes().items()}
    return config, GPT(shape, "numpy", params=params)


def has_arrays(name, got, expected, tolerance=1e-9):
    """A dictionary, or what is in it, with the arrays expected (and perhaps others)."""
    if not isinstance(got, dict):
        raise Failed(f"{name}: returned {type(got).__name__}, must be a dictionary of arrays")
    for key, array in expected.items():
        if key not in got:
            raise Failed(f"{name}: {key} is missing; there are {', '.join(got)}")
        near(name, key, got[key], array, tolerance)


def number(name, output, got, expected, tolerance=1e-9):
    """A float."""
    if not isinstance(got, (float, int)) and np.shape(got) != ():
        raise Failed(f"{name}: {output} is {type(got).__name__}, must be a number")
    near(name, output, np.asarray(got, np.float64), np.asarray(expected, np.float64), tolerance)


def of_layer(model, i, values):
    start = f"h.{i}."
    return {name[len(start):]: value for name, value in values.items() if name.startswith(start)}


def saved_in_block(model, i):
    """What block_forward is to save, from minigpt's model after a forward pass."""
    (x, mean1, rstd1), (h, mean2, rstd2) = model.saved[f"h.{i}.norm1"], model.saved[f"h.{i}.norm2"]
    (y1, q, k, v, out, lse), (y2, _, up, act) = model.saved[f"h.{i}.attn"], model.saved[f"h.{i}.mlp"]
    saved = dict(x=x, mean1=mean1, rstd1=rstd1, y1=y1, q=q, k=k, v=v, out=out, lse=lse, h=h, mean2=mean2, rstd2=rstd2,
                 y2=y2, up=up, act=act)
    return {name: array.copy() for name, array in saved.items()}


def saved_in_model(model, tokens, targets):
    (h, mean, rstd), (y, logits, lse, *_) = model.saved["norm"], model.saved["head"]
    saved = dict(tokens=tokens, targets=targets, h=h, mean=mean, rstd=rstd, y=y, logits=logits, lse=lse)
    return {name: array.copy() for name, array in saved.items()} | dict(
        blocks=[saved_in_block(model, i) for i in range(model.config.n_layer)])


@pytest.mark.task("1.1", points=3, look="the names, the shapes, float32; biases 0, norms 1")
def test_init_shapes(adapters):
    config = dict(vocab_size=13, block_size=5, n_layer=3, n_head=2, n_embd=8)
    params = adapters.init_params(config=config, seed=3)
    shapes = ModelConfig(**config).parameter_shapes()
    if not isinstance(params, dict):
        raise Failed(f"init_params: returned {type(params).__name__}, must be a dictionary of arrays")
    equals("init_params: the names", sorted(params), sorted(shapes))
    for name, shape in shapes.items():
        same_form("init_params", name, params[name], shape, np.dtype(np.float32))
        if len(shape) == 1:
            near("init_params", name, params[name], np.full(shape, "norm" in name and "weight" in name, np.float32))


def block(rng, B, T, n_head, C):
    """A model of one layer, after a forward pass, and the gradient dy that reaches the layer's output. No token occurs
    twice and the head has a matrix of its own, so that the gradient of wte is that of the layer's input."""
    config, model = make(rng, n_layer=1, n_head=n_head, n_embd=C, vocab_size=B * T + 3, block_size=T, tied=False)
    tokens, targets = rng.permutation(B * T + 3)[:B * T].reshape(B, T), rng.integers(0, B * T + 3, (B, T))
    model.forward(tokens, targets)
    saved, y = saved_in_block(model, 0), model.saved["norm"][0].copy()
    head = [x.copy() if isinstance(x, np.ndarray) else x for x in model.saved["head"]]
    dlogits = spec.cross_entropy_backward(1 / (B * T), head[1], targets, head[2])
    dlast = spec.linear_backward(dlogits, head[0], model.params["head.weight"])[0]
    dy = spec.layernorm_backward(dlast, y, model.params["norm.weight"], *model.saved["norm"][1:])[0]
    model.backward()
    return of_layer(model, 0, model.params), saved, y, dy, model.grads["wte"][tokens], of_layer(model, 0, model.grads)


@pytest.mark.task("2.1", points=6, look="the order of norm, branch and sum; q, k, v and the heads in the projection")
def test_block_forward(adapters, rng):
    params, expected, y, *_ = block(rng, 2, 5, 2, 8)
    got, saved = as_tuple("block_forward", ("y", "saved"),
                          adapters.block_forward(x=expected["x"], params=params, n_head=2))
    has_arrays("block_forward: what is saved", saved, expected)
    near("block_forward", "y", got, y)


@pytest.mark.task("2.2", points=7, look="the stream: at both sums the gradient goes on past the branch")
def test_block_backward(adapters, rng):
    params, saved, _, dy, dx, expected = block(rng, 2, 5, 2, 8)
    got, grads = as_tuple("block_backward", ("dx", "grads"),
                          adapters.block_backward(dy=dy, saved=saved, params=params, n_head=2))
    has_arrays("block_backward: the gradients", grads, expected)
    near("block_backward", "dx", got, dx)


def tokens_and_targets(rng, B, T, V):
    targets = rng.integers(0, V, (B, T))
    targets[0, T // 2] = -100
    return rng.integers(0, V, (B, T)), targets


@pytest.mark.task("3.1", points=3, look="the last norm; the head; the mean is over the targets that are not -100")
def test_forward(adapters, rng):
    config, model = make(rng)
    tokens, targets = tokens_and_targets(rng, 3, 7, 11)
    loss = model.forward(tokens, targets)
    got, saved = as_tuple("forward", ("loss", "saved"),
                          adapters.forward(params=model.params, tokens=tokens, targets=targets, config=config))
    expected = saved_in_model(model, tokens, targets)
    del expected["blocks"]
    has_arrays("forward: what is saved", saved, expected)
    number("forward", "the loss", got, loss)


@pytest.mark.task("3.2", points=6, look="wte: as the head and as the embedding; where the mean's 1/n comes in")
def test_backward(adapters, rng):
    config, model = make(rng)
    tokens, targets = tokens_and_targets(rng, 3, 7, 11)
    model.forward(tokens, targets)
    saved = saved_in_model(model, tokens, targets)
    model.backward()
    grads = adapters.backward(params=model.params, saved=saved, config=config)
    has_arrays("backward: the gradients", grads, model.grads)


def new_adamw(params, settings):
    return AdamW(params, spec, *(settings[name] for name in ("beta1", "beta2", "eps", "weight_decay")))


def adamw_agrees(adapters, params, m, v, grads, first, settings):
    """The steps with these gradients, the first of which has the number `first`, as minigpt's AdamW takes them."""
    reference = new_adamw({name: param.copy() for name, param in params.items()}, settings)
    for name in params:
        reference.m[name][...], reference.v[name][...] = m[name], v[name]
    for step, of_step in enumerate(grads, first):
        reference.step(of_step, step, 0.05, 1.0)
        params, m, v = as_tuple("adamw", ("params", "m", "v"), adapters.adamw(
            params=params, grads=of_step, m=m, v=v, step=step, lr=0.05, settings=settings))
        for what, got, wanted in (("m", m, reference.m), ("v", v, reference.v),
                                  ("the parameters", params, reference.params)):
            has_arrays(f"adamw: {what} after step {step}", got, wanted)


@pytest.mark.task("4.1", points=5, look="the correction of both moments, in step 1 and later; what decays")
def test_adamw(adapters, rng):
    params = {"wte": rng.normal(size=(5, 3)), "norm.weight": rng.normal(1, 1, 3), "h.0.mlp.up.bias": rng.normal(size=3)}
    m, v = ({name: np.zeros_like(param) for name, param in params.items()} for _ in range(2))
    grads = [{name: rng.normal(0.3, 1, param.shape) for name, param in params.items()} for _ in range(3)]
    adamw_agrees(adapters, params, m, v, grads, 1, SETTINGS)


@pytest.mark.task("4.2", points=2, look="one norm for all gradients together")
def test_clip(adapters, rng):
    grads = {"a": np.array([[3.0, 0.0], [0.0, 0.0]]), "b": np.array([4.0, 0.0])}
    for max_norm, scale in ((1.0, 0.2), (5.5, 1.0)):
        norm, clipped = as_tuple("clip", ("norm", "grads"), adapters.clip(grads=grads, max_norm=max_norm))
        number("clip", "norm", norm, 5.0)
        has_arrays(f"clip: the gradients for max_norm {max_norm}", clipped, {n: g * scale for n, g in grads.items()})


@pytest.mark.task("4.3", points=2, look="the steps count from 1; warm-up, highest, half way, lowest")
def test_learning_rate(adapters):
    settings = SETTINGS | dict(learning_rate=1.0, min_learning_rate=0.2, warmup=4, decay_steps=12)
    for step, lr in ((1, 0.25), (4, 1.0), (8, 0.6), (12, 0.2)):
        number("learning_rate", f"at step {step}", adapters.learning_rate(step=step, settings=settings), lr)


@pytest.mark.task("5.1", points=2, look="a target is the token that follows")
def test_batch(adapters, rng):
    tokens = np.arange(100, 400)                                              # every token says its place
    inputs, targets = as_tuple("batch", ("inputs", "targets"),
                               adapters.batch(tokens=tokens, batch_size=6, block_size=9, seed=1))
    for what, got in (("inputs", inputs), ("targets", targets)):
        same_form("batch", what, got, (6, 9), tokens.dtype)
    equals("batch: inputs, a row less its first token", inputs - inputs[:, :1], [list(range(9))] * 6)
    equals("batch: targets - inputs", targets - inputs, [[1] * 9] * 6)


def stepped(model, reference, batch, step, lr, settings):
    """One step of minigpt's own training -> loss, norm. It changes the model's parameters."""
    model.zero_grad()
    loss = model.forward(*batch)
    model.backward()
    norm = global_norm(model.grads, spec)
    reference.step(model.grads, step, lr, min(1.0, settings["max_norm"] / norm))
    return loss, norm


def steps_agree(adapters, config, model, batches, settings, rates):
    """adapters.train_steps on these batches, and minigpt's training with these learning rates."""
    params, reference = {name: param.copy() for name, param in model.params.items()}, new_adamw(model.params, settings)
    done, params = as_tuple("train_step", ("losses and norms", "params"), adapters.train_steps(
        params=params, batches=batches, config=config, settings=settings))
    for step, (got, one, lr) in enumerate(zip(done, batches, rates, strict=True), 1):
        expected = stepped(model, reference, one, step, lr, settings)
        for what, a, b in zip(("the loss", "the norm"), got, expected, strict=True):
            number("train_step", f"{what} of step {step}", a, b, 1e-6)
    has_arrays(f"train_step: the parameters after {len(batches)} steps", params, model.params, 1e-6)


@pytest.mark.task("5.2", points=2, look="clip before AdamW; the learning rate of this step; the loss before it")
def test_train_step(adapters, rng):
    config, model = make(rng)
    batches = [tuple(rng.integers(0, 11, (2, 3, 7))) for _ in range(2)]
    steps_agree(adapters, config, model, batches, SETTINGS, (0.01, 0.02))


def loss_on(model, tokens):
    """The mean loss of every prediction in the text."""
    T, total = model.config.block_size, 0.0
    for start in range(0, len(tokens) - 1, T):
        stretch = tokens[None, start:start + T + 1]
        total += model.token_losses(stretch[:, :-1], stretch[:, 1:]).sum()
    return total / (len(tokens) - 1)


@pytest.mark.task("5.3", points=2, look="the last token of a stretch is to be predicted, and begins the next stretch")
def test_evaluate(adapters, rng):
    config, model = make(rng, n_layer=1)
    tokens = rng.integers(0, 11, 22)                                          # three stretches of 7, and one token
    number("evaluate", "the loss", adapters.evaluate(params=model.params, tokens=tokens, config=config),
           loss_on(model, tokens))


def as_history(name, history):
    """What train returns, as arrays: the losses, and rows of a step and the loss on validation after it."""
    try:
        losses, validations = (np.array(history[key], float) for key in ("loss", "validation"))
        return losses.reshape(-1), validations.reshape(-1, 2)
    except (KeyError, TypeError, ValueError) as error:
        raise Failed(f"{name}: the history is not {{'loss': [...], 'validation': [[step, loss], ...]}}: "
                     f"{type(error).__name__}: {error}") from None


@pytest.mark.task("6.1", points=2, look="moments that live on from step to step; which text is for what")
def test_train(adapters, rng):
    """The text has room for one stretch only, so that every batch is known, whatever the generator does."""
    config, model = make(rng, n_layer=1)
    text, validation = rng.integers(0, 11, (2, 8))
    settings = SETTINGS | dict(steps=5, batch_size=3, evaluate_every=2)
    params = {name: param.copy() for name, param in model.params.items()}
    history, params = as_tuple("train", ("history", "params"), adapters.training_run(
        params=params, text=text, validation=validation, config=config, settings=settings, seed=1))
    batches = [(np.stack([text[:7]] * 3), np.stack([text[1:]] * 3))] * 5
    rates = (0.01, 0.02, *(0.02 * schedule.cosine((step - 2) / 4, 0.1) for step in (3, 4, 5)))
    expected, evaluated = [], []
    reference = new_adamw(model.params, settings)
    for step, (one, lr) in enumerate(zip(batches, rates, strict=True), 1):
        expected.append(stepped(model, reference, one, step, lr, settings)[0])
        if step % 2 == 0:
            evaluated.append(loss_on(model, validation))
    losses, validations = as_history("train", history)
    near("train", "the losses", losses, np.array(expected), 1e-6)
    equals("train: the steps of the evaluations", validations[:, 0], [2, 4])
    near("train", "the losses on validation", validations[:, 1], np.array(evaluated), 1e-6)
    has_arrays("train: the parameters at the end", params, model.params, 1e-6)


@pytest.mark.task("7.1", points=1, look="python -m given.ablations, with three arms of your choice")
def test_results(adapters):
    """The file is whole. (That its numbers are those of your program is tested when your work is graded.)"""
    check_results(adapters.results())


def check_results(results):
    arms = [arm for arm in results if arm != "baseline"] if isinstance(results, dict) else []
    if "baseline" not in results or len(arms) < 3:
        raise Failed(f"student/results.json: has the arms {', '.join(results)}, must have baseline and three more")
    for arm, history in results.items():
        losses, validations = as_history(f"student/results.json: {arm}", history)
        equals(f"student/results.json: how many losses {arm} has", len(losses), 1000)
        equals(f"student/results.json: the steps of {arm}'s evaluations", validations[:, 0], np.arange(100, 1001, 100))
        if arm == "baseline" and not (np.isfinite(losses).all() and np.isfinite(validations).all()):
            raise Failed("student/results.json: the baseline has a loss that is not finite")
