"""Beyond one process and NumPy: the GPT as a torch module, and what grows from there. Needs torch, and says so."""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"minigpt.scale needs torch ({error}); install it: pip install torch") from None

from .twin import TorchGPT

__all__ = ["TorchGPT"]
