"""The pytest plugin of the assignments: tests say their task and points, and this adds them up.

    @pytest.mark.task("3.1", points=3, look="the variance: take it in a second pass")
    def test_far_from_zero(adapters, rng):
        agrees(adapters, "layernorm_forward", x=..., ...)

`adapters` calls the student's functions, in a process of their own (see student.py); with --debug-here in this one, so
that breakpoint() works. `rng` is seeded by the test's name and by --course-seed, so that every student gets numbers of
their own, and the same again when graded again. A mark may say visibility="hidden": such tests stay with the grader.
--course-results FILE writes what was reached so far, after every test.
"""

import hashlib
import importlib
import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest

from ..files.atomic import atomic_write
from . import builder, native
from .assignment import Assignment
from .process import Allowance, CannotStart, Failed, NotCompiled, Todo
from .student import Student

MESSAGE = 4000                            # characters of a message that are kept


def pytest_addoption(parser):
    group = parser.getgroup("minigpt course")
    group.addoption("--course-submission", help="the folder with the student's files; default: the assignment's own")
    group.addoption("--course-isolation", default="none", help="how it is kept apart, see minigpt/course/jail.py")
    group.addoption("--course-seed", default="", help="changes the numbers that the tests are made of")
    group.addoption("--course-results", help="a file to write the results to")
    group.addoption("--course-task", default="", help="only this task, as 3.1, or all that begin like this, as 3.")
    group.addoption("--debug-here", action="store_true", help="run the student's functions in this process")


def pytest_configure(config):
    config.addinivalue_line("markers", "task(number, points, look, visibility): a graded test")
    config.addinivalue_line("markers", "timeout: seconds, where pytest-timeout is installed")
    config.course = Course(config)


def pytest_unconfigure(config):
    config.course.close()


class Course:
    """What one run of the tests knows: the assignment, the student's process, the results."""

    def __init__(self, config):
        self.config, self.students, self.results, self.allowance = config, {}, [], None
        self._scratch = tempfile.TemporaryDirectory(prefix="minigpt-course-")
        self.scratch = self._scratch.name

    def student(self, folder, sanitized=False):
        if sanitized not in self.students:
            assignment = Assignment.load(folder)
            submission = self.config.getoption("--course-submission") or folder
            self.allowance = self.allowance or Allowance(assignment.total_seconds)
            self.students[sanitized] = Student(submission, assignment, self.allowance,
                                               self.config.getoption("--course-isolation"), sanitized)
        return self.students[sanitized]

    def close(self):
        for student in self.students.values():
            student.close()
        self._scratch.cleanup()

    def keep(self):
        if path := self.config.getoption("--course-results"):
            with atomic_write(path) as file:
                file.write(json.dumps(self.results, indent=1).encode())


class Adapters(types.SimpleNamespace):
    """adapters.py of the submission, wherever it runs: every attribute is a function to be called with keywords."""

    def __getattr__(self, name):
        def call(**arguments):
            try:
                return self.student.call(name, **arguments)
            except CannotStart as error:
                pytest.exit(str(error), returncode=3)                         # the grader says so, and grades nothing
        return call

    @property
    def seen(self):
        """What the emulator counted in the latest call, if that was of CUDA kernels."""
        return self.student.seen


@pytest.fixture
def adapters(request):
    folder = Path(request.path).parent.parent
    if request.config.getoption("--debug-here"):
        return adapters_here(str(request.config.getoption("--course-submission") or folder),
                             request.config.course.scratch)
    return Adapters(student=request.config.course.student(folder))


@pytest.fixture
def sanitized(request):
    """The same functions, those in C++ built with the sanitizers: what they touch that is not theirs ends the call."""
    if request.config.getoption("--debug-here"):
        pytest.skip("the sanitizers need a process of their own")
    try:
        student = request.config.course.student(Path(request.path).parent.parent, sanitized=True)
    except ImportError as error:
        raise Failed(str(error)) from None
    yield Adapters(student=student)
    student.rest()                        # its memory is needed for others


def adapters_here(folder, scratch):
    """adapters.py, imported into this process; libraries are compiled in it too."""
    def find(source):
        library = Path(scratch, source.replace("/", "_") + ".so")
        library.write_bytes(builder.build(folder, source, sanitized=False).tobytes())
        return str(library)

    sys.modules["native"], native.folder, native.find = native, folder, find
    sys.path.insert(0, folder)
    module = importlib.import_module("adapters")
    module.__getattr__ = lambda name: getattr(native, name)                   # seen
    return module


@pytest.fixture
def rng(request):
    text = f"{request.config.getoption('--course-seed')}/{request.node.name}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def pytest_collection_modifyitems(config, items):
    """Tests in the order of their tasks, first those that students have: their words are for the first mistakes. Every
    one has a task and points."""
    for item in items:
        mark = item.get_closest_marker("task")
        if mark is None or len(mark.args) != 1 or not isinstance(mark.kwargs.get("points"), int):
            raise pytest.UsageError(f'{item.nodeid}: needs @pytest.mark.task("1.1", points=2)')
    only = config.getoption("--course-task")
    items[:] = [item for item in items if item.get_closest_marker("task").args[0].startswith(only)]
    items.sort(key=lambda item: (item.get_closest_marker("task").args[0], hidden(item.get_closest_marker("task"))))


def hidden(mark):
    return mark.kwargs.get("visibility") == "hidden"


def printed(item):
    """What the student's function printed when it was last called."""
    adapters = item.funcargs.get("adapters")
    return adapters.student.printed() if isinstance(adapters, Adapters) else ""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """One result per test: the call's, or that of a fixture that failed before it."""
    outcome = yield
    report = outcome.get_result()
    if report.when != "call" and not (report.when == "setup" and report.failed):
        return
    mark = item.get_closest_marker("task")
    status, message = "passed", ""
    if call.excinfo:
        error = call.excinfo.value
        status = "todo" if isinstance(error, (Todo, NotImplementedError)) else "failed"
        message = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        if status == "failed" and "look" in mark.kwargs and not isinstance(error, NotCompiled):
            message += f"\nLook at: {mark.kwargs['look']}"
        if status == "failed" and "It printed:" not in message:
            message += printed(item)
        if isinstance(error, Failed) and not item.config.getoption("--debug-here"):
            report.longrepr = message                                         # in words, not as a traceback of ours
    points = mark.kwargs["points"]
    course = item.config.course
    course.results.append(dict(
        task=mark.args[0], test=item.name, points=points if status == "passed" else 0, max=points, status=status,
        visibility=mark.kwargs.get("visibility", "visible"), message=message[:MESSAGE],
        seconds=round(call.duration, 3)))
    course.keep()
