"""The kernels under the address, undefined-behaviour and thread sanitizers (see sanitize.cpp)."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
SANITIZERS = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}


def build(sanitizer, isa):
    """The driver and all kernels, without OpenMP, whose own synchronisation the thread sanitizer cannot see: the
    threads are those of parallel.cpp. Objects are kept in build/, and made again when a source or header is newer."""
    folder = ROOT / "build" / "sanitizers" / f"{sanitizer}-{isa}"
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++17", "-O1", "-g1", "-pthread", "-w", SANITIZERS[sanitizer], "-fno-sanitize-recover=all",
             *([f"-march={isa}"] if isa != "base" else []), f"-I{ROOT / 'csrc' / 'cpp'}"]
    sources = [ROOT / "tests" / "sanitize.cpp", *sorted((ROOT / "csrc" / "cpp").rglob("*.cpp"))]
    newest_header = max(path.stat().st_mtime for path in (ROOT / "csrc" / "cpp").rglob("*.h"))

    def compile_one(source):
        target = folder / ("-".join(source.relative_to(ROOT).parts) + ".o")
        if not target.exists() or target.stat().st_mtime < max(newest_header, source.stat().st_mtime):
            subprocess.run([COMPILER, *flags, "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    subprocess.run([COMPILER, *flags, *objects, "-o", folder / "sanitize"], check=True)
    return folder / "sanitize"


@pytest.fixture(scope="session", params=SANITIZERS)
def sanitizer(request, tmp_path_factory):
    if not COMPILER:
        pytest.skip("no C++ compiler")
    source = tmp_path_factory.mktemp("sanitizer") / "empty.cpp"
    source.write_text("int main() {}")
    if subprocess.run([COMPILER, SANITIZERS[request.param], source, "-o", source.with_suffix("")],
                      capture_output=True).returncode:
        pytest.skip(f"{COMPILER} has no {request.param} sanitizer")
    return request.param


def run(driver, what):
    return subprocess.run([driver, what], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_kernels_are_clean(sanitizer):
    result = run(build(sanitizer, "base"), "small")
    assert result.returncode == 0 and "all kernels ran" in result.stdout, result.stdout[:4000]


def test_sanitizer_is_awake(sanitizer):
    mistake, report = {"address": ("overrun", "heap-buffer-overflow"), "thread": ("race", "data race")}[sanitizer]
    result = run(build(sanitizer, "base"), mistake)
    assert result.returncode != 0 and report in result.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("isa", ["base", "x86-64-v3", "x86-64-v4"])
def test_kernels_are_clean_on_many_shapes(sanitizer, isa):
    if isa != "base":
        cpp = pytest.importorskip("minigpt._cpp_base")
        if {"x86-64-v3": "avx2", "x86-64-v4": "avx512"}[isa] not in cpp.cpu_isas():
            pytest.skip(f"this CPU does not run {isa}")
    result = run(build(sanitizer, isa), "full")
    assert result.returncode == 0 and "all kernels ran" in result.stdout, result.stdout[:4000]
