"""Submissions in Python that mean harm, and the grader that outlives them: each costs its own tasks, or gains nothing.
Each is a line or two at the top of a solved student/gelu.py, or inside gelu_forward.

They are safe where nothing holds them either: they stop by themselves, and delete only a file made for it.
"""

import sys

import numpy as np
import pytest
from test_course import A1, ROOT, by_task, hostile

from minigpt.course import grade, jail, student, wire
from minigpt.course.assignment import Assignment
from minigpt.course.process import Allowance, Failed, TooSlow

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="students' processes are limited as POSIX does")

AT_IMPORT = {                                         # these cost everything
    "does not compile": ("def f(:\n", "SyntaxError"),
    "exits": ("import sys; sys.exit(0)\n", "SystemExit"),
    "exits at once": ("import os; os._exit(0)\n", "ended by itself, with exit code 0"),
    "asks for the reference": ("import minigpt.ops.numpy_ops\n", "ModuleNotFoundError"),
    "hangs": ("while True: pass\n", "was stopped (an endless loop?)"),
}
IN_A_FUNCTION = {                                     # these cost task 2.1, and nothing else
    "crashes": ("import ctypes; ctypes.string_at(0)", "crashed"),
    "hangs": ("while True: pass", "was stopped (an endless loop?)"),
    "exits": ("import os; os._exit(0)", "ended by itself"),
    "takes all memory": ("x = bytearray(10**10)", "MemoryError"),
    "gives an object that equals everything": ("return type('Yes', (), {'__eq__': lambda *_: True})()", "type Yes"),
    "gives NaN": ("return x * float('nan')", "is nan, expected"),
    "gives float64": ("return x.astype('float64')", "is float64, must be float32"),
    "changes its argument": ("x += 1; return x", "changed its argument x"),
    "recurses": ("return gelu_forward(x)", "RecursionError"),
    "answers in the wrong format": ("import os\n    for fd in range(3, 20):\n        try: os.write(fd, b'x' * 999)\n"
                                    "        except OSError: pass", "2.1"),
}
HARMLESS = {                                          # these cost nothing, and gain nothing
    "prints": "for _ in range(100000): print('score: 100')",
    "tampers with NumPy and pytest": "import numpy; numpy.array_equal = lambda *_, **__: True; import sys; "
                                     "sys.modules['pytest'] = None; numpy.float32 = None",
}
BOMB = """
    import os, time
    end = time.time() + 3
    for _ in range(200):                  # a bomb that ends by itself
        try:
            if os.fork() == 0:
                os.setsid()
                while time.time() < end: pass
                os._exit(0)
        except OSError:
            raise RuntimeError("no more processes")
"""


@pytest.mark.parametrize("what", AT_IMPORT)
def test_a_file_that_cannot_be_imported_costs_all(what, impatient, isolation, tmp_path):
    code, said = AT_IMPORT[what]
    tests, problem = grade.run_tests(impatient, hostile(tmp_path / "of", at_import=code), isolation)
    assert not problem and sum(t["max"] for t in tests) == 100
    assert all(t["points"] == 0 and said in t["message"] for t in tests), tests


def test_a_jail_that_cannot_be_built_is_no_grade(impatient, isolation, tmp_path):
    """It is reported as the machine's problem. (Here a submission pretends; it gains nothing.)"""
    code = f"import os; print('jail: no', flush=True); os._exit({jail.FAILED})\n"
    tests, problem = grade.run_tests(impatient, hostile(tmp_path / "of", at_import=code), isolation)
    assert tests == [] and "could not be started" in problem


@pytest.mark.parametrize("what", IN_A_FUNCTION)
def test_a_bad_function_costs_its_task_alone(what, impatient, isolation, tmp_path):
    code, said = IN_A_FUNCTION[what]
    submission = hostile(tmp_path / "of", in_function=code)
    tests, problem = grade.run_tests(impatient, submission, isolation, task="2.")
    points = by_task(tests)
    assert not problem and points["2.1"] == (0, 3) and points["2.2"][0] == points["2.2"][1]
    assert all(said in t["task"] + t["message"] for t in tests if t["task"] == "2.1"), tests


@pytest.mark.parametrize("what", HARMLESS)
def test_mischief_that_changes_nothing(what, impatient, isolation, tmp_path):
    submission = hostile(tmp_path / "of", in_function=HARMLESS[what])
    tests, _ = grade.run_tests(impatient, submission, isolation, task="2.")
    assert all(t["status"] == "passed" for t in tests), tests
    wrong = submission / "student" / "gelu.py"
    wrong.write_text(wrong.read_text().replace("0.5 * x", "0.6 * x"))
    tests, _ = grade.run_tests(impatient, submission, isolation, task="2.")
    assert all(t["status"] == "failed" for t in tests), tests


def test_a_fork_bomb_ends_with_its_call(impatient, isolation, tmp_path):
    tests, problem = grade.run_tests(impatient, hostile(tmp_path / "of", in_function=BOMB), isolation, task="2.")
    points = by_task(tests)
    assert not problem and points["2.1"] == (0, 3) and points["2.2"] == (6, 6)
    assert all("no more processes" in t["message"] or "was stopped" in t["message"]
               for t in tests if t["task"] == "2.1"), tests


WAITS = """
    import os, time
    for _ in range(2):                    # busy children of a parent that sleeps
        if os.fork() == 0:
            while True: pass
    time.sleep(99)
"""


def test_time_is_that_of_all_processes_and_ends_at_the_second_stop(impatient, isolation, tmp_path):
    allowance, x = Allowance(60), np.ones(3, np.float32)
    with student.Student(hostile(tmp_path / "of", in_function=WAITS), impatient, allowance, isolation) as of:
        for stops in (1, 2):
            with pytest.raises(TooSlow, match="took more than 2 s and was stopped"):
                of.call("gelu_forward", x=x)
            assert allowance.used > 2 * stops         # and not the clock, which would have shown 8
        with pytest.raises(Failed, match="stopped 2 times .* not called any more"):
            of.call("gelu_forward", x=x)
        assert of.call("gelu_backward", dy=x, x=x).shape == x.shape
        allowance.used = 61
        with pytest.raises(Failed, match="the time for the whole submission, 60 s, was used up before"):
            of.call("gelu_backward", dy=x, x=x)


def test_files_are_out_of_reach(impatient, isolation, tmp_path):
    """A submission cannot delete, read the answers, or reach another computer."""
    canary = tmp_path / "canary"
    canary.write_text("alive")
    canary.chmod(0o666)
    targets = [str(canary), str(impatient.folder / "tests" / "test_hidden.py"), str(ROOT / "minigpt/ops/numpy_ops.py")]
    code = f"""
    import os, socket
    for target in {targets}:
        for attempt in (os.remove, lambda name: open(name, "w"), open):
            try: attempt(target)
            except OSError: pass
            else: raise RuntimeError("reached " + target)
    try: socket.create_connection(("127.0.0.1", 22), 0.2)
    except OSError: pass
    """
    if isolation == "user":
        pytest.skip("without namespaces, what everybody may read can be read")
    tests, _ = grade.run_tests(impatient, hostile(tmp_path / "of", in_function=code), isolation, task="2.")
    assert all(t["status"] == "passed" for t in tests), tests
    assert canary.read_text() == "alive"


def test_the_reference_is_nowhere_in_the_jail(impatient, isolation, tmp_path):
    code = """
    import os
    for folder, _, names in os.walk("/"):
        if folder.startswith(("/proc", "/sys")): continue
        if "numpy_ops.py" in names or "test_hidden.py" in names or "torch" in folder.split("/"):
            raise RuntimeError("found in " + folder)
    """
    if isolation == "user":
        pytest.skip("without namespaces, what everybody may read can be read")
    tests, _ = grade.run_tests(impatient, hostile(tmp_path / "of", in_function=code), isolation, task="2.1")
    assert all(t["status"] == "passed" for t in tests), tests


def test_messages_are_numbers_and_arrays_only():
    def read_from(data):
        parts = [data]

        def read(n):
            part, parts[0] = parts[0][:n], parts[0][n:]
            return part
        return read

    value = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": (1, None, [2.5, "z", True]), "nan": float("nan")}
    back = wire.unpack(read_from(wire.pack(value)))
    assert back["x"].tolist() == value["x"].tolist() and back["x"].dtype == np.float32 and back["y"] == value["y"]
    for bad in (object(), np.array([object()]), lambda: 0, {1: 2}):
        with pytest.raises(TypeError, match="cannot be handed over"):
            wire.pack(bad)
    deep = b"[" * 100_000
    for head in (b"{", deep, b'{"array": "object", "shape": [1]}', b'{"array": "int8", "shape": [-1]}',
                 b'{"array": "int8", "shape": [99999999999]}', b'{"other": 1}', b"\xff"):
        with pytest.raises(wire.BadMessage):
            wire.unpack(read_from(len(head).to_bytes(8, "little") + head))
    with pytest.raises(wire.BadMessage, match="a message of"):
        wire.unpack(read_from(b"\xff" * 8))


def test_the_limits_are_what_the_jail_says(tmp_path, isolation):
    """The numbers of the assignment arrive in the process, and root is not who runs it."""
    code = """
    import os, resource
    limits = [resource.getrlimit(getattr(resource, "RLIMIT_" + n))[0] for n in ("AS", "NPROC", "CORE")]
    raise RuntimeError(f"{limits} {os.getuid() == 0}")
    """
    tests, _ = grade.run_tests(Assignment.load(A1), hostile(tmp_path / "of", in_function=code), isolation, task="2.1")
    assert f"[{512 * 2**20}, 16, 0] False" in tests[0]["message"]
