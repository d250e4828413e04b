"""Calls a student's functions in a process of their own, and survives whatever they do.

    with Student(folder, assignment, Allowance(120), isolation) as student:
        student.call("gelu_forward", x=x)         # what it returned; or Failed, Todo, saying why not in words

A process that crashes, hangs or is killed is replaced by a new one for the next call, so that one bad function costs
its own task only; a function that had to be stopped twice is called no more. One that cannot even import the submission
costs everything, quickly. A C++ or CUDA source is compiled when it is first needed, in a jail of its own; one that does
not compile costs the tasks that need it.
"""

import collections
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from . import layout, sanitizers, wire
from .process import Failed, NotCompiled, Process, Todo, TooSlow

HERE = Path(__file__).parent
KINDS = {"todo": Todo, "absent": NotCompiled}
CHANCES = 2                               # to be stopped: one input may be hard


class Student:
    def __init__(self, folder, assignment, allowance, isolation="none", sanitized=False):
        """sanitized: C++ is compiled and run with the sanitizers, see sanitizers.py."""
        self.assignment, self.isolation, self._allowance = assignment, isolation, allowance
        self.broken = None                # why the submission cannot be imported, once that is known
        self.seen = None                  # what the emulator counted in the latest call, if that was of CUDA kernels
        self._unbuilt = {}                # why sources could not be compiled
        self._stopped = collections.Counter()                                 # how often functions were
        self._sanitizers = sanitizers.environment(assignment.memory_mb) if sanitized else None
        self._process = None
        self._scratch = tempfile.TemporaryDirectory(prefix="minigpt-course-")
        layout.lay_out(assignment, Path(folder).resolve(), Path(self._scratch.name))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.rest()
        self._scratch.cleanup()

    def call(self, name, **arguments):
        """Calls adapters.<name> in the student's process -> what it returned."""
        while "build" in (reply := self._ask(name, arguments)):
            self._build(reply["build"])
        if "error" in reply:
            if self.isolation != "none" and reply["error"] != "todo":
                self.rest()               # what it left behind, in memory above all, shall harm no other task
            raise KINDS.get(reply["error"], Failed)(f"{name}: {reply['message']}{self._process.printed()}")
        if reply["changed"]:
            raise Failed(f"{name}: changed its argument {', '.join(reply['changed'])}, must leave it as it is")
        self.seen = reply.get("seen")
        return reply["result"]

    def printed(self):
        """What the student's process wrote to the terminal in the latest call."""
        return self._process.printed() if self._process else ""

    def rest(self):
        """Ends the process; the next call starts one."""
        if self._process:
            self._process.stop()

    def _ask(self, name, arguments):
        if self.broken:
            raise self.broken
        if self._allowance.spent:
            raise Failed(f"the time for the whole submission, {self._allowance.seconds} s, was used up before")
        if self._stopped[name] == CHANCES:
            raise Failed(f"{name}: was stopped {CHANCES} times (an endless loop?) and is not called any more")
        if self._process is None or not self._process.running:
            self._start()
        try:
            return self._process.ask(wire.pack((name, arguments)), f"{name}: ")
        except TooSlow:
            self._stopped[name] += 1
            raise

    def _start(self):
        self._process = self._new("adapters", self.assignment.seconds, self.assignment.total_seconds, self._sanitizers)
        try:
            reply = self._process.ask(b"", "importing your files: ")
            if "error" in reply:
                raise KINDS.get(reply["error"], Failed)(
                    f"importing your files: {reply['message']}{self._process.printed()}")
        except Failed as error:
            self.broken = error if isinstance(error, Todo) else NotCompiled(str(error))
            self._process.stop()
            raise self.broken from None

    def _new(self, does, seconds, total, environment=None):
        config = layout.configuration(self._scratch.name, self.isolation, self.assignment, does, total, environment)
        return Process(config, f"{self._scratch.name}/tmp", seconds, self._allowance)

    def _build(self, source):
        """Compiles a source; the library appears beside it, where the student's process sees it."""
        if source not in self._unbuilt:
            self._unbuilt[source] = self._built(source)
            if not self._unbuilt[source]:
                return
        raise NotCompiled(self._unbuilt[source] or f"{source} was compiled, and is not there")

    def _built(self, source):
        """Compiles it -> why that could not be done, or ""."""
        if source not in self.assignment.sources:
            return f"adapters.py needs {source!r}, which is no source of this assignment"
        seconds = self.assignment.build_seconds                               # then its programs end, in their words
        builder = self._new("builder", 2 * seconds, seconds)
        try:
            builder.ask(b"", "starting the compiler: ")
            folder = "/submission" if self.isolation == "namespaces" else f"{self._scratch.name}/submission"
            reply = builder.ask(wire.pack(("build", dict(folder=folder, source=source,
                                                         sanitized=self._sanitizers is not None))), "compiling: ")
        except Failed as error:
            return str(error)
        finally:
            builder.stop()
        if "result" not in reply:
            return reply["message"].removeprefix("CompileError: ")
        target = Path(self._scratch.name, "submission", f"{source}.so")
        target.write_bytes(reply["result"].tobytes())
        target.chmod(0o644)
        return ""


def isolation() -> str:
    """The best that this machine offers to keep submissions from all else. ImportError where there is nothing."""
    with tempfile.TemporaryDirectory(prefix="minigpt-course-") as scratch:
        layout.lay_out(_Probe, Path(), Path(scratch))
        for kind in ("namespaces", "user"):
            if kind == "user" and (os.getuid() != 0 or _readable_by_all(layout.PACKAGE)):
                continue
            config = layout.configuration(scratch, kind, _Probe, "adapters", 5) | dict(pass_fds=())
            config["command"] = [*config["command"][:3], "-c", "pass"]
            with subprocess.Popen([sys.executable, "-I", "-S", str(HERE / "jail.py"), json.dumps(config)],
                                  stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as probe:
                if probe.wait() == 0:
                    return kind
    raise ImportError("course: submissions cannot be kept apart on this machine, where they could read the answers and "
                      "delete your files. Grade in a container as root, or on a Linux that allows user namespaces")


class _Probe:
    folder, sources, given, submission = Path(), (), (), staticmethod(lambda folder: ())
    memory_mb, processes = 512, 16


def _readable_by_all(path):
    """Whether a user who owns nothing can come to the reference."""
    return all(p.stat().st_mode & 0o001 for p in (path, *path.parents))
