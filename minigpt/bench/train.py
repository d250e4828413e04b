"""A training step (forward, backward, clipping, AdamW) of our GPT and of the same model in torch, from the same weights
on the same batch. The losses of their first steps must agree: they time the same computation."""

import numpy as np

from ..config import ModelConfig
from ..model import GPT
from ..train.optimizer import AdamW, clip_scale, global_norm
from .timing import compare

LEARNING_RATE, MAX_NORM = 1e-5, 1.0

# name: (config, batch, block, whether torch.compile is tried too: it pays where Python costs as much as arithmetic)
SETTINGS = {
    "4 layers 128 wide, batch 12 x 64": (ModelConfig.preset("char"), 12, 64, True),
    "6 layers 384 wide, batch 64 x 256": (
        ModelConfig.preset("char", n_layer=6, n_head=6, n_embd=384, block_size=256), 64, 256, False),
    "GPT-2 124M, batch 4 x 256": (ModelConfig.preset("gpt2"), 4, 256, False),
}
TINY = {"tiny": (ModelConfig.preset("char", n_layer=1, n_embd=16, n_head=2, block_size=8), 2, 8, False)}


def rows(ops, torch, options):
    """Yields a row for each setting whose name holds options["only"]."""
    settings = TINY if options["tiny"] else SETTINGS
    chosen = {name: s for name, s in settings.items() if (options["only"] or "").lower() in name.lower()}
    if not chosen:
        raise ValueError(f"bench train: --only is {options['only']!r}, must be part of: {'; '.join(settings)}")
    for name, (config, B, T, compiled) in chosen.items():
        model, rng = GPT(config, ops), np.random.default_rng(0)
        tokens, targets = rng.integers(0, config.vocab_size, (2, B, T))
        variants = {"ours": _ours(model, tokens, targets)}
        if torch:
            variants["torch"] = _torch(torch, config, model.params, tokens, targets)
            if compiled and options["setting"] == "default":
                variants["compiled"] = _torch(torch, config, model.params, tokens, targets, compiled=True)
        losses = {variant: [] for variant in variants}
        steps = {k: lambda step=step, keep=losses[k].append: keep(step()) for k, step in variants.items()}
        summaries = compare(steps, options["seconds"])
        first_losses = {k: of_steps[0] for k, of_steps in losses.items()}
        if max(first_losses.values()) - min(first_losses.values()) > 1e-4 * first_losses["ours"]:
            raise RuntimeError(f"bench train: {name}: the first losses differ, {first_losses}")
        yield {
            "work": f"training step, {name}",
            "peer": "nanoGPT in torch",
            "tokens": B * T,
            "flops": 3 * B * T * config.flops_per_token(T),
            "limit": "fma",
            "first_loss": first_losses["ours"],
            **summaries,
        }
        del model, variants, steps  # before the next setting takes its memory


def _ours(model, tokens, targets):
    optimizer, steps = AdamW(model.params, model.ops, 0.9, 0.95, 1e-8, 0.1), 0

    def step():
        nonlocal steps
        steps += 1
        model.zero_grad()
        loss = model.forward(tokens, targets)
        model.backward()
        scale = clip_scale(global_norm(model.grads, model.ops), MAX_NORM)
        optimizer.step(model.grads, steps, LEARNING_RATE, scale)
        return loss

    return step


def _torch(torch, config, params, tokens, targets, compiled=False):
    from .nanogpt import NanoGPT

    model = NanoGPT(config, params)
    optimizer = model.optimizer(LEARNING_RATE)
    loss_of = torch.compile(model) if compiled else model
    tokens, targets = torch.from_numpy(tokens), torch.from_numpy(targets)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        return loss.item()

    return step
