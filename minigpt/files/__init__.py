"""Models on disk: a folder with config.json, model.safetensors, generation_config.json and, with a tokenizer,
tokenizer.json, such as transformers writes and reads.

A model of GPT-2's shape is written as GPT2LMHeadModel, one of Llama's shape as LlamaForCausalLM, and `transformers`
opens both (a masked one, causal=False, is is_causal=false there, which version 5 understands). Every other mix of
options (rope with layernorm, ...) has no class there and is written in our own layout: model_type "minigpt", the names
of `params`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..config import ModelConfig
from ..ops.memory import aligned_empty
from .atomic import atomic_write
from .json_file import read_json, write_json
from .layouts import HEAD, IGNORED, PREFIX, config_from_json, config_to_json, layout, model_type, place, place_shape
from .safetensors import SafeTensors, write_safetensors

__all__ = ["SafeTensors", "atomic_write", "load_pretrained", "save_config", "save_pretrained", "write_safetensors"]

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


def save_pretrained(model, directory, tokenizer=None):
    """Writes the model, and the tokenizer if one is given, into `directory`, which is made if need be. Each file is
    written beside and renamed."""
    directory, config, params = Path(directory), model.config, model.params
    kind = model_type(config)
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise TypeError(f"save_pretrained: tokenizer is {tokenizer!r}, must be a Tokenizer, a CharTokenizer or None")
    directory.mkdir(parents=True, exist_ok=True)
    if kind == "gpt2" and not config.bias:                # GPT-2 always has biases; without, they are 0
        shapes = replace(config, bias=True).parameter_shapes()
        params = {name: params.get(name, np.zeros(1, np.float32)) for name in shapes}
        params = {name: np.broadcast_to(params[name], shape) for name, shape in shapes.items()}
        config = replace(config, bias=True)
    tensors = {(name if name == HEAD else PREFIX[kind] + name): place(params, *where)
               for name, where in layout(config, kind).items()}
    write_safetensors(directory / WEIGHTS, tensors, {"format": "pt"})     # transformers asks for this entry
    save_config(model, directory, tokenizer)


def save_config(model, directory, tokenizer=None):
    """Writes all but the weights."""
    ids = {"bos_token_id": None, "eos_token_id": model.eos_token_id}
    if tokenizer is not None:
        ids = dict.fromkeys(ids, tokenizer.eos_token_id)
        tokenizer.save_pretrained(directory)
    write_json(directory / "generation_config.json", ids)
    write_json(directory / CONFIG, config_to_json(model.config, model_type(model.config)) | ids)


def load_pretrained(directory) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """config and params, in float32, of a model that save_pretrained or transformers wrote; the weights may lie in
    several files and in any float dtype. ValueError names the file that is not as it must be, and what is wrong.
    Nothing is unpickled: of pytorch_model.bin this function says only that it must be converted."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a folder here; nothing is downloaded: give a folder that holds a model "
                         f"({CONFIG}, {WEIGHTS})")
    entry = read_json(directory / CONFIG)
    try:
        kind, config = config_from_json(entry)
    except KeyError as error:
        raise ValueError(f"{directory / CONFIG}: has no {error}, which a {entry['model_type']} must have") from None
    except ValueError as error:
        raise ValueError(f"{directory / CONFIG}: {error}") from None
    files = _weight_files(directory, PREFIX[kind])
    apart = {"layers": config.n_layer * (not config.share_layers), "experts": config.n_expert * (kind == "mixtral")}
    for part, number in apart.items():
        if number > len(files):
            raise ValueError(f"{directory / CONFIG}: asks for {number} {part}, the weights hold {len(files)} tensors")
    shapes, places = config.parameter_shapes(), layout(config, kind)
    for tensor, (name, *part) in places.items():          # all of them, before any memory is asked for
        if tensor not in files:
            raise ValueError(f"{directory}: the weights lack {PREFIX[kind]}{tensor}, which {CONFIG} asks for")
        _check_shape(*files[tensor], place_shape(shapes[name], *part))
    params = {name: aligned_empty(shape) for name, shape in shapes.items()}
    for tensor, where in places.items():
        _read_tensor(*files.pop(tensor), place(params, *where))
    foreign = sorted(name for name in files if not name.endswith(IGNORED) and name != HEAD)
    if foreign:
        raise ValueError(f"{directory}: the weights hold {', '.join(foreign[:3])} ({len(foreign)} in all), "
                         f"which {CONFIG} does not ask for")
    if kind == "gpt2" and entry.get("bias") is False:     # written by a model without biases: leave the zeros out
        without = replace(config, bias=False)
        biases = params.keys() - without.parameter_shapes().keys()
        if not any(params[name].any() for name in biases):
            return without, {name: params[name] for name in without.parameter_shapes()}
    return config, params


def load_eos_token_id(directory) -> int | None:
    """The token that ends a text, as generation_config.json has it, or else config.json; of several, the first."""
    for path in (Path(directory) / "generation_config.json", Path(directory) / CONFIG):
        found = read_json(path).get("eos_token_id") if path.exists() else None
        if found is not None and found != []:
            return found[0] if isinstance(found, list) else found
    return None


def _weight_files(directory, prefix):
    """{tensor, without prefix: (file, its name there)} of all files that hold weights."""
    if (directory / WEIGHTS).exists():
        names = [WEIGHTS]
    elif (directory / INDEX).exists():
        names = _shards(directory)
    else:
        if any(directory.glob("shard-*")):
            raise ValueError(f"{directory}: is a sharded checkpoint, which training can go on from (minigpt train "
                             f"--resume, with --parallel); the whole model is written at the end, as {WEIGHTS}")
        pickled = [path.name for path in directory.glob("*.bin")]
        found = f"only {pickled[0]}, which may run code when it is opened: convert it first" if pickled else "none"
        raise ValueError(f"{directory}: must hold {WEIGHTS}, found {found}")
    opened = [SafeTensors(directory / name) for name in names]
    return {tensor.removeprefix(prefix): (file, tensor) for file in opened for tensor in file.keys()}


def _shards(directory):
    """The names of the files that the index lists."""
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{directory / INDEX}: weight_map is {weight_map!r}, must be an object that names files")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors") \
                or not (directory / name).is_file():
            raise ValueError(f"{directory / INDEX}: names the file {name!r}, must be .safetensors and lie beside it")
    return sorted(set(weight_map.values()))


def _check_shape(file, name, shape):
    if file.shapes[name] != shape:
        raise ValueError(f"{file.path}: {name} has shape {file.shapes[name]}, must be {shape}")


def _read_tensor(file, name, where):
    """Reads one tensor into its place."""
    x = file[name]
    if x.dtype.kind != "f":
        raise ValueError(f"{file.path}: {name} is {x.dtype}, must be floating point")
    where[...] = x
    if not np.isfinite(where).all():
        raise ValueError(f"{file.path}: {name} holds NaN or infinity, must be finite numbers")
