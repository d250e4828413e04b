"""Models on disk: what is saved comes back, transformers and this project open each other's folders, and bad files are
refused with one line that names them."""

import json
import os
import pickle
import stat
from dataclasses import replace

import numpy as np
import pytest

from minigpt import files
from minigpt.config import ModelConfig
from minigpt.files import SafeTensors, atomic_write, write_safetensors
from minigpt.model import GPT

GPT2 = ModelConfig(vocab_size=19, block_size=12, n_layer=2, n_head=4, n_embd=16, n_inner=24)
LLAMA = replace(GPT2, norm="rmsnorm", position="rope", activation="swiglu", bias=False, tied=False, rope_base=500.0,
                norm_eps=1e-4)
MIXTRAL = replace(LLAMA, n_kv_head=2, n_expert=4, router_aux_loss=0.02)
OWN = replace(GPT2, causal=False)
SHAPES = {
    "gpt2": GPT2,
    "gpt2 untied": replace(GPT2, tied=False, norm_eps=1e-3),
    "gpt2 without bias": replace(GPT2, bias=False),
    "llama": LLAMA,
    "llama grouped, tied": replace(LLAMA, n_kv_head=2, tied=True),
    "llama with bias": replace(LLAMA, n_kv_head=1, bias=True),
    "mixtral": MIXTRAL,
    "own experts": replace(MIXTRAL, router_bias=True, gate="sigmoid"),
    "own shared": replace(LLAMA, share_layers=True, n_layer=20),
    "own latent": replace(LLAMA, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5, q_lora_rank=12),
    "own": OWN,
    "own mix": replace(GPT2, position="rope", activation="swiglu", n_kv_head=2),
}
every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)


def lively(config, seed=0):
    """A model whose parameters all differ, so that one that is in the wrong place shows."""
    rng = np.random.default_rng(seed)
    shapes = config.parameter_shapes()
    return GPT(config, "numpy", params={name: rng.normal(0, 0.3, s).astype(np.float32) for name, s in shapes.items()})


def assert_same(a, b):
    assert a.config == b.config
    for name, param in a.params.items():
        assert np.array_equal(param, b.params[name]) and b.params[name].dtype == np.float32, name


@every_shape
def test_what_is_saved_comes_back(config, tmp_path):
    model = lively(config)
    model.save_pretrained(tmp_path / "made" / "for it")
    again = GPT.from_pretrained(tmp_path / "made" / "for it", "numpy")
    assert_same(model, again)
    again.params["wte"][0] += 1                                           # loaded arrays can be trained
    assert sorted(os.listdir(tmp_path / "made" / "for it")) == ["config.json", "generation_config.json",
                                                                "model.safetensors"]


def test_tokenizer_is_saved_beside_and_names_the_end_of_text(tmp_path):
    class Tokenizer:
        eos_token_id = 7

        def save_pretrained(self, directory):
            (directory / "tokenizer.json").write_text("{}")

    lively(GPT2).save_pretrained(tmp_path, Tokenizer())
    assert (tmp_path / "tokenizer.json").exists()
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / name).read_text())["eos_token_id"] == 7


# ---------------------------------------------------------------------------------------------------------------
# transformers

THEIR_SHAPES = {name: config for name, config in SHAPES.items() if not name.startswith("own")}
every_shape_of_theirs = pytest.mark.parametrize("config", THEIR_SHAPES.values(), ids=THEIR_SHAPES)


@every_shape_of_theirs
def test_transformers_opens_what_is_saved_here(config, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = lively(config)
    model.save_pretrained(tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 12))
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens)).logits.numpy()
    expected = model.forward(tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@every_shape_of_theirs
@pytest.mark.parametrize("how", ["whole", "shards", "bfloat16", "float16", "base model"])
def test_what_transformers_saves_opens_here(config, how, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = lively(config)
    model.save_pretrained(tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    expected = dict(model.params)
    if how.endswith("16"):
        theirs = theirs.to(getattr(torch, how))
        expected = {name: torch.tensor(x).to(getattr(torch, how)).float().numpy() for name, x in expected.items()}
    if how == "base model":                                               # its tensors have no prefix
        if not config.tied:
            pytest.skip("the base model has no head of its own")
        theirs = theirs.base_model
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="3KB" if how == "shards" else "1GB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == (how == "shards")
    again = GPT.from_pretrained(tmp_path / "theirs", "numpy")
    assert_same(GPT(config, "numpy", params=expected), again)


def test_old_gpt2_files_open(tmp_path):
    """As the model hub has them: no prefix, the masks among the weights, the head beside its twin."""
    model = lively(GPT2)
    model.save_pretrained(tmp_path)
    file = SafeTensors(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("transformer."): np.array(file[name]) for name in file.keys()}
    tensors |= {f"h.{i}.attn.bias": np.ones((1, 1, 12, 12), np.float32) for i in range(2)}
    tensors |= {f"h.{i}.attn.masked_bias": np.float32(-1e4).reshape(()) for i in range(2)}
    tensors["lm_head.weight"] = tensors["wte.weight"]
    write_safetensors(tmp_path / "model.safetensors", tensors)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("bias", "tie_word_embeddings", "n_inner", "dtype"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_inner": 24}))
    assert_same(model, GPT.from_pretrained(tmp_path, "numpy"))


def test_biases_that_were_trained_elsewhere_are_kept(tmp_path):
    """A model without biases is written with zeros for GPT-2. Once transformers has trained them, they count."""
    lively(replace(GPT2, bias=False)).save_pretrained(tmp_path)
    file = SafeTensors(tmp_path / "model.safetensors")
    tensors = {name: np.array(file[name]) for name in file.keys()}
    tensors["transformer.h.1.mlp.c_fc.bias"][3] = 0.5
    write_safetensors(tmp_path / "model.safetensors", tensors)
    model = GPT.from_pretrained(tmp_path, "numpy")
    assert model.config.bias and model.params["h.1.mlp.up.bias"][3] == 0.5


# ---------------------------------------------------------------------------------------------------------------
# bad files


def edit_config(**changes):
    def edit(path):
        config = json.loads((path / "config.json").read_text())
        for key, value in changes.items():
            config.pop(key, None) if value is None else config.update({key: value})
        (path / "config.json").write_text(json.dumps(config))
    return edit


def edit_tensors(change):
    def edit(path):
        file = SafeTensors(path / "model.safetensors")
        tensors = {name: np.array(file[name]) for name in file.keys()}
        change(tensors)
        write_safetensors(path / "model.safetensors", tensors)
    return edit


def cut(size):
    def edit(path):
        data = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(data[:size])
    return edit


def replace_by(content):
    return lambda path: (path / "model.safetensors").write_bytes(content)


def header(**entry):
    text = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


def headers(**places):
    """A file whose tensors of two numbers lie at these places."""
    text = json.dumps({name: place if name[0] == "_" else {"dtype": "F32", "shape": [2], "data_offsets": place}
                       for name, place in places.items()}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(20)


class Boom:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def only_pickle(path):
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Boom(path / "it ran")))


def index(weight_map):
    def edit(path):
        (path / "model.safetensors").unlink()
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return edit


def spoil(value):
    def change(tensors):
        tensors["transformer.h.1.ln_1.weight"][3] = value
    return change


W, C = "model.safetensors", "config.json"
BAD = {
    "no config": (lambda path: (path / C).unlink(), rf"{C}: there is no such file"),
    "config is no json": (lambda path: (path / C).write_text("{"), rf"{C}: must be JSON"),
    "config is binary": (lambda path: (path / C).write_bytes(b"\xff\xfe\x00"), rf"{C}: must be JSON"),
    "config is a list": (lambda path: (path / C).write_text("[]"), rf"{C}: holds a list, must be a JSON object"),
    "unknown model": (edit_config(model_type="bert"), rf"{C}: model_type is 'bert', must be one of gpt2, llama, "),
    "no model type": (edit_config(model_type=None), rf"{C}: model_type is None, must be one of"),
    "missing key": (edit_config(n_layer=None), rf"{C}: has no 'n_layer', which a gpt2 must have"),
    "bad value": (edit_config(n_layer="two"), rf"{C}: ModelConfig: n_layer is 'two', must be an integer"),
    "another activation": (edit_config(activation_function="relu"), rf"{C}: activation_function is 'relu', must be"),
    "another attention": (edit_config(scale_attn_by_inverse_layer_idx=True), rf"{C}: scale_attn_by_inverse_layer_idx"),
    "no weights": (lambda path: (path / W).unlink(), rf"must hold {W}, found none"),
    "only pickle": (only_pickle, rf"must hold {W}, found only pytorch_model.bin, which may run code"),
    "empty file": (cut(0), rf"{W}: not a safetensors file, or cut off"),
    "cut in the length": (cut(5), rf"{W}: not a safetensors file, or cut off"),
    "cut in the header": (cut(200), rf"{W}: not a safetensors file, or cut off"),
    "cut in the data": (cut(-1), rf"{W}: cut off: tensor transformer.ln_f.bias ends at byte \d+ of \d+ that are there"),
    "a web page": (replace_by(b"<html><body>404 not found</body></html>"), rf"{W}: not a safetensors file, or cut off"),
    "a pointer": (replace_by(b"version https://git-lfs.github.com/spec/v1\n" * 4), rf"{W}: not a safetensors file"),
    "header is no json": (replace_by(b"\x08" + bytes(7) + b"not json" + bytes(8)), rf"{W}: not a safetensors file: "),
    "header is a list": (replace_by(b"\x02" + bytes(7) + b"[]"), rf"{W}: not a safetensors file: its header"),
    "config is deep": (lambda path: (path / C).write_text("[" * 100_000), rf"{C}: must be JSON"),
    "endless number": (lambda path: (path / C).write_text('{"n_layer": ' + "9" * 5000 + "}"), rf"{C}: must be JSON"),
    "model type is a list": (edit_config(model_type=["gpt2"]), rf"{C}: model_type is \['gpt2'\], must be one of"),
    "epsilon is true": (edit_config(layer_norm_epsilon=True), rf"{C}: ModelConfig: norm_eps is True, must be"),
    "bias is text": (edit_config(bias="x"), rf"{C}: bias is 'x', must be True or False"),
    "endless layers": (edit_config(n_layer=10**9), rf"{C}: asks for 1000000000 layers, the weights hold 28 tensors"),
    "endless words": (edit_config(vocab_size=10**15), rf"{W}: transformer.wte.weight has shape \(19, 16\), must be"),
    "endless width": (edit_config(n_embd=2**62), rf"{W}: transformer.wte.weight has shape \(19, 16\), must be"),
    "header is deep": (replace_by((10**5).to_bytes(8, "little") + b"[" * 10**5), rf"{W}: not a safetensors file: "),
    "three offsets": (replace_by(header(data_offsets=[0, 8, 8])), rf"{W}: not a safetensors file: its header"),
    "tensors overlap": (replace_by(headers(x=[0, 8], y=[4, 12])), rf"{W}: tensor y begins at byte 4, must begin at 8"),
    "a gap": (replace_by(headers(x=[0, 8], y=[12, 20])), rf"{W}: tensor y begins at byte 12, must begin at 8"),
    "bytes behind": (replace_by(header() + b"more"), rf"{W}: the tensors end at byte 8, must fill all 12"),
    "metadata is a list": (replace_by(headers(__metadata__=[1])), rf"{W}: __metadata__ is \[1\], must be"),
    "no shape": (replace_by(header(shape=None)), rf"{W}: not a safetensors file: its header"),
    "one offset": (replace_by(header(data_offsets=[0])), rf"{W}: not a safetensors file: its header"),
    "negative shape": (replace_by(header(shape=[-2])), rf"{W}: tensor x is F32 \(-2,\), which bytes 0 .. 8 do not fit"),
    "wrong offsets": (replace_by(header(data_offsets=[0, 4])), rf"{W}: tensor x is F32 \(2,\), which bytes 0 .. 4 "),
    "unknown dtype": (replace_by(header(dtype="F4")), rf"{W}: tensor x is F4, must be one of F64"),
    "missing tensor": (edit_tensors(lambda t: t.pop("transformer.h.1.mlp.c_fc.bias")),
                       rf"lack transformer.h.1.mlp.c_fc.bias, which {C} asks for"),
    "one layer too many": (edit_config(n_layer=1), rf"hold h.1.attn.c_attn.bias, .* \(12 in all\), which {C} does not"),
    "wrong shape": (edit_config(n_positions=13), rf"{W}: transformer.wpe.weight has shape \(12, 16\), must be \(13, "),
    "integers": (edit_tensors(lambda t: t.update({"transformer.wpe.weight": np.zeros((12, 16), np.int32)})),
                 rf"{W}: transformer.wpe.weight is int32, must be floating point"),
    "NaN": (edit_tensors(spoil(np.nan)), rf"{W}: transformer.h.1.ln_1.weight holds NaN or infinity"),
    "infinity": (edit_tensors(spoil(np.inf)), rf"{W}: transformer.h.1.ln_1.weight holds NaN or infinity"),
    "missing shard": (index({"wte.weight": "model-1-of-2.safetensors"}), "index.json: names the file 'model-1-of-2"),
    "no shards": (index({}), "index.json: weight_map is {}, must be an object that names files"),
    "shards in a list": (index([]), r"index.json: weight_map is \[\], must be an object that names files"),
    "shard is a number": (index({"wte.weight": 5}), "index.json: names the file 5, must be .safetensors"),
    "shard is a folder": (index({"wte.weight": ".."}), "index.json: names the file '..', must be .safetensors"),
    "shard elsewhere": (index({"wte.weight": "../secret.safetensors"}), "index.json: names the file '../secret"),
}


@pytest.mark.parametrize("damage, message", BAD.values(), ids=BAD)
def test_bad_files_are_refused(damage, message, tmp_path):
    lively(GPT2).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        GPT.from_pretrained(tmp_path, "numpy")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("changes, message", [
    (dict(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4}), "rope_type is 'llama3', must be 'default'"),
    (dict(rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling is {.*}, must be None"),
    (dict(rope_parameters=[1]), r"rope_parameters is \[1\], must be an object"),
    (dict(mlp_bias=True), "mlp_bias is True, must be as attention_bias, False"),
    (dict(head_dim=8), "head_dim is 8, must be hidden_size / num_attention_heads, 4"),
    (dict(hidden_act="gelu"), "hidden_act is 'gelu', must be 'silu' or 'swish'"),
])
def test_llamas_that_this_model_cannot_be_are_refused(changes, message, tmp_path):
    lively(LLAMA).save_pretrained(tmp_path)
    edit_config(**changes)(tmp_path)
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path, "numpy")


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder here; nothing is downloaded"):
        GPT.from_pretrained(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------------------------
# the format and the writing


def test_safetensors_there_and_back(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {str(np.dtype(t)): rng.integers(0, 2, (3, 5)).astype(t) for t in files.safetensors.NAMES}
    tensors |= {"empty": np.zeros((0, 4), np.float32), "number": np.float32(3).reshape(()),
                "turned": rng.normal(size=(4, 6)).T, "big endian": np.arange(3, dtype=">f4"), "ümlaut": np.zeros(1)}
    write_safetensors(tmp_path / "x", tensors, {"step": "12"})
    file = SafeTensors(tmp_path / "x")
    assert file.metadata == {"step": "12"} and list(file.keys()) == list(tensors)
    for name, x in tensors.items():
        assert file[name].dtype == x.dtype.newbyteorder("<") and file[name].shape == x.shape == file.shapes[name]
        assert np.array_equal(file[name], x)
    with pytest.raises(TypeError, match="z is complex128, must be one of float64"):
        write_safetensors(tmp_path / "x", {"z": np.zeros(2, complex)})


def test_the_package_reads_what_is_written_here_and_the_other_way_round(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    tensors = {"a": x, "b": np.arange(7), "c": np.zeros((0, 2))}
    write_safetensors(tmp_path / "ours", tensors, {"format": "pt"})
    package.save_file(tensors, tmp_path / "theirs")
    theirs, ours = package.load_file(tmp_path / "ours"), SafeTensors(tmp_path / "theirs")
    for name, x in tensors.items():
        assert np.array_equal(theirs[name], x) and theirs[name].dtype == x.dtype
        assert np.array_equal(ours[name], x) and ours[name].dtype == x.dtype


def test_what_is_no_tokenizer_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="save_pretrained: tokenizer is 'x', must be a Tokenizer"):
        GPT(GPT2, "numpy").save_pretrained(tmp_path / "model", "x")
    assert not (tmp_path / "model").exists()


def test_bfloat16_is_read_exactly(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file
    x = torch.tensor([1.0, -3.140625, 1e-30, 3e38, float("inf"), float("nan"), -0.0]).to(torch.bfloat16)
    save_file({"x": x}, tmp_path / "x")
    assert np.array_equal(SafeTensors(tmp_path / "x")["x"], x.float().numpy(), equal_nan=True)


def test_failed_write_leaves_what_was_there(tmp_path):
    (tmp_path / "x").write_text("before")
    with pytest.raises(OSError, match="disk full"):
        with atomic_write(tmp_path / "x") as file:
            file.write(b"half")
            raise OSError("disk full")
    assert (tmp_path / "x").read_text() == "before" and os.listdir(tmp_path) == ["x"]
    with atomic_write(tmp_path / "x") as file:
        file.write(b"after")
        assert (tmp_path / "x").read_text() == "before"
    assert (tmp_path / "x").read_text() == "after" and os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_full_disk(tmp_path, monkeypatch):
    """The file beside is /dev/full, where every write fails as on a full disk."""
    real_open = open
    monkeypatch.setattr("builtins.open", lambda path, *mode: real_open("/dev/full" if mode == ("wb",) else path, *mode))
    with pytest.raises(OSError, match="No space left"):
        lively(GPT2).save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="every folder is writable here")
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OSError, match="Permission denied"):
        lively(GPT2).save_pretrained(tmp_path)
