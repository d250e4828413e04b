"""Beyond one process and NumPy: the GPT as a torch module, what grows from there, and the planner. All but the planner
needs torch, and says so."""


def __getattr__(name):
    if name != "TorchGPT":
        raise AttributeError(f"module 'minigpt.scale' has no attribute {name!r}")
    try:
        from .twin import TorchGPT
    except ImportError as error:
        raise ImportError(f"minigpt.scale needs torch ({error}); install it: pip install torch") from None
    return TorchGPT
