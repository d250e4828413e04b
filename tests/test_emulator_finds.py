"""The emulator finds what is wrong with a kernel: every mistake of planted_cuda_bugs.cu, in its line, in any order of
threads; and nothing in the same kernels once mended."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from minigpt import emulator
from minigpt.emulator import build
from minigpt.emulator.rewrite import rewrite
from minigpt.ops import available

pytestmark = pytest.mark.skipif(available()["emulated"] is not None, reason=str(available()["emulated"]))

CSRC = Path(__file__).parent.parent / "csrc" / "cuda"
BUGS = Path(__file__).with_name("planted_cuda_bugs.cu")
MARK = re.compile(r"^( *)// ([a-z ]+), mend: (.*)\n(.*)$", re.MULTILINE)


def planted(text):
    """{kernel or launcher: (kind, line)} of all mistakes."""
    functions = [(found.start(), found[1]) for found in re.finditer(r"^(?:__global__|extern \"C\") void (?:run_)?(\w+)",
                                                                    text, re.MULTILINE)]
    return {max(f for f in functions if f[0] < mark.start())[1]: (mark[2], text.count("\n", 0, mark.start()) + 2)
            for mark in MARK.finditer(text)}


TEXT = BUGS.read_text()
PLANTED = planted(TEXT)
ORDERS = {"forward": {}, "reversed": dict(warps="reversed", blocks="reversed", copies="early"),
          "shuffled": dict(warps="shuffled", blocks="shuffled", seed=3)}


@pytest.fixture(scope="module")
def bugs():
    return emulator.compile(BUGS, include=[CSRC])


@pytest.fixture(scope="module")
def mended(tmp_path_factory):
    path = tmp_path_factory.mktemp("mended") / "mended.cu"
    path.write_text(MARK.sub(r"\1\n\1\3", TEXT))
    return emulator.compile(path, include=[CSRC])


def run(library, name, order):
    x, y = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    return emulator.run(getattr(library, f"run_{name}"), y, x, len(x), **ORDERS[order])


def test_every_kind_is_planted():
    assert len(PLANTED) > 35
    assert {kind for kind, _ in PLANTED.values()} == {
        "race", "barrier", "out of bounds", "uninitialised", "warp", "copy", "misaligned", "launch"}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", PLANTED)
def test_the_mistake_is_found_in_its_line(bugs, name, order):
    kind, line = PLANTED[name]
    if kind == "misaligned" and "clang" in build.compiler():
        pytest.skip("clang loads a float4 in four parts, each of which is aligned")
    report = run(bugs, name, order)
    found = [f for f in report.findings if f.kind == kind and any(p.endswith(f"bugs.cu:{line}") for p in f.places)]
    assert found, report
    assert f"bugs.cu:{line}" in found[0].text


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", PLANTED)
def test_mended_nothing_is_found(mended, name, order):
    assert not run(mended, name, order).findings


@pytest.mark.parametrize("name, words", [
    ("forgets_to_ask_for_dynamic_memory", ["gives 0 bytes of dynamic shared memory", "<<<grid, block, bytes>>>"]),
    ("tiles_without_the_second_barrier", ["between these two lines", "put __syncthreads() at the loop's end"]),
    ("reads_too_soon", ["Put __syncthreads() between the two"]),
    ("warp_in_step", ["Put __syncwarp() or __syncthreads() between the two"]),
    ("null_pointer", ["through a null pointer", "given as None"]),
])
def test_the_words_fit_the_mistake(bugs, name, words):
    text = str(run(bugs, name, "forward").findings[0])
    assert all(word in text for word in words), text


DRIVER = """#include <cstdint>
#include <cstdio>
extern "C" {
void emulator_clear();
void emulator_array(const char*, void*, int64_t, int64_t, int);
void* emulator_guarded(void*);
void emulator_copy_back();
int emulator_set(const char*, int64_t);
const char* emulator_report();
%s
}
int main() {
  static float x[256], y[256];
  void (*kernels[])(void*, void*, int, void*) = {%s};
  for (int order = 0; order < 3; order++)
    for (auto kernel : kernels) {
      emulator_clear();
      emulator_set("warp_order", order);
      emulator_set("copies_early", order == 1);
      emulator_set("trace", 10);
      emulator_array("x", x, sizeof x, 4, 0);
      emulator_array("y", y, sizeof y, 4, 1);
      kernel(emulator_guarded(y), emulator_guarded(x), 256, nullptr);
      emulator_copy_back();
      std::puts(emulator_report());
    }
}
"""


def test_the_runtime_is_clean_under_sanitizers(tmp_path):
    """All planted bugs once more, with the runtime itself compiled for the address and the undefined-behaviour
    sanitizers."""
    launchers = [f"run_{name}" for name in PLANTED]
    (tmp_path / "driver.cpp").write_text(DRIVER % ("\n".join(f"void {name}(void*, void*, int, void*);"
                                                             for name in launchers), ", ".join(launchers)))
    (tmp_path / "kernels.cpp").write_text(rewrite(TEXT, str(BUGS)))
    emulator_folder = build.sources() / "emulator"
    sanitized = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fsanitize-undefined-trap-on-error",
                 "-fno-sanitize=vptr", "-g1", "-O1", "-std=c++17"]
    commands = [["-c", "kernels.cpp", *build._flags(True), f"-I{emulator_folder}", f"-I{emulator_folder / 'include'}",
                 f"-I{CSRC}", "-include", "cuda_on_cpu.h"],
                [*sanitized, "-w", "driver.cpp", *map(str, sorted(emulator_folder.glob("*.cpp"))), "kernels.o", "-ldl",
                 "-o", "driver"]]
    for command in commands:
        done = subprocess.run([build.compiler(), *command], cwd=tmp_path, capture_output=True, text=True)
        if re.search("cannot find .*asan", done.stderr):
            pytest.skip("the compiler has no sanitizers")
        assert done.returncode == 0, done.stderr
    no_leaks = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}      # stacks are kept to the end
    done = subprocess.run(["./driver"], cwd=tmp_path, capture_output=True, text=True, env=no_leaks)
    assert done.returncode == 0 and done.stdout.count('"findings"') == 3 * len(PLANTED), done.stderr[:4000]
