"""Beyond one process and NumPy: the GPT as a torch module, what grows from there, and the planner. All but the planner
needs torch, and says so."""

_OF_TWIN = ("TorchGPT", "best_device")


def __getattr__(name):
    if name not in _OF_TWIN:
        raise AttributeError(f"module 'minigpt.scale' has no attribute {name!r}")
    try:
        from . import twin
    except ImportError as error:
        raise ImportError(f"minigpt.scale needs torch ({error}); install it: pip install torch") from None
    return getattr(twin, name)
