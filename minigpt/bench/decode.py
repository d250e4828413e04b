"""Generating with GPT-2 124M (random weights), one text at a time: tokens per second after a prompt, and the speed at
which the prompt itself is read. Beside transformers and llama.cpp, where they are installed, with the same weights.

Every token reads every weight once, so decoding is bound by memory: bytes of weights per second, against the read
bandwidth. Reading a prompt is bound by arithmetic."""

import importlib.util
import math
import tempfile

import numpy as np

from ..config import ModelConfig
from ..generate import KVCache
from ..model import GPT
from .timing import compare


def rows(ops, torch, options):
    """Yields a row for decoding and one for reading the prompt."""
    tiny, seconds = options["tiny"], options["seconds"]
    changes = dict(vocab_size=97, n_layer=2, n_embd=32, n_head=2, block_size=64) if tiny else {}
    config = ModelConfig.preset("gpt2", **changes)
    prompt_length, new, long_prompt = (8, 4, 16) if tiny else (32, 32, 512)
    model = GPT(config, ops)
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, long_prompt)
    with tempfile.TemporaryDirectory() as folder:
        engines = {"ours": _Ours(model)}
        if torch and importlib.util.find_spec("transformers"):
            model.save_pretrained(folder)
            engines["transformers"] = _Transformers(torch, folder)
        if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf") and not tiny:
            engines["llama.cpp"] = _LlamaCpp(config, model.params, f"{folder}/gpt2.gguf", options["threads"])
        logits = {name: engine.read(prompt) for name, engine in engines.items()}
        for name, values in logits.items():
            error = np.abs(values - logits["ours"]).max()
            if not error < 1e-2 * np.abs(logits["ours"]).max():  # llama.cpp looks gelu up in a table of float16
                raise RuntimeError(f"bench decode: the logits of {name} differ from ours by {error}")
        weights = 4 * sum(math.prod(s) for name, s in config.parameter_shapes().items() if name != "wpe")
        name = "tiny" if tiny else "GPT-2 124M, fp32"
        for engine in engines.values():
            engine.read(prompt[:prompt_length])
        yield {
            "work": f"decode, {name}, one stream", "peer": "transformers", "tokens": new, "bytes": new * weights,
            "limit": "read",
            **compare({k: lambda e=e: _continue(e, prompt_length, new) for k, e in engines.items()}, seconds),
        }
        inner = config.flops_per_token(long_prompt // 2) - 2 * config.vocab_size * config.n_embd  # causal: half of T
        yield {
            "work": f"prompt of {long_prompt} tokens, {name}", "peer": "transformers", "tokens": long_prompt,
            "flops": long_prompt * inner + 2 * config.vocab_size * config.n_embd, "limit": "fma",
            **compare({k: lambda e=e: e.read(prompt) for k, e in engines.items()}, seconds),
        }


def _continue(engine, length, count):
    """Appends `count` tokens, the likeliest each time, to a text of `length` tokens that the engine has read."""
    engine.rewind(length)
    token = 0
    for _ in range(count):
        token = int(engine.append(token).argmax())


class _Ours:
    def __init__(self, model):
        self.model, self.cache = model, KVCache(model.config)

    def read(self, prompt):
        """Forgets everything, reads the prompt -> the logits after its last token."""
        self.cache.length = 0
        return self.model.forward(prompt[None], cache=self.cache, last=True)[0, -1]

    def rewind(self, length):
        """Forgets all but the first `length` tokens."""
        self.cache.length = length

    def append(self, token):
        return self.model.forward(np.array([[token]]), cache=self.cache, last=True)[0, -1]


class _Transformers:
    def __init__(self, torch, folder):
        from transformers import DynamicCache, GPT2LMHeadModel

        self.torch, self.new_cache = torch, DynamicCache
        self.model = GPT2LMHeadModel.from_pretrained(folder).eval()

    def read(self, prompt):
        self.cache = self.new_cache()
        return self._forward(prompt[None])

    def rewind(self, length):
        surplus = self.cache.get_seq_length() - length
        if surplus:
            self.cache.crop(-surplus)

    def append(self, token):
        return self._forward(np.array([[token]]))

    def _forward(self, tokens):
        with self.torch.inference_mode():
            tokens = self.torch.from_numpy(tokens)
            out = self.model(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1].numpy()


class _LlamaCpp:
    """llama.cpp through the llama_cpp package, on a GGUF file written with the gguf package."""

    def __init__(self, config, params, path, threads):
        import llama_cpp

        _write_gguf(config, params, path)
        self.llama = llama_cpp.Llama(path, n_ctx=config.block_size, n_batch=512, n_threads=threads,
                                     n_threads_batch=threads, verbose=False)
        self.get_logits, self.vocab_size = llama_cpp.llama_get_logits, config.vocab_size

    def read(self, prompt):
        self.llama.reset()
        return self._eval(prompt.tolist())

    def rewind(self, length):
        self.llama.n_tokens = length

    def append(self, token):
        return self._eval([token])

    def _eval(self, tokens):
        self.llama.eval(tokens)
        return np.ctypeslib.as_array(self.get_logits(self.llama.ctx), (self.vocab_size,)).copy()


def _write_gguf(config, params, path):
    import gguf

    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    writer.add_token_merges(["t 0"])
    parts = {"wte": "token_embd", "wpe": "position_embd", "norm": "output_norm", "attn.qkv": "attn_qkv",
             "attn.proj": "attn_output", "norm1": "attn_norm", "norm2": "ffn_norm", "mlp.up": "ffn_up",
             "mlp.down": "ffn_down"}
    for name, array in params.items():
        stem, _, kind = name.rpartition(".") if "." in name else (name, "", "weight")
        prefix = ""
        if stem.startswith("h."):
            _, layer, stem = stem.split(".", 2)
            prefix = f"blk.{layer}."
        writer.add_tensor(f"{prefix}{parts[stem]}.{kind}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
