"""Training: the Trainer, its arguments, and what they stand on."""

from .arguments import TrainingArguments
from .trainer import Trainer

__all__ = ["Trainer", "TrainingArguments"]
