"""Kernels that would end the process: a fault of the CPU becomes a KernelError, and Ctrl-C ends an endless loop."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from minigpt import emulator
from minigpt.ops import available, load

pytestmark = pytest.mark.skipif(available()["emulated"] is not None, reason=str(available()["emulated"]))

ROOT = Path(__file__).parent.parent
KERNEL = """#include <assert.h>
__device__ float deep(int n) {
  volatile float held[64];
  held[n % 64] = n;
  return n < 0 ? 0 : deep(n + 1) + held[3];
}
__global__ void kernel(float* x, int n) {
  BODY
}
extern "C" void run(float* x, int n) { kernel<<<2, 64>>>(x, n); }
"""


@pytest.fixture
def compiled(tmp_path):
    def make(body, checked):
        (tmp_path / "kernel.cu").write_text(KERNEL.replace("BODY", body))
        return emulator.compile(tmp_path / "kernel.cu", checked=checked)
    return make


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("body, kind, words", [
    ("x[threadIdx.x] = threadIdx.x / (n - 8);", "arithmetic", "divides an integer by zero in kernel.cu:8"),
    ("x[threadIdx.x] = deep(n);", "stack", "local variables"),
    ("float big[100000]; for (int i = 0; i < 100000; ++i) big[i] = i + n; x[0] = big[n];", "stack", "192 KiB"),
    ("*(float*)0x1234567890 = n;", "out of bounds", "0x1234567890"),
    ("float* p = nullptr; p[threadIdx.x + n] = 1;", "out of bounds", "kernel.cu:8"),
    ("void (*volatile call)() = nullptr; call();", "out of bounds", "kernel.cu:10"),
    ("assert(n > 8);", "trap", "assert(n > 8) in kernel.cu:8 does not hold"),
    ("if (n > 0) throw n;", "trap", "throws an exception in kernel.cu:8, which a GPU does not have"),
])
def test_a_fault_is_an_error_and_python_goes_on(compiled, body, kind, words, checked):
    x = np.ones(64, np.float32)
    kernels, handler = compiled(body, checked), signal.getsignal(signal.SIGSEGV)
    for _ in range(2):
        with pytest.raises(emulator.KernelError) as caught:
            kernels.run(x, 8)
        assert caught.value.findings[0].kind == kind and words in str(caught.value)
    assert signal.getsignal(signal.SIGSEGV) == handler
    compiled("if (blockIdx.x == 0) x[threadIdx.x] = 5;", checked).run(x, 8)
    assert (x == 5).all()


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("body", ["for (;;) __syncthreads();", "while (x[threadIdx.x] > 0) x[threadIdx.x + 64] = 1;",
                                  "volatile int i = 0; while (i == 0) {}"])
def test_ctrl_c_ends_an_endless_loop(compiled, body, checked):
    kernels, before = compiled(body, checked), signal.signal(signal.SIGINT, signal.default_int_handler)

    presser = threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            kernels.run(np.ones(128, np.float32), 8)
    finally:
        presser.join()
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("body, line", [
    ("for (;;) __syncthreads();", 8), ("volatile int i = 0;\nwhile (i == 0) {}", 9),
    ("while (x[threadIdx.x] == 0) x[threadIdx.x] = 0;", 8), ("while (atomicCAS((int*)x, 0, 1) != 0) {}", 8),
    ("float s = 1;\nwhile (s > 0) s = expf(s);\nx[0] = s;", 9), ("for (;;) {}", 7)])
def test_the_time_limit_names_the_line(compiled, body, line):
    kernels, x = compiled(body, True), np.zeros(64, np.float32)
    with emulator.watch(timeout=0.2) as report:
        kernels.run(x, 8)
    found = report.findings[-1]
    assert found.kind == "timeout" and found.places == (f"kernel.cu:{line}",)
    first, *_ = found.text.splitlines()
    assert first.startswith("kernel: stopped after 0.2 seconds, when thread ") and "of block (0, 0, 0)" in first
    with emulator.watch(timeout=60) as report:                          # what ends in time is not stopped
        compiled("if (blockIdx.x == 0) x[threadIdx.x] = n;", True).run(x, 8)
    assert not report.findings


@pytest.mark.parametrize("body, words", [
    ('throw std::domain_error("no good");', "the launcher throws std::domain_error (no good) in host.cu:7"),
    ("throw 5;", "the launcher throws an exception in host.cu:7"),
    ("std::string(2, 65).at(n) = 65;", "the launcher throws std::out_of_range (basic_string"),
    ("never(n);", "the launcher throws an exception in host.cu:3 that nobody can catch"),
    ("*(volatile int*)0x1234 = n;", "the launcher touches the address 0x1234 in host.cu:7"),
    ("strcpy((char*)x, (char*)0x1234);", "the launcher touches the address 0x1234 in host.cu:7"),
    ("cudaMemcpy(x, (void*)0x1234, 8, cudaMemcpyHostToDevice);", "touches the address 0x1234 in host.cu:7"),
    ("x[0] = deeper(n);", "needs more memory for its local variables than the CPU's stack has in host.cu:4"),
    ("n /= n - 8; x[0] = n;", "the launcher divides an integer by zero in host.cu:7"),
    ("exit(n);", "the launcher calls exit(8) in host.cu:7"),
    ("abort();", "abort() is called in host.cu:7"),
    ("assert(n > 8);", "the launcher finds that assert(n > 8) in host.cu:7 does not hold"),
    ("for (volatile int i = 0; i == 0;) {}", "when the launcher, not a kernel, was in host.cu:7"),
    ("for (;;) cudaMemset(x, 0, 16);", "when the launcher, not a kernel, was in host.cu:7"),
    ("for (;;) empty<<<1, 1>>>();", "stopped after 0.3 seconds"),
])
@pytest.mark.parametrize("checked", [True, False])
def test_what_a_launcher_does_wrong_on_the_cpu_does_not_end_python(tmp_path, body, words, checked):
    (tmp_path / "host.cu").write_text(f"""#include <assert.h>
#include <stdexcept>
void never(int n) noexcept {{ if (n) throw n; }}
int deeper(int n) {{ volatile int held = n; return n < 0 ? 0 : deeper(n + 1) + held; }}
__global__ void empty() {{}}
extern "C" void run(float* x, int n) {{
  {body}
}}
""")
    kernels, x = emulator.compile(tmp_path / "host.cu", checked=checked), np.ones(4, np.float32)
    for _ in range(2):
        if "stopped" in words or "not a kernel" in words:
            with emulator.watch(timeout=0.3) as report:
                kernels.run(x, 8)
            text = str(report.findings[0])
        else:
            with pytest.raises(emulator.KernelError) as caught:
                kernels.run(x, 8)
            text = str(caught.value)
        assert words in text


def test_the_stream_may_stand_anywhere(tmp_path):
    path = tmp_path / "first.cu"
    path.write_text('extern "C" void run(cudaStream_t stream, float* x, int n) { x[n] = stream ? 1 : 2; }')
    x = np.zeros(4, np.float32)
    emulator.compile(path).run(x, 3)
    assert x[3] == 2


def test_what_is_damaged_in_the_cache_is_made_again(compiled, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    body, x = "if (blockIdx.x == 0) x[threadIdx.x] = n;", np.zeros(64, np.float32)
    compiled(body, False)
    for name, kept in (("*.so", 1000), ("*.so", 0), ("*.[so]*", 500)):
        for path in (tmp_path / "minigpt" / "emulator").glob(name):
            data = path.read_bytes()
            path.unlink()                                       # the library that is loaded keeps its file
            path.write_bytes(data[:kept])
        compiled(body, False).run(x, 9)
        assert (x == 9).all()


@pytest.mark.parametrize("option", [dict(seed=-1), dict(seed="a"), dict(seed=2**40), dict(trace=-1), dict(trace=1.5),
                                    dict(timeout=0), dict(timeout="a"), dict(timeout=float("nan")), dict(timeout=-1),
                                    dict(skip="nonsense"), dict(skip=5), dict(skip="a:b")])
def test_watch_refuses_what_it_cannot_use(option):
    with pytest.raises(ValueError, match=f"watch: {next(iter(option))} is"):
        with emulator.watch(**option):
            pass


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "latin.cu").write_bytes("// é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.cu is not UTF-8 text \(at byte 3\)"):
        emulator.compile(tmp_path / "latin.cu")


def test_bytes_in_the_other_order_are_refused(compiled):
    swapped = np.ones(64, np.float32).astype(np.dtype(np.float32).newbyteorder())
    with pytest.raises(TypeError, match="run: x has the bytes of its numbers in the other order"):
        compiled("x[threadIdx.x] = 1;", False).run(swapped, 8)
    with pytest.raises(TypeError, match="in the other order"):
        load("emulated").gelu_forward(swapped)


def test_tensors_that_are_no_plain_memory_are_refused():
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 8)
    for odd, words in ((x.to("meta"), "device meta"), (x.to_sparse(), "torch.sparse_coo"),
                       (x.to(torch.complex64).conj().imag, "negates"), (x.to(torch.float8_e4m3fn), "float8_e4m3fn")):
        with pytest.raises(TypeError, match=words):
            load("emulated").gelu_forward(odd)


def test_what_is_declared_and_never_defined_is_named(tmp_path):
    (tmp_path / "k.cu").write_text('void other(float*);\nextern "C" void run(float* x) { other(x); }')
    with pytest.raises(emulator.CompileError, match=r"other\(float\*\)"):
        emulator.compile(tmp_path / "k.cu")
    (tmp_path / "k.cu").write_text('#if 0\nextern "C" void run(float* x) {}\n#endif\nextern "C" void rest() {}')
    with pytest.raises(AttributeError, match=r"run\(...\); it has rest\(\)"):
        emulator.compile(tmp_path / "k.cu").run(np.ones(1, np.float32))


def test_the_demonstration_without_a_compiler_says_so():
    done = subprocess.run([sys.executable, "-m", "minigpt.emulator.demo"], cwd=ROOT, env={"PATH": ""},
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("minigpt: the emulator needs a C++ compiler")
    assert done.stderr.count("\n") == 1


def test_memory_that_is_not_there_is_an_error_of_cuda(tmp_path):
    """And files that time themselves compile, though there is no time to tell."""
    (tmp_path / "host.cu").write_text("""extern "C" void run(float* said) {
  float* p = nullptr;
  cudaEvent_t start, stop;
  cudaEventCreate(&start), cudaEventCreate(&stop);
  cudaEventRecord(start);
  said[0] = cudaMemcpy(p, said, 4, cudaMemcpyHostToDevice);
  said[1] = cudaMemset(p, 0, 4);
  cudaMalloc(&p, 4);
  said[2] = cudaFree(p);
  said[3] = cudaFree(p);
  said[4] = cudaGetLastError();
  cudaEventRecord(stop), cudaEventSynchronize(stop);
  cudaEventElapsedTime(said + 5, start, stop);
}
""")
    said, invalid = np.zeros(6, np.float32), 1
    report = emulator.run(emulator.compile(tmp_path / "host.cu").run, said)
    assert [f.places for f in report.findings] == [("host.cu:6",), ("host.cu:7",), ("host.cu:10",)]
    assert said[:5].tolist() == [invalid, invalid, 0, invalid, invalid] and np.isnan(said[5])


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("body, words", [
    ("cudaMemcpy(y, m, 640, cudaMemcpyDeviceToHost);", "copies 640 bytes from byte 0 of the memory allocated in"),
    ("cudaMemcpy(y, m + 8, 64, cudaMemcpyDeviceToHost);", "copies 64 bytes from byte 32 of the memory allocated"),
    ("cudaMemcpy(y + 1, m, 64, cudaMemcpyDeviceToHost);", "writes 64 bytes from byte 4 of y in"),
    ("cudaMemcpy(y, m, -1, cudaMemcpyDeviceToHost);", "copies -1 bytes from byte 0 of"),
    ("cudaMemset(m, 0, 65);", "sets 65 bytes from byte 0 of the memory allocated in line 3"),
    ("cudaMemcpy(m, y, 64, cudaMemcpyDeviceToHost);", "the copy in host.cu:5 is wrong: it goes to memory of the GPU"),
    ("cudaMemcpy(m, host, 64, cudaMemcpyDeviceToDevice);", "is wrong: it comes from memory of the CPU"),
    ("cudaMemset(host, 0, 64);", "cudaMemset() in host.cu:5 is given memory of the CPU"),
    ("cudaFree(m); cudaFree(m);", "cudaFree() in host.cu:5 is given a pointer that cudaMalloc() did not return, or"),
])
def test_what_cuda_would_refuse_is_found_and_not_done(tmp_path, body, words, checked):
    (tmp_path / "host.cu").write_text(f"""extern "C" void run(float* y, int n) {{
  float *m, host[16] = {{}};
  cudaMalloc(&m, 64);
  cudaMemset(m, 0, 64), cudaMemcpy(m, host, 64, cudaMemcpyHostToDevice);
  {body}
  cudaMemcpy(y, m, 64, cudaMemcpyDeviceToHost), cudaMemcpy(host, y, 64, cudaMemcpyDefault);
}}
""")
    around = np.ones(48, np.float32)
    with pytest.raises(emulator.KernelError) as caught:
        emulator.compile(tmp_path / "host.cu", checked=checked).run(around[16:32], 8)
    first = caught.value.findings[0]
    assert words in first.text and first.places == ("host.cu:5",), first.text
    assert (around[:16] == 1).all() and (around[32:] == 1).all()


@pytest.mark.parametrize("body, words", [
    ("m[0] = n;", "the launcher writes the memory allocated in line 5 in host.cu:6: the CPU has no access"),
    ("y[0] = m[3];", "the launcher reads the memory allocated in line 5 in host.cu:6: the CPU has no access"),
    ("cudaFree(m); y[0] = m[3];", "in host.cu:6, where it has no memory"),
    ("float host[4]; kernel<<<1, 1>>>(host);", "in host.cu:1 at 0x"),
    ("kernel<<<1, 1>>>(kept);", ""), ("kernel<<<1, 1>>>(kept); kernel<<<1, 1>>>(m);", ""),
])
def test_the_cpu_and_the_gpu_have_memories_of_their_own(tmp_path, body, words):
    (tmp_path / "host.cu").write_text(f"""__global__ void kernel(float* x) {{ x[0] = 1; }}
extern "C" void run(float* y, int n) {{
  static float* kept = nullptr;
  if (!kept) cudaMalloc(&kept, 64);
  float* m; cudaMalloc(&m, 64);
  {body}
}}
""")
    kernels = emulator.compile(tmp_path / "host.cu")
    for _ in range(2):
        report = emulator.run(kernels.run, np.zeros(8, np.float32), 8)
        assert words in str(report.findings[0]) if words else not report.findings, report
    if "host[4]" in body:
        assert "which is memory of the CPU and belongs to no array" in str(report.findings[0])


def test_threads_watch_their_own_launches(compiled):
    kernels, seen = compiled("if (blockIdx.x == 0) x[threadIdx.x] = n;", True), []

    def watch():
        for _ in range(20):
            with emulator.watch() as report:
                kernels.run(np.ones(64, np.float32), 8)
            seen.append([kernel.launches for kernel in report.kernels])

    threads = [threading.Thread(target=watch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[1]] * 80
