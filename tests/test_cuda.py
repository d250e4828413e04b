"""The build with nvcc, and the GPU backend: what can be known of them on a machine without a GPU.

Every kernel is compiled for one architecture, and ptxas says whether what should be in registers is. The library loads
without a driver. minigpt/ops/gpu.py runs over a "GPU" that is the emulator: its own gpu.cpp and kernels, compiled for
the CPU.
"""

import contextlib
import ctypes
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from minigpt import GPT, ModelConfig, emulator, nvcc
from minigpt.emulator import build
from minigpt.ops import available, budget, cases, cuda_arrays, cuda_call, gpu, numpy_ops

ROOT = Path(__file__).parent.parent
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*/*.cu"))
COMPILED = re.compile(r"Compiling entry function '(\w+)'(?:.|\n)*?(\d+) bytes stack frame, (\d+) bytes spill stores")


def unavailable():
    try:
        nvcc.runtime(nvcc.find())
    except nvcc.NoNvcc as reason:
        return str(reason)


needs_nvcc = pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))
needs_emulator = pytest.mark.skipif(available()["emulated"] is not None, reason=str(available()["emulated"]))


# ---------------------------------------------------------------------------------------------------------------
# finding nvcc, and what to build for


@pytest.fixture
def settings(monkeypatch):
    """Sets the environment for one test, and what nvidia-smi and nvcc would say."""
    for name in ("MINIGPT_NVCC", "MINIGPT_CUDA", "MINIGPT_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(nvcc, "seen", lambda: [])
    monkeypatch.setattr(nvcc, "offered", lambda path: ["75", "80", "90", "100", "90a"])
    monkeypatch.setattr(nvcc, "version", lambda path: "13.0")
    return monkeypatch


def test_an_nvcc_that_is_not_there(settings):
    settings.setenv("MINIGPT_NVCC", "/nowhere/nvcc")
    with pytest.raises(nvcc.NoNvcc, match="MINIGPT_NVCC is /nowhere/nvcc"):
        nvcc.find()


def test_nvcc_is_looked_for_in_cuda_home_first(settings, tmp_path):
    (tmp_path / "bin").mkdir()
    found = tmp_path / "bin" / "nvcc"
    found.touch(mode=0o755)
    settings.setenv("CUDA_HOME", f"{tmp_path}:")
    assert nvcc.find() == str(found)


def test_without_a_gpu_nothing_is_built_unless_asked_for(settings):
    with pytest.raises(nvcc.NoNvcc, match="no GPU is seen here"):
        nvcc.wanted("nvcc")
    settings.setenv("MINIGPT_CUDA", "1")
    assert nvcc.wanted("nvcc") == ["75", "80", "90", "100"]
    settings.setenv("MINIGPT_CUDA_ARCHS", "90,80")
    assert nvcc.wanted("nvcc") == ["80", "90"]
    settings.setenv("MINIGPT_CUDA", "0")
    with pytest.raises(nvcc.NoNvcc, match="MINIGPT_CUDA is 0"):
        nvcc.wanted("nvcc")


def test_where_a_gpu_is_seen_the_build_is_for_it(settings):
    settings.setattr(nvcc, "seen", lambda: ["90"])
    assert nvcc.wanted("nvcc") == ["90"]
    settings.setattr(nvcc, "seen", lambda: ["70"])
    with pytest.raises(nvcc.NoNvcc, match="sm_70, which nvcc 13.0 does not know"):
        nvcc.wanted("nvcc")


def test_an_architecture_that_nvcc_has_not(settings):
    settings.setenv("MINIGPT_CUDA_ARCHS", "80 70")
    with pytest.raises(nvcc.NoNvcc, match="MINIGPT_CUDA_ARCHS names 70"):
        nvcc.wanted("nvcc")


def test_targets_of_a_file(tmp_path):
    def targets(header, *architectures):
        (tmp_path / "k.cu").write_text(header)
        return [option.removeprefix("-gencode=arch=") for option in nvcc.targets(tmp_path / "k.cu", architectures)]

    assert targets("", "75", "80", "90") == [
        "compute_75,code=sm_75", "compute_80,code=sm_80", "compute_90,code=sm_90",
        "compute_75,code=compute_75", "compute_90,code=compute_90"]
    assert targets("// takes: bfloat16; needs sm_80\n", "75", "100") == [
        "compute_100,code=sm_100", "compute_100,code=compute_100"]
    assert targets("// takes: bfloat16; needs sm_80\n", "75") == []
    assert targets("// takes: bfloat16; needs sm_90a\n", "80", "90") == ["compute_90a,code=sm_90a"]
    assert targets("// takes: bfloat16; needs sm_90a\n", "100") == []


# ---------------------------------------------------------------------------------------------------------------
# the kernels


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The library for one architecture, sm_90 with the Hopper kernels, and what ptxas said of each file."""
    if unavailable():
        pytest.skip(unavailable())
    folder = tmp_path_factory.mktemp("cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGPT_CUDA_ARCHS", "90")
        _, said = nvcc.build(ROOT / "csrc", folder / "_cuda.so", folder, "-Xptxas=-v")
    return folder / "_cuda.so", said


@pytest.mark.parametrize("source", KERNELS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_kernels_keep_their_numbers_in_registers(source, built):
    """No kernel spills registers, and none has an array that lies in (slow) local memory."""
    entries = COMPILED.findall(built[1][source])
    assert entries
    for name, stack, spilled in entries:
        assert (int(stack), int(spilled)) == (0, 0), f"{name}: {stack} bytes of stack, {spilled} spilled"


@needs_nvcc
def test_blackwell_has_the_registers_too(tmp_path):
    """For the kernel that needs the most of them; its blocks are fewer there."""
    if "100" not in nvcc.offered(nvcc.find()):
        pytest.skip("this nvcc does not know sm_100")
    source = ROOT / "csrc" / "cuda" / "attention" / "backward_3_tensor_cores.cu"
    said = subprocess.run([nvcc.find(), *nvcc.FLAGS, *nvcc.targets(source, ["100"])[:1], "-Xptxas=-v", "-c", source,
                           "-o", tmp_path / "kernel.o"], capture_output=True, text=True, check=True).stderr
    entries = COMPILED.findall(said)
    assert any("dk_dv" in name for name, *_ in entries)
    assert {(stack, spilled) for _, stack, spilled in entries} == {("0", "0")}


def test_the_library_loads_without_a_driver_and_has_every_launcher(built):
    library = ctypes.CDLL(str(built[0]))
    for rungs in cuda_call.find_rungs(vars(numpy_ops)).values():
        for rung in rungs:
            assert hasattr(library, rung.signature.name)
    if readelf := shutil.which("readelf"):
        needed = subprocess.run([readelf, "-d", built[0]], capture_output=True, text=True, check=True).stdout
        assert "libcuda" not in needed and "NEEDED" in needed


def test_without_a_gpu_the_reason_is_said(built, monkeypatch):
    if nvcc.seen():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(gpu, "LIBRARY", built[0])
    with pytest.raises(ImportError, match="^no GPU: .*driver"):
        gpu.GPU()


def test_without_the_library_the_reason_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "LIBRARY", tmp_path / "_cuda.so")
    with pytest.raises(ImportError, match="not built; `minigpt doctor` says"):
        gpu.GPU()


def test_available_says_one_line():
    reason = available()["cuda"]
    assert reason is None or reason and "\n" not in reason


# ---------------------------------------------------------------------------------------------------------------
# the GPU backend, over a GPU that is the emulator


class EmulatedGPU(gpu.GPU):
    """The library has what Python needs of the CUDA runtime; the launchers come from the emulator's libraries."""

    def __init__(self):
        super().__init__()
        self._runtime, self._library = self._library, self

    def has(self, rung):
        return rung.runs_on(self.capability)

    def launch(self, rung, arguments, like):
        setattr(self, rung.signature.name, getattr(emulator.library(rung.path)._library, rung.signature.name))
        super().launch(rung, arguments, like)

    def __getattr__(self, name):
        return getattr(self.__dict__["_runtime"], name)


@pytest.fixture(scope="module")
def ops(tmp_path_factory):
    """cuda_ops.py as ops.load("cuda") loads it."""
    if available()["emulated"]:
        pytest.skip(available()["emulated"])
    source = tmp_path_factory.mktemp("gpu") / "library.cu"
    source.write_text('#define MINIGPT_CUDA_ARCHS "80"\n#include "gpu.cpp"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "LIBRARY", build.build(source, checked=False, include=[build.sources() / "cuda"]))
        patch.setattr(gpu, "GPU", EmulatedGPU)
        spec = importlib.util.find_spec("minigpt.ops.cuda_ops")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    assert (module.name, module._machine.name, module._machine.capability) == ("cuda", "the emulator", 80)
    return module


RUNGS = {"layernorm_forward": "naive", "layernorm_backward": "partials", "attention_forward": "tiled",
         "embedding_forward": None}


def few_cases(op):
    return [case for case in cases.cases(op) if sum(np.size(x) for x in case.arguments.values()) < 10_000]


@pytest.mark.parametrize("op", RUNGS)
def test_numpy_arrays_are_copied_there_and_back(ops, op):
    option = {"kernel": RUNGS[op]} if RUNGS[op] else {}
    for case in few_cases(op):
        results = budget.run(ops, op, case.arguments, **option)
        for verdict in budget.judge(op, budget.budget(op, case.arguments), results):
            assert verdict.ok, f"{case}: {verdict}"


@pytest.mark.parametrize("shape", [dict(), dict(position="rope", norm="rmsnorm", activation="swiglu", n_kv_head=1)])
def test_the_model_trains_on_it_unchanged(ops, shape):
    config = ModelConfig(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32, **shape)
    tokens = np.random.default_rng(0).integers(0, 65, (2, 17))
    losses = []
    for backend in ("numpy", ops):
        model = GPT(config, backend)
        for step in (1, 2, 3):
            model.zero_grad()
            losses.append(model.forward(tokens[:, :-1], tokens[:, 1:]))
            model.backward()
            for name, param in model.params.items():
                model.ops.adamw(param, model.grads[name], np.zeros_like(param), np.zeros_like(param), step, 1e-2)
    np.testing.assert_allclose(losses[:3], losses[3:], rtol=1e-6)


def test_what_lies_between_strided_results_is_left_alone(ops):
    q, k, v = (case.arguments[name] for name in "qkv" for case in few_cases("attention_forward")[5:6])
    B, H, T, D = q.shape
    packed = np.full((B, T, 2, H, D), 7, np.float32)
    out = packed[:, :, 0].swapaxes(1, 2)
    result, _ = ops.attention_forward(q, k, v, out=(out, np.empty((B, H, T), np.float32)), kernel="tiled")
    assert result is out and (packed[:, :, 1] == 7).all()
    np.testing.assert_allclose(out, numpy_ops.attention_forward(q, k, v)[0], rtol=1e-4, atol=1e-5)


def test_gradients_accumulate_on_the_gpu(ops):
    case = few_cases("layernorm_backward")[3]
    first = ops.layernorm_backward(**case.arguments, kernel="partials")
    grads = tuple(x.copy() for x in first)
    ops.layernorm_backward(**case.arguments, kernel="partials", grads=grads, accumulate=True)
    assert (grads[0] == first[0]).all()
    np.testing.assert_allclose(grads[1], 2 * first[1], rtol=1e-6)


class OnGPU:
    """What gpu.py needs of a torch tensor in a GPU's memory; nobody may read it as an array."""
    is_cuda = True

    def __init__(self, tensor, number=0):
        self.tensor, self.device = tensor, type("Device", (), {"type": "cuda", "index": number})

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tensor, name)

    def __setitem__(self, index, value):
        self.tensor[index] = getattr(value, "tensor", value)

    def __getitem__(self, index):
        return OnGPU(self.tensor[index])

    def __lt__(self, number):
        return OnGPU(self.tensor < number)

    def __ge__(self, number):
        return OnGPU(self.tensor >= number)

    def __or__(self, other):
        return OnGPU(self.tensor | other.tensor)

    def __int__(self):
        return int(self.tensor)

    def new_empty(self, *arguments, **options):
        return OnGPU(self.tensor.new_empty(*arguments, **options))

    def cpu(self):
        return self.tensor


@pytest.fixture
def torch(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda number: type("Stream", (), {"cuda_stream": 7}))
    monkeypatch.setattr(torch.cuda, "device", lambda number: contextlib.nullcontext())
    return torch


def test_tensors_on_the_gpu_are_used_where_they_are(ops, torch, monkeypatch):
    case = few_cases("attention_forward")[5]
    q, k, v = (OnGPU(torch.from_numpy(case.arguments[name].swapaxes(1, 2).copy()).transpose(1, 2)) for name in "qkv")
    monkeypatch.setattr(ops._machine, "_copied", None)                       # nothing may be copied
    out, lse = ops.attention_forward(q, k, v, kernel="tiled")
    assert isinstance(out, OnGPU) and out.dtype == lse.dtype == torch.float32
    expected = budget.budget("attention_forward", case.arguments)
    for verdict in budget.judge("attention_forward", expected, (out.tensor.numpy(), lse.tensor.numpy())):
        assert verdict.ok, verdict


def test_token_ids_on_the_gpu_are_looked_at_there_first(ops, torch, monkeypatch):
    monkeypatch.setattr(ops._machine, "_copied", None)                       # nothing may be copied
    wte = OnGPU(torch.arange(12.0).reshape(4, 3))
    x = ops.embedding_forward(OnGPU(torch.tensor([[3, 0]])), wte)
    assert x.tensor.tolist() == [[[9, 10, 11], [0, 1, 2]]]
    with pytest.raises(ValueError, match=r"tokens\[0, 0\] is 4"):
        ops.embedding_forward(OnGPU(torch.tensor([[4, 0]])), wte)


def test_the_vendors_library_takes_tensors_only(ops, torch):
    """A weight, or gradients, of NumPy beside a tensor on the GPU: the kernels copy them there."""
    x = OnGPU(torch.ones(2, 8))
    y = ops.linear_forward(x, np.ones((3, 8), np.float32))
    assert y.tensor.tolist() == [[8] * 3] * 2
    gelu, pre = ops.linear_gelu_forward(x, np.ones((3, 8), np.float32))
    assert pre.tensor.tolist() == [[8] * 3] * 2 and gelu.tensor.tolist() == pre.tensor.tolist()
    dweight = np.full((3, 8), np.nan, np.float32)
    ops.linear_backward(y, x, OnGPU(torch.ones(3, 8)), grads=(None, dweight, None))
    assert (dweight == 16).all()


def test_arrays_on_two_gpus_are_refused(ops, torch):
    x, weight = OnGPU(torch.ones(3, 8)), OnGPU(torch.ones(8), number=1)
    with pytest.raises(ValueError, match="layernorm_forward: the arrays are on several GPUs"):
        ops.layernorm_forward(x, weight, kernel="naive")


def test_the_emulator_refuses_arrays_on_a_gpu(torch):
    from minigpt.ops import load
    with pytest.raises(TypeError, match="layernorm_forward: an array is on a GPU"):
        load("emulated").layernorm_forward(OnGPU(torch.ones(3, 8)), OnGPU(torch.ones(8)))


def test_dlpack():
    """Arrays of libraries that we do not know, described by DLPack."""
    class Foreign:
        def __init__(self, x):
            self.x = x

        def __dlpack__(self):
            return self.x.__dlpack__()

    for x in (np.arange(24, dtype=np.float32).reshape(2, 3, 4)[:, ::2, 1:], np.arange(5), np.ones((3, 2), np.float16)):
        seen = cuda_arrays.view(Foreign(x))
        assert (seen.shape, seen.strides, seen.dtype, seen.ctypes.data) == (x.shape, x.strides, x.dtype, x.ctypes.data)
        assert cuda_arrays.device(seen) is None and (seen == x).all()
    with pytest.raises(TypeError, match="Foreign"):
        cuda_arrays.view(Foreign(np.ones(3, np.complex64)))
