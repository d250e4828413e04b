"""One process in a jail, asked for one thing after another over two pipes: messages of wire.py there and back.

Used for the student's functions and for the compiler of their sources. Whatever happens in it, ask() comes back: with
the answer, or with Failed, which says in words what became of the process.
"""

import glob
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import jail, sanitizers, wire, worker

HERE = Path(__file__).parent
OUTPUT_READ, OUTPUT_SHOWN = 2**18, 1000   # characters of what it printed
LINES_SHOWN = 20
PATIENCE = 4                              # limits are of the processor; the clock may show so many times as much
THROWN = re.compile(r"^terminate called after throwing an instance of '(.*)'(?:\n +what\(\): +(.*))?", re.MULTILINE)


class Failed(AssertionError):
    """The student's function gave no answer that can be compared; says why, for the student."""


class TooSlow(Failed):
    """It was stopped."""


class NotCompiled(Failed):
    """There is no function to call: its source does not compile, or the files cannot be imported."""


class CannotStart(Exception):
    """The jail could not be set up: nobody's fault but the machine's, and no reason to give 0 points in silence."""


class Todo(Failed):
    """It is not written yet."""


class Allowance:
    """The seconds that a submission has in all, whatever runs for it: of the processor, so that points do not depend on
    what else the machine is doing; and PATIENCE times as many by the clock, for who only waits."""

    def __init__(self, seconds):
        self.seconds, self.deadline, self.used = seconds, time.monotonic() + PATIENCE * seconds, 0

    @property
    def spent(self):
        return self.used > self.seconds or time.monotonic() > self.deadline


class Process:
    """config: as jail.py wants it, but for the pipes. `folder`: what it may write to, where it sees this machine's
    files. seconds: for one question, meant as those of the allowance."""

    def __init__(self, config, folder, seconds, allowance):
        self._seconds, self._allowance, self._used = seconds, allowance, 0
        self._output = tempfile.TemporaryFile()
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        config = config | dict(pass_fds=(requests, answers),
                               command=[*config["command"], str(requests), str(answers)])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(HERE / "jail.py"), json.dumps(config)], stdin=subprocess.PIPE,
            stdout=self._output, stderr=self._output, pass_fds=(requests, answers), cwd=folder)
        os.close(requests)
        os.close(answers)
        for fd in (self._requests, self._answers):
            os.set_blocking(fd, False)

    @property
    def running(self):
        return self._process is not None

    def stop(self):
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

    def ask(self, request, what):
        """Sends a request and waits for its reply, a dictionary. Failed if none comes; then the process has ended."""
        self._until = time.monotonic() + PATIENCE * self._seconds, self._measure() + self._seconds
        self._printed_before = os.fstat(self._output.fileno()).st_size
        try:
            while request:
                self._wait(self._requests, writing=True)
                request = request[os.write(self._requests, request):]
            reply = wire.unpack(self._read)
            if not isinstance(reply, dict) or not reply.keys() & {"error", "ready", "result", "build"}:
                raise wire.BadMessage("not one of ours")
            self._measure()
            return reply
        except TimeoutError:
            self.stop()
            had = f"what was left of {self._allowance.seconds} s" if self._allowance.spent else f"{self._seconds} s"
            raise TooSlow(f"{what}took more than {had} and was stopped (an endless loop?)"
                          f"{self.printed()}") from None
        except (EOFError, BrokenPipeError):
            code = self.stop()
            if code == jail.FAILED and "jail: " in self._output_text():
                raise CannotStart(f"the student's process could not be started.{self.printed()}") from None
            self._say_how_it_ended(code, what)
        except wire.BadMessage as error:
            self.stop()
            raise Failed(f"{what}your process sent something that is no answer ({error})") from None

    def _say_how_it_ended(self, code, what):
        """Failed, in the words of whatever ended it, where it left any."""
        text = self._output_text()
        thrown = THROWN.search(text)
        if thrown and (todo := worker.NOT_WRITTEN.search(thrown[0])):
            raise Todo(what + todo[0])
        if thrown:
            raise Failed(f"{what}threw {': '.join(dict.fromkeys(filter(None, thrown.groups())))}")
        raise Failed(what + (sanitizers.finding(text) or f"{ending(code)}{self.printed()}"))

    def _wait(self, fd, writing=False):
        """Until the pipe is ready. TimeoutError where the question, or the submission, has had its time."""
        clock, processor = self._until
        while not any(select.select([] if writing else [fd], [fd] if writing else [], [], 0.1)):
            if self._measure() > processor or time.monotonic() > clock or self._allowance.spent:
                raise TimeoutError

    def _measure(self):
        """The processor's seconds that the process and all that it started have used; the allowance is told."""
        used = max(self._used, processor_seconds(self._process.pid))         # what ends may take its count with it
        self._allowance.used += used - self._used
        self._used = used
        return used

    def _read(self, n):
        parts = []
        while n:
            self._wait(self._answers)
            if not (part := os.read(self._answers, min(n, 2**20))):
                raise EOFError
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    def _output_text(self):
        return os.pread(self._output.fileno(), OUTPUT_READ, self._printed_before).decode(errors="replace")

    def printed(self):
        """What it wrote to the terminal since it was asked, to be shown with what went wrong."""
        text = self._output_text()
        lines = text[:OUTPUT_SHOWN].splitlines()[:LINES_SHOWN]
        more = "\n..." * (len("\n".join(lines)) < len(text.rstrip()))
        return "\nIt printed:\n" + "\n".join(lines) + more if text.strip() else ""


def processor_seconds(pid):
    """What all that a process started, and what that started, has used. 0 where there is no /proc to tell."""
    used = 0
    for path in glob.iglob(f"/proc/{pid}/task/*/children"):
        try:
            for child in Path(path).read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                used += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")      # utime, stime, cutime, cstime
                used += processor_seconds(child)
        except OSError:
            pass                          # it has ended
    return used


def ending(code):
    """How a process ended, for whoever wrote what it ran."""
    meanings = {139: "crashed: it touched memory that is not its own", 134: "was aborted", 136: "divided by zero",
                137: "was killed: it used too much memory, or too many processes", 152: "used too much time",
                153: "wrote too much to files"}
    return f"your process {meanings.get(code, f'ended by itself, with exit code {code}')}"
