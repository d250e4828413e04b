"""Calls a student's functions in a process of their own, and survives whatever they do.

    with Student(folder, assignment, isolation) as student:
        student.call("gelu_forward", x=x)         # what it returned; or Failed, Todo, saying why not in words

A process that crashes, hangs or is killed is replaced by a new one for the next call, so that one bad function costs
its own task only. One that cannot even import the submission costs everything, quickly.
"""

import glob
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from . import jail, wire

PACKAGE = Path(__file__).parent.parent
HERE = Path(__file__).parent
DISK = 64 * 2**20                         # bytes of files a submission may write
OUTPUT_SHOWN = 1000                       # characters of what it printed
PATIENCE = 5                              # its seconds are of the processor; the clock may show so many times more


class Failed(AssertionError):
    """The student's function gave no answer that can be compared; says why, for the student."""


class CannotStart(Exception):
    """The jail could not be set up: nobody's fault but the machine's, and no reason to give 0 points in silence."""


class Todo(Failed):
    """It is not written yet."""


class Student:
    def __init__(self, folder, assignment, isolation="none"):
        self.folder, self.assignment, self.isolation = Path(folder).resolve(), assignment, isolation
        self.broken = None                # why the submission cannot be imported, once that is known
        self._process = None
        self._deadline = time.monotonic() + PATIENCE * assignment.total_seconds
        self._scratch = tempfile.TemporaryDirectory(prefix="minigpt-course-")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop()
        self._scratch.cleanup()

    def call(self, name, **arguments):
        """Calls adapters.<name> in the student's process -> what it returned."""
        if self.broken:
            raise self.broken
        if time.monotonic() > self._deadline:
            raise Failed(f"the time for the whole submission, {self.assignment.total_seconds} s, was used up before")
        if self._process is None:
            self._start()
        reply = self._ask(wire.pack((name, arguments)), f"{name}: ")
        if "error" in reply:
            raise (Todo if reply["error"] == "todo" else Failed)(f"{name}: {reply['message']}{self._printed()}")
        if reply["changed"]:
            raise Failed(f"{name}: changed its argument {', '.join(reply['changed'])}, must leave it as it is")
        return reply["result"]

    def _start(self):
        self._output = tempfile.TemporaryFile(dir=self._scratch.name)
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        config = configuration(self.folder, self.assignment, self.isolation, self._scratch.name, (requests, answers))
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(HERE / "jail.py"), json.dumps(config)], stdin=subprocess.PIPE,
            stdout=self._output, stderr=self._output, pass_fds=(requests, answers), cwd=self._scratch.name)
        os.close(requests)
        os.close(answers)
        for fd in (self._requests, self._answers):
            os.set_blocking(fd, False)
        try:
            reply = self._ask(b"", "importing your files: ")
            if "error" in reply:
                raise (Todo if reply["error"] == "todo" else Failed)(
                    f"importing your files: {reply['message']}{self._printed()}")
        except Failed as error:
            self.broken = error
            self._stop()
            raise

    def _stop(self):
        """Ends the process, and all that it started: jail.py does, when its standard input is closed."""
        if self._process is None:
            return None
        self._process.stdin.close()
        try:
            code = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        os.close(self._requests)
        os.close(self._answers)
        self._process = None
        return code

    def _ask(self, request, what):
        """Sends a request and waits for its reply. Failed if none comes."""
        self._began = time.monotonic(), processor_seconds(self._process.pid)
        try:
            while request:
                self._wait(self._requests, writing=True)
                request = request[os.write(self._requests, request):]
            reply = wire.unpack(self._read)
            if not isinstance(reply, dict) or not ("error" in reply or "ready" in reply or "result" in reply):
                raise wire.BadMessage("not one of ours")
            return reply
        except TimeoutError:
            self._stop()
            raise Failed(f"{what}took more than {self.assignment.seconds} s and was stopped (an endless loop?)"
                         f"{self._printed()}") from None
        except (EOFError, BrokenPipeError):
            code = self._stop()
            printed = self._printed()
            if code == jail.FAILED and "jail: " in printed:
                raise CannotStart(f"the student's process could not be started.{printed}") from None
            raise Failed(f"{what}{ending(code)}{printed}") from None
        except wire.BadMessage as error:
            self._stop()
            raise Failed(f"{what}your process sent something that is no answer ({error})") from None

    def _wait(self, fd, writing=False):
        """Until the pipe is ready. TimeoutError where the call has had its time: so that points do not depend on what
        else the machine is doing, its own processor time, and several times as much by the clock."""
        clock, processor = self._began
        limit = self.assignment.seconds
        while not any(select.select([] if writing else [fd], [fd] if writing else [], [], 0.1)):
            now = time.monotonic()
            if now > min(clock + PATIENCE * limit, self._deadline):
                raise TimeoutError
            if processor_seconds(self._process.pid) - processor > limit:
                raise TimeoutError

    def _read(self, n):
        parts = []
        while n:
            self._wait(self._answers)
            if not (part := os.read(self._answers, min(n, 2**20))):
                raise EOFError
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    def _printed(self):
        """What it wrote to the terminal, to be shown with what went wrong."""
        self._output.seek(0)
        text = self._output.read(4 * OUTPUT_SHOWN).decode(errors="replace")
        return f"\nIt printed:\n{text[:OUTPUT_SHOWN]}" if text.strip() else ""


def processor_seconds(pid):
    """What the children of a process, and those that have ended, have used. 0 where there is no /proc to tell."""
    used, ticks = 0, os.sysconf("SC_CLK_TCK")
    try:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            used += sum(map(int, fields[11:15])) / ticks                      # utime, stime, cutime, cstime
    except OSError:
        pass
    return used


def ending(code):
    """How a process ended, for whoever wrote what it ran."""
    meanings = {139: "crashed: it touched memory that is not its own", 134: "was aborted", 136: "divided by zero",
                137: "was killed: it used too much memory, or too many processes", 152: "used too much time",
                153: "wrote too much to files"}
    return f"your process {meanings.get(code, f'ended by itself, with exit code {code}')}"


def configuration(folder, assignment, isolation, scratch, pass_fds):
    """What jail.py is told: see its enter() and limit()."""
    python = os.path.realpath(sys.executable)
    packages = {name: str(Path(importlib.util.find_spec("numpy").origin).parent.parent / name)
                for name in ("numpy", "numpy.libs")}
    packages = {name: path for name, path in packages.items() if os.path.isdir(path)}
    root = f"{scratch}/root"
    os.makedirs(root, exist_ok=True)
    files = {}                            # {name: path}: theirs, and what they are given
    if folder:
        files = {name: folder / name for name in assignment.submission(folder)}
        files |= {name: assignment.folder / name for name in assignment.given}
    laid_out = _laid_out(files, packages, Path(scratch))
    paths, placed = [laid_out["worker/worker.py"], laid_out["submission"], laid_out["packages"]], {}
    if isolation == "namespaces":
        placed = {f"/{name}": laid_out[name] for name in ("worker", "submission")}
        placed |= {f"/packages/{name}": path for name, path in packages.items()}
        paths = ["/worker/worker.py", "/submission", "/packages"]
    hidden = [str(PACKAGE), sysconfig.get_path("purelib", vars={"base": sys.base_prefix}),
              *glob.glob("/usr/lib/python3*/dist-packages"), *glob.glob("/usr/local/lib/python3*/*-packages")]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8",
                   "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    return dict(isolation=isolation, root=root, visible=[sys.base_prefix], placed=placed, hidden=hidden,
                uid=40000 + os.getpid() % 20000, disk=DISK, memory=assignment.memory_mb * 2**20,
                processes=assignment.processes, seconds=assignment.total_seconds, pass_fds=pass_fds,
                environment=environment, command=[python, "-I", "-S", *paths, *map(str, pass_fds)])


def _laid_out(files, packages, scratch):
    """Copies and links of all that the process needs, for everybody to read -> {name: path}."""
    paths = {name: scratch / name for name in ("worker", "packages", "submission", "worker/worker.py")}
    if not paths["worker"].exists():
        for name in ("worker", "packages", "submission"):
            paths[name].mkdir()
        for name in ("worker.py", "wire.py"):
            shutil.copyfile(HERE / name, scratch / "worker" / name)
        for name, path in packages.items():
            (paths["packages"] / name).symlink_to(path)
        for name, path in files.items():
            (paths["submission"] / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, paths["submission"] / name)
        for path in (scratch, *scratch.iterdir(), *paths["worker"].iterdir(), *paths["submission"].rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    return {name: str(path) for name, path in paths.items()}


def isolation() -> str:
    """The best that this machine offers to keep submissions from all else. ImportError where there is nothing."""
    with tempfile.TemporaryDirectory(prefix="minigpt-course-") as scratch:
        for kind in ("namespaces", "user"):
            if kind == "user" and (os.getuid() != 0 or _readable_by_all(PACKAGE)):
                continue
            config = configuration(None, _Probe, kind, scratch, ())
            config["command"] = [*config["command"][:3], "-c", "pass"]
            with subprocess.Popen([sys.executable, "-I", "-S", str(HERE / "jail.py"), json.dumps(config)],
                                  stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as probe:
                if probe.wait() == 0:
                    return kind
    raise ImportError("course: submissions cannot be kept apart on this machine, where they could read the answers and "
                      "delete your files. Grade in a container as root, or on a Linux that allows user namespaces")


class _Probe:
    memory_mb, processes, total_seconds = 512, 16, 5


def _readable_by_all(path):
    """Whether a user who owns nothing can come to the reference."""
    return all(p.stat().st_mode & 0o001 for p in (path, *path.parents))
