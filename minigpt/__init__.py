"""minigpt: the GPT you can take apart."""

__version__ = "0.1.0"
