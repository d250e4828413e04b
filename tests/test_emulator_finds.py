"""The emulator finds what is wrong with a kernel: every mistake of planted_cuda_bugs.cu, in its line, in any order of
threads; and nothing in the same kernels once mended."""

import re
from pathlib import Path

import numpy as np
import pytest

from minigpt import emulator
from minigpt.emulator import build
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
