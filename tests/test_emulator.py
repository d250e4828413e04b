"""The emulator as a student meets it: their file is compiled, called and explained, and their mistakes are named."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from minigpt import emulator
from minigpt.emulator import build, demo, launchers
from minigpt.emulator.rewrite import SyntaxProblem, rewrite
from minigpt.ops import available, load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
needs_emulator = pytest.mark.skipif(available()["emulated"] is not None, reason=str(available()["emulated"]))

ADD = """#include <cuda_runtime.h>
__global__ void add_kernel(const float* a, const float* b, float* c, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) c[i] = a[i] + b[i];
}

extern "C" void add(const float* a, const float* b, float* c, int n, cudaStream_t stream) {
  add_kernel<<<(n + 63) / 64, 64, 0, stream>>>(a, b, c, n);
}
"""


def line_of(text, words):
    """The number of the line with these words in it."""
    return next(i for i, line in enumerate(text.splitlines(), 1) if words in line)


@pytest.fixture
def cu(tmp_path):
    """Writes a file and returns its path."""
    def write(text, name="kernel.cu"):
        (tmp_path / name).write_text(text)
        return tmp_path / name
    return write


# ---------------------------------------------------------------------------------------------------------------
# the text


def rewritten(text):
    first, rest = rewrite(text, "k.cu").split("\n", 1)
    assert first == '#line 1 "k.cu"' and rest.count("\n") == text.count("\n")
    return rest


def test_a_launch_becomes_a_call():
    assert rewritten("f(); k<<<grid, 64, 0, stream>>>(a, b);") == (
        'f(); ::emulator::launch("k", [=](auto... argument) { k(argument...); }, grid, 64, 0, stream)(a, b);')


@pytest.mark.parametrize("kernel", ["k", "space::k", "k<float>", "k<T, 2 * (N + 1)>", "k<Pair<Pair<int>>>", "k <T>"])
def test_any_kernel_name(kernel):
    assert f"{{ {kernel}(argument...); }}, 1, (f(x, y)))(z);" in rewritten(f"if (n) {kernel}<<<1, (f(x, y))>>>(z);")


def test_a_launch_over_several_lines_keeps_them():
    text = "  k<T,\n    N><<<grid,\n  dim3(32, 8)>>>(a,\n b);\nnext();"
    assert rewritten(text).splitlines()[-1] == "next();"
    assert rewritten(text.replace("\n    N>", "N>\n    ")).splitlines()[-1] == "next();"


def test_comments_and_strings_are_left_alone():
    text = '// k<<<1, 2>>>(x)\n/* k<<<1,\n2>>>(x) extern __shared__ float s[]; */ f("k<<<1, 2>>>(x)", \'"\');'
    assert rewritten(text) == text


@pytest.mark.parametrize("text, kind", [
    ("extern __shared__ float tile[];", "float"),
    ("extern __shared__ __align__(16) unsigned char tile [ ] ;", "unsigned char"),
    ("__align__(16) extern __shared__ float4 tile[];", "float4"),
    ("extern __shared__ alignas(sizeof(T)) T tile[];", "T"),
])
def test_dynamic_shared_memory_becomes_a_pointer(text, kind):
    assert f"{kind}* const tile = static_cast<{kind}*>(::emulator::dynamic_shared());" in rewritten(text)


def test_static_shared_memory_is_left_alone():
    assert rewritten("__shared__ float tile[32];") == "__shared__ float tile[32];"


@pytest.mark.parametrize("text", ["\n <<<1, 2>>>(x);", "\nk<<<1, 2>(x);"])
def test_a_launch_that_cannot_be_read_is_named(text):
    with pytest.raises(SyntaxProblem, match=r"k\.cu:2: "):
        rewrite(text, "k.cu")


# ---------------------------------------------------------------------------------------------------------------
# the launchers


def test_signatures_are_read_from_the_source():
    text = ('// extern "C" void no(int x) {\n'
            'extern "C" void f(const float* __restrict__ x, uint16_t *y,\n  unsigned int n) {}')
    f, = launchers.signatures(text, "k.cu")[0].values()
    assert (f.name, f.line, str(f)) == ("f", 2, "f(x, y, n)")
    assert [(p.name, p.kind, p.pointer, p.const) for p in f.parameters] == [
        ("x", "float", True, True), ("y", "uint16_t", True, False), ("n", "unsigned int", False, False)]


def test_blocks_and_returned_numbers_are_understood():
    known, skipped = launchers.signatures("""extern "C" int alone(int n);
extern "C" __attribute__((visibility("default"))) cudaError_t first(float* x, int n) { if (n) { return 1; } return 0; }
extern "C" {
#define NOT a(int n) {
struct Shape { int rows; };
void declared(int n);
__global__ void kernel(float* x) { x[0] = '}'; }
static void helper(int n) {}
float
second(void)
{ return 1; }
void third(unsigned int n) noexcept {}
}
void not_in_the_block(int n) {}
""", "k.cu")
    assert not skipped
    assert [(f.name, f.line, f.returns, len(f.parameters)) for f in known.values()] == [
        ("first", 2, "int", 2), ("second", 10, "float", 0), ("third", 12, "void", 1)]


@pytest.mark.parametrize("function, reason", [
    *((f"void f({parameter})", f"the parameter `{parameter}` cannot come from Python")
      for parameter in ("std::string s", "float** x", "float& x", "Shape shape", "void (*g)(int, int)", "float x[]")),
    ("float4 f()", "it returns `float4`"), ("void _f()", "begins with an underscore")])
def test_functions_that_python_cannot_call_are_named(function, reason):
    known, skipped = launchers.signatures(f'extern "C" {function} {{}}', "k.cu")
    (name, why), = skipped.items()
    assert not known and why.startswith(f"k.cu:1: {name}: ") and reason in why


@needs_emulator
def test_launchers_may_have_any_name_and_return_numbers(cu):
    names = [name for name in dir(emulator.Library(cu(ADD), True)) if not name.startswith("_")]
    assert names == ["add"]
    path = cu(ADD + """extern "C" {
int path(int n) { return n + 1; }
double checked(float x) { return x / 2; }
cudaError_t call(float* x) { add_kernel<<<1, 2048>>>(x, x, x, 1); return cudaPeekAtLastError(); }
void other(void (*f)(int)) { f(1); }
}
""")
    with pytest.warns(UserWarning, match=r"kernel\.cu:14: other: the parameter `void \(\*f\)\(int\)` cannot come"):
        kernels = emulator.compile(path, checked=False)
    assert (kernels.path(4), kernels.checked(3)) == (5, 1.5)
    with emulator.watch():
        assert kernels.call(np.ones(1, np.float32)) == 9                # cudaErrorInvalidConfiguration
    with pytest.raises(AttributeError, match=r"kernel\.cu:14: other: the parameter"):
        kernels.other(1)


@needs_emulator
def test_a_kernel_runs(cu):
    a, b, c = np.arange(100, dtype=np.float32), np.ones(100, np.float32), np.full(100, np.nan, np.float32)
    for checked in (True, False):
        kernels = emulator.compile(cu(ADD), checked=checked)
        kernels.add(a, b, c, 100)
        assert (c == a + 1).all()
    assert "add" in dir(kernels)


@needs_emulator
@pytest.mark.parametrize("change, kind, words", [
    (dict(a=[1.0]), TypeError, "add: a is list, must be an array"),
    (dict(a=np.ones(8)), TypeError, "add: a holds float64, must hold float32"),
    (dict(b=np.ones(16, np.float32)[::2]), ValueError, "add: b is not contiguous"),
    (dict(c=np.broadcast_to(np.float32(0), 8)), ValueError, "add: c is not contiguous"),
    (dict(c=np.frombuffer(bytes(32), np.float32)), ValueError, "add: c is read-only"),
    (dict(n=8.0), TypeError, "add: n is 8.0, must be int"),
    (dict(n=2**40), ValueError, "add: n is 1099511627776, which does not fit int"),
    (dict(n=None), TypeError, "add: n is None, must be int"),
])
def test_bad_arguments_are_refused(cu, change, kind, words):
    good = dict(a=np.ones(8, np.float32), b=np.ones(8, np.float32), c=np.ones(8, np.float32), n=8)
    with pytest.raises(kind) as caught:
        emulator.compile(cu(ADD)).add(*(good | change).values())
    assert words in str(caught.value)


@needs_emulator
def test_wrong_names_and_counts_are_refused(cu):
    kernels = emulator.compile(cu(ADD))
    with pytest.raises(AttributeError, match=r"add\(a, b, c, n\)"):
        kernels.sub(7)
    with pytest.raises(TypeError, match=r"add\(a, b, c, n\) takes 4 arguments, not 1"):
        kernels.add(7)


# ---------------------------------------------------------------------------------------------------------------
# compiling


@needs_emulator
def test_compile_errors_name_the_lines_of_the_file(cu):
    text = ADD.replace("c[i] = a[i] + b[i]", "c[i] = a[i] + missing[i]")
    with pytest.raises(emulator.CompileError) as caught:
        emulator.compile(cu(text))
    assert isinstance(caught.value, ValueError)
    assert f"kernel.cu:{line_of(text, 'missing')}:" in str(caught.value) and "missing" in str(caught.value)


@needs_emulator
def test_errors_in_headers_name_the_header(cu):
    cu("#pragma once\nint broken(", "other.cuh")
    with pytest.raises(emulator.CompileError, match=r"other\.cuh:2:"):
        emulator.compile(cu('#include "other.cuh"\n' + ADD))


@needs_emulator
def test_launches_and_shared_memory_in_headers(cu):
    cu("""#pragma once
template <class T>
__global__ void reverse(T* x) {
  extern __shared__ T tile[];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
inline void launch_reverse(float* x, int n) { reverse<float><<<1, n, n * sizeof(float)>>>(x); }
""", "reverse.cuh")
    path = cu('#include "reverse.cuh"\nextern "C" void run(float* x, int n) { launch_reverse(x, n); }')
    kernels = emulator.compile(path)
    x = np.arange(70, dtype=np.float32)
    kernels.run(x, 70)
    assert (x == np.arange(70)[::-1]).all()


@needs_emulator
def test_what_was_compiled_is_kept_until_something_changes(cu, monkeypatch):
    compiled = []
    real = build._compile
    monkeypatch.setattr(build, "_compile", lambda *arguments: compiled.append(arguments) or real(*arguments))
    cu("#define ONE 1\n", "one.cuh")
    path = cu('#include "one.cuh"\n' + ADD)
    first = build.build(path, True)
    assert compiled
    compiled.clear()
    assert build.build(path, True) == first and not compiled
    cu("#define ONE 2\n", "one.cuh")
    assert build.build(path, True) != first and compiled
    assert build.build(path, False) not in (first, build.build(path, True))


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        emulator.compile("no_such_file.cu")


def test_without_a_compiler_the_reason_is_said():
    program = "import minigpt; print(minigpt.ops.available()['emulated'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True,
                          check=True)
    assert done.stdout == "the emulator needs a C++ compiler (g++ or clang++), none was found\n"


def test_installed_without_a_checkout(tmp_path):
    """The package as pip puts it elsewhere: the sources of kernels and emulator are in it, and kernels run."""
    subprocess.run([sys.executable, "setup.py", "build_py", "--build-lib", tmp_path / "lib"], cwd=ROOT, check=True,
                   capture_output=True)
    program = ("import numpy as np, minigpt; print(minigpt.__file__); x = np.ones((2, 40), np.float32);"
               "print(minigpt.ops.load('emulated').gelu_forward(x)[0, 0])")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")})
    place, number = done.stdout.split()
    assert place.startswith(str(tmp_path)) and number.startswith("0.841")


# ---------------------------------------------------------------------------------------------------------------
# the report


@needs_emulator
def test_the_demonstration_finds_the_missing_barrier(cu):
    report = demo.missing_barrier()
    text = (demo.FOLDER / "sum_rows.cu").read_text()
    wrote, read = line_of(text, "partial[threadIdx.x] = sum"), line_of(text, "+= partial[threadIdx.x + half]")
    race = next(finding for finding in report.findings if finding.kind == "race")
    assert f"sum_rows.cu:{wrote}" in race.text and f"sum_rows.cu:{read}" in race.text
    assert "__syncthreads()" in race.text and race.text.split("\n")[0] in str(report)


@needs_emulator
def test_the_demonstration_as_a_program():
    def python_m(*words):
        return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    done = python_m("minigpt.emulator.demo")
    title, opening = done.stdout.index("A sum of rows"), done.stdout.index("with no __syncthreads() between the two")
    assert done.returncode == 0 and title < opening < done.stdout.index("What is wrong")
    assert "255 times more in these lines" in done.stdout and "255 times more in these lines" in README
    for words, said in ((["minigpt.emulator"], "python -m minigpt.emulator.demo shows"),
                        (["minigpt.emulator.demo", "extra"], "the demo takes no arguments, not 'extra'")):
        done = python_m(*words)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@needs_emulator
def test_the_demonstration_finds_the_scattered_writes(cu):
    report = demo.uncoalesced()
    line = line_of((demo.FOLDER / "transpose.cu").read_text(), "y[column * n + row] =")
    assert not report.findings
    write, = (line for line in report.lines if line.kind == "write")
    read, = (line for line in report.lines if line.kind == "read")
    assert (write.bytes, write.requests, write.sectors, write.ideal) == (4 * 64 * 64, 128, 128 * 32, 128 * 4)
    assert (read.sectors, read.ideal, read.waste) == (128 * 4, 128 * 4, 1)
    sentence, = report.advice
    assert f"transpose.cu:{line}" in sentence and "8.0 times" in sentence and sentence.split("\n")[0] in str(report)


@needs_emulator
def test_a_mistake_is_an_error_with_the_place_in_it(cu):
    text = ADD.replace("if (i < n) ", "")
    kernels = emulator.compile(cu(text))
    x = np.ones(100, np.float32)
    with pytest.raises(emulator.KernelError) as caught:
        kernels.add(x, x.copy(), x.copy(), 100)
    assert f"kernel.cu:{line_of(text, 'c[i] =')}" in str(caught.value)
    assert caught.value.findings[0].kind == "out of bounds"
    with emulator.watch() as report:
        kernels.add(x, x.copy(), x.copy(), 100)
    assert [finding.kind for finding in report.findings] == [finding.kind for finding in caught.value.findings]
    with pytest.raises(emulator.KernelError, match="out of bounds: c has 1 element "):
        kernels.add(x, x, x[:1].copy(), 100)
    kernels.add(x, x.copy(), x.copy(), 64)                              # and the next call is clean again


@needs_emulator
def test_a_report_adds_up_the_calls_of_several_files(cu):
    a, b, c = (np.ones(100, np.float32) for _ in range(3))
    kernels, others = emulator.compile(cu(ADD)), emulator.compile(cu(ADD.replace("add_kernel", "sum_kernel"), "sum.cu"))
    with emulator.watch() as report:
        kernels.add(a, b, c, 100)
        kernels.add(a, b, c, 40)
        others.add(a, b, c, 100)
    first, second = report.kernels
    assert (first.name, first.launches, first.grid, first.block) == ("add_kernel", 2, (1, 1, 1), (64, 1, 1))
    assert (second.name, second.launches, second.grid) == ("sum_kernel", 1, (2, 1, 1))
    writes = [line for line in report.lines if line.kind == "write"]
    assert [(line.bytes, line.requests, line.sectors, line.waste) for line in writes] == [
        (560, 6, 18, 1.0), (400, 4, 13, 1.0)]
    assert not report.findings and not report.advice and "Nothing wrong was found." in str(report)


@needs_emulator
def test_a_picture_shows_the_trace(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    from minigpt.emulator import picture
    report = demo.uncoalesced(trace=64)
    drawn = picture.points(report.trace)
    for array, kind in (("x", "read"), ("y", "write")):
        time, element, block, write = drawn[array]
        assert (write == (kind == "write")).all() and len(time) == 32 * 32 and set(block) == {0, 1, 2, 3}
        expected = [(t, offset // 4) for t, one in enumerate(report.trace) if one["array"] == array
                    for offset in one["offsets"]]
        assert [*zip(time, element, strict=True)] == expected
    report.picture(tmp_path / "trace.png")
    report.animation(tmp_path / "trace.gif", frames=4)
    assert min(Image.open(tmp_path / "trace.png").size) > 300
    assert Image.open(tmp_path / "trace.gif").n_frames == 4
    used = picture.banks([dict(array="s", space="shared", lanes=[0, 1, 2, 3], offsets=[0, 128, 4, 4], bytes=4)])
    assert used.shape == (1, 32) and used[0, 0] == 2 and used[0, 1] == 1 and used.sum() == 3
    wide = dict(array="s", space="shared", lanes=[*range(32)], offsets=[16 * lane for lane in range(32)], bytes=16)
    assert (picture.banks([wide]) == 1).all()
    with pytest.raises(ValueError, match="no trace"):
        emulator.Report().picture(tmp_path / "none.png")
    for path in (None, 3):
        with pytest.raises(TypeError, match=f"picture: path is {path}, must be the name of a file"):
            report.picture(path)
    with pytest.raises(ValueError, match="picture: path is 'a.gif', must end with .png, .svg, .pdf"):
        report.picture("a.gif")
    with pytest.raises(ValueError, match="animation: path is 'a.png', must end with .gif"):
        report.animation("a.png")
    for frames in (0, -1, "a", 2.5, True):
        with pytest.raises(ValueError, match=f"animation: frames is {frames!r}, must be an integer from 1 to 1000"):
            report.animation("a.gif", frames)


@needs_emulator
def test_an_animation_keeps_the_colours_and_fills_the_banks(tmp_path, monkeypatch):
    """A block has one colour in all frames and in the picture, and banks light up when their time has come."""
    pytest.importorskip("matplotlib")
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage
    scales, banks, titles = [], [], []
    scatter, set_data = Axes.scatter, AxesImage.set_data
    monkeypatch.setattr(Axes, "scatter", lambda self, *points, **style: scales.append(
        (style["vmin"], style["vmax"])) or scatter(self, *points, **style))
    monkeypatch.setattr(AxesImage, "set_data", lambda self, x: banks.append(x.sum()) or set_data(self, x))
    monkeypatch.setattr(FuncAnimation, "__init__", lambda self, figure, draw, **_: vars(self).update(
        figure=figure, draw=draw, _draw_was_started=True))
    monkeypatch.setattr(FuncAnimation, "save", lambda self, path, writer: [
        self.draw(k) or titles.append(self.figure.get_suptitle()) for k in range(4)])
    report = demo.missing_barrier(trace=400, blocks="shuffled")
    report.animation(tmp_path / "trace.gif", frames=4)
    report.picture(tmp_path / "trace.png")
    assert set(scales) == {(0, 3)} and len(scales) > 8
    whole, frames = banks[0], banks[1:5]                # drawn once by imshow(), then frame by frame
    assert 0 < frames[0] < frames[1] < frames[2] < frames[3] == whole
    assert not report.trace_is_full and not any("full" in title for title in titles)
    short = demo.missing_barrier(trace=50)
    short.animation(tmp_path / "trace.gif", frames=4)
    assert short.trace_is_full and "the trace is full" in titles[-1]


@needs_emulator
def test_the_instructors_example_finds_the_mistake(tmp_path, cu):
    """It passes who is right; not who forgets a barrier, computes on the CPU, leaves while the file is loaded, loops
    there, or does not compile."""
    pytest.importorskip("matplotlib")
    code, = re.findall(r"```python\n(.*?)```", (build.sources() / "emulator" / "README.md").read_text(), re.DOTALL)
    (tmp_path / "check.py").write_text(code.replace("(60, 60)", "(5, 5)"))
    faulty = (demo.FOLDER / "sum_rows.cu").read_text()
    right = faulty.replace("partial[threadIdx.x] = sum;", "partial[threadIdx.x] = sum; __syncthreads();")
    launch = "sum_rows<<<rows, 128, 0, stream>>>(x, sums, columns);"
    on_cpu = right.replace(launch, "for (int row = 0; row < rows; ++row) sums[row] = row;")
    files = dict(right=(right, "passed"), faulty=(faulty, "What is wrong"), broken=(right + "}", "error: "),
                 cpu=(on_cpu, "No kernel was launched"),
                 leaves=(right + "static int a = (fflush(0), _Exit(0), 1);", "FAILED"),
                 loops=(right + "static int f() { volatile int i; for (;;) i = 1; }\nstatic int a = f();", "FAILED"))
    paths = [cu(text, f"{name}.cu") for name, (text, _) in files.items()]
    done = subprocess.run([sys.executable, "check.py", *paths], cwd=tmp_path, capture_output=True, text=True,
                          check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    said = re.split(r"^.*/(\w+)\.cu: (?=passed$|FAILED$)", done.stdout, flags=re.MULTILINE)
    said = dict(zip(said[1::2], said[2::2], strict=True))
    assert said.keys() == files.keys()
    for name, (_, words) in files.items():
        assert said[name].startswith("passed" if name == "right" else "FAILED") and words in said[name], name
    assert (tmp_path / "trace.png").stat().st_size > 10_000


@needs_emulator
def test_the_report_says_what_is_wrong_first_and_explains_itself(cu):
    """A missing barrier is one finding, seen from whichever side; counts until a fault are said to be such."""
    report = demo.missing_barrier()
    race, = report.findings
    text = str(report)
    assert text.index("What is wrong") < text.index("sum_rows: 1 launch") < text.index("A warp is 32 threads")
    assert "512 bytes of shared memory a block" in text and "ended before" not in text and len(race.places) == 2
    x = np.ones(64, np.float32)
    report = emulator.run(emulator.compile(cu(ADD.replace("if (i < n) ", ""))).add, x, x, x[:8].copy(), 64)
    assert report.kernels[0].cut_short and "It was ended before it was done" in str(report)


@needs_emulator
def test_idle_lanes_are_no_stride(cu):
    x, y = np.ones(64, np.float32), np.ones(64, np.float32)
    report = emulator.run(emulator.compile(cu(ADD.replace("i < n", "i < n && i % 2"))).add, x, x, y, 64)
    assert len(report.advice) == 2
    assert all("only 16 of a warp's 32 threads take part" in sentence for sentence in report.advice)


@needs_emulator
def test_more_threads_than_launch_bounds_promise(cu):
    text = ADD.replace("__global__ void", "__global__ void __launch_bounds__(32, 2)")
    x = np.ones(64, np.float32)
    with pytest.raises(emulator.KernelError, match=r"add_kernel: not launched in kernel\.cu:8: a block of "
                                                   r"\(64, 1, 1\) has 64 threads, and __launch_bounds__ in "
                                                   r"kernel\.cu:2 promises at most 32"):
        emulator.compile(cu(text), checked=False).add(x, x, x.copy(), 64)
    y = np.zeros(64, np.float32)
    emulator.compile(cu(text.replace("(32, 2)", "(\n 2 * (16 + 16))"))).add(x, x, y, 64)
    assert (y == 2).all()


@needs_emulator
def test_without_a_kernel_nothing_is_called_right(cu):
    """Neither a launcher that computes on the CPU, nor another backend, nor another thread was watched."""
    path = cu(ADD.replace("add_kernel<<<(n + 63) / 64, 64, 0, stream>>>(a, b, c, n);", "c[0] = a[0] + b[0];"))
    x, y = np.ones(8, np.float32), np.zeros(8, np.float32)
    kernels, others = emulator.compile(path), emulator.compile(cu(ADD, "other.cu"))
    for work in (lambda: kernels.add(x, x, y, 8), lambda: load("numpy").gelu_forward(x),
                 lambda: in_a_thread(others.add, x, x, y, 8)):
        with emulator.watch() as report:
            work()
        assert not report.kernels and str(report).startswith("No kernel was launched.")
    assert (y == 2).all()


def in_a_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()


def test_a_shared_array_that_no_block_has_is_an_error_of_the_compiler(cu):
    text = ADD.replace("int i =", "__shared__ float s[2500000000ull]; s[0] = 1; int i =")
    with pytest.raises(emulator.CompileError, match=r"kernel\.cu:\d+.*at most 48 KiB"):
        emulator.compile(cu(text))


@pytest.mark.parametrize("call", ["scale(x, n);", "if (n) scale (x, n);", "scale<float>(x, n);", "return scale(x, n);"])
def test_a_kernel_is_launched_and_not_called(call):
    text = """template <class T>
__global__ void __launch_bounds__(64, (1)) scale(T* x, int n);
template __global__ void scale<float>(float* x, int n);
#define SCALE(scale) scale(x, n)
void run(float* x, int n, Other other) {
  scale<float><<<1, n>>>(x, n), other.scale(x, n);
  CALL
}
"""
    for fine in ("Other::scale(x, n);", "auto scale = other; scale(x, n);", "Other scale(x, n);"):
        rewrite(text.replace("CALL", fine), "a.cu")
    with pytest.raises(emulator.CompileError, match="^a.cu:7: scale is a __global__ function and must be launched"):
        rewrite(text.replace("CALL", call), "a.cu")


@needs_emulator
def test_run_is_a_watched_call(cu):
    a, b, c = (np.ones(8, np.float32) for _ in range(3))
    report = emulator.run(emulator.compile(cu(ADD), checked=False).add, a, b, c, 8, warps="shuffled", seed=3)
    assert report.kernels[0].launches == 1 and (c == 2).all()


@needs_emulator
def test_our_own_kernels_can_be_watched():
    x = np.linspace(-1, 1, 1000, dtype=np.float32)
    with emulator.watch() as report:
        y = load("emulated").gelu_forward(x)
    assert [kernel.launches for kernel in report.kernels] == [1] and not report.findings
    assert sum(line.bytes for line in report.lines if line.kind == "write") == y.nbytes
    assert all(line.place.startswith("csrc/cuda/") or "/" not in line.place for line in report.lines)


@needs_emulator
def test_heads_that_lie_backwards_can_be_watched():
    """The first number of such an array lies behind all others, or between them."""
    x = np.random.default_rng(6).normal(size=(1, 2, 9, 8)).astype(np.float32)
    backwards = x[:, ::-1, ::-1]
    with emulator.watch() as report:
        out, lse = load("emulated").attention_forward(backwards, x, backwards)
    assert not report.findings
    for got, expected in zip((out, lse), load("numpy").attention_forward(backwards, x, backwards), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@needs_emulator
def test_bank_conflicts_are_counted(cu):
    text = """__global__ void columns(float* x) {
  __shared__ float tile[32][STRIDE];
  tile[threadIdx.x][0] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = tile[threadIdx.x][0] + 1;
}
extern "C" void run(float* x) { columns<<<1, 32>>>(x); }
"""
    for stride, turns in ((32, 32), (33, 1), (34, 2)):
        kernels = emulator.compile(cu(text.replace("STRIDE", str(stride)), f"stride{stride}.cu"))
        report = emulator.run(kernels.run, np.zeros(32, np.float32))
        shared = [line for line in report.lines if line.space == "shared"]
        assert [line.waste for line in shared] == [turns, turns]
        assert sum("bank" in sentence for sentence in report.advice) == 2 * (turns > 1)


@pytest.mark.parametrize("option", [dict(warps="sideways"), dict(blocks=1), dict(copies="never")])
def test_unknown_orders_are_refused(option):
    with pytest.raises(ValueError, match=f"watch: {next(iter(option))} is"):
        with emulator.watch(**option):
            pass


@needs_emulator
def test_the_trace_says_who_touched_what():
    report = demo.uncoalesced(trace=3)
    read, write, *more = report.trace
    assert len(more) == 1 and read["kernel"] == "transpose" and read["lanes"] == list(range(32))
    assert (read["array"], read["kind"], read["offsets"]) == ("x", "read", [4 * i for i in range(32)])
    assert (write["array"], write["kind"], write["offsets"]) == ("y", "write", [4 * 64 * i for i in range(32)])
    assert write["place"] in report.advice[0] and write["bytes"] == 4
