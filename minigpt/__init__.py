"""minigpt: the GPT you can take apart."""

import importlib

__version__ = "0.1.0"

# Every public name and the module it lives in, which is imported when the name is first used: so `import minigpt` is
# quick, and needs nothing but NumPy.
_HOME = {
    "GPT": "model",
    "ModelConfig": "config",
    "Tokenizer": "text",
    "CharTokenizer": "text",
    "TextDataset": "text",
    "DataCollatorForLanguageModeling": "text",
    "DataCollatorForKnowledge": "text",
    "Trainer": "train",
    "TrainingArguments": "train",
    "num_threads": "ops",
    "set_num_threads": "ops",
}
_MODULES = ("ops", "emulator")
__all__ = [*_HOME, *_MODULES]


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'minigpt' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
