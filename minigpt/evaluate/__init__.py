"""What a model knows: the cloze probe (cloze.py)."""

from .cloze import Cloze, probe

__all__ = ["Cloze", "probe"]
