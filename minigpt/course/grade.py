"""Grades one submission, or a folder of them: the points of every task, from tests run by pytest in a process of its
own for each submission, while the student's code runs in yet another (see student.py).

A submission is a folder or a .zip, as `minigpt course submit` makes it, or with a folder around it, as others do. Only
its adapters.py and the sources in student/ are looked at; what is missing is taken as it was handed out, unsolved.
"""

import ast
import csv
import functools
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ..files.atomic import atomic_write
from . import builder, release
from .layout import PATH
from .process import PATIENCE

LARGEST, MOST = 2**20, 64                 # bytes of a file, and files; no submission is larger
WRITING = (".md", ".png", ".json")        # what a person reads, where points are given by hand
PACKAGE = Path(__file__).parent.parent


def run_tests(assignment, submission=None, isolation="none", seed="", task=""):
    """Runs an assignment's tests on a submission (default: its own files) -> (results, what stopped the grader or "").
    Results are the dictionaries of plugin.py; a test that could not be run is not among them. `task`: only this one."""
    if assignment.sources:
        builder.compiler(None if isolation == "none" else PATH)               # ImportError where there is none
    with tempfile.TemporaryDirectory(prefix="minigpt-grade-") as scratch:
        path = Path(scratch, "results.json")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "minigpt.course.plugin", "-p", "no:cacheprovider",
                   "--tb=native", "--noconftest", "-c", "/dev/null", "--rootdir", str(assignment.folder),
                   str(assignment.folder / "tests"), f"--course-isolation={isolation}", f"--course-seed={seed}",
                   f"--course-results={path}", f"--course-task={task}"]
        if submission:
            command.append(f"--course-submission={submission}")
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent,
                                  env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                                  timeout=PATIENCE * assignment.total_seconds + 60)
            problem = "" if done.returncode in (0, 1) else (done.stdout + done.stderr)[-2000:]
        except subprocess.TimeoutExpired:
            problem = "the grader itself took too long"
        results = json.loads(path.read_text()) if path.exists() else []
    return results, problem


def grade(assignment, submission, isolation, student="", secret=""):
    """Grades one submission, a folder or a zip -> {student, score, max, tests, writing, seconds, problem}. Never
    raises because of what is in it. `secret` and the student's name decide the numbers of the tests."""
    began = time.monotonic()
    seed = hashlib.sha256(f"{secret}/{student}".encode()).hexdigest()
    with tempfile.TemporaryDirectory(prefix="minigpt-grade-") as folder:
        missing, unreadable = unpack(assignment, Path(submission), Path(folder))
        tests, problem = run_tests(assignment, folder, isolation, seed)
        writing = {path.relative_to(Path(folder, "student")).as_posix(): path.read_bytes()
                   for path in sorted(Path(folder, "student").rglob("*"))
                   if assignment.by_hand and path.suffix in WRITING}
    return dict(student=student, score=sum(t["points"] for t in tests), max=total(assignment), tests=tests,
                writing=writing, seconds=round(time.monotonic() - began, 2),
                problem="; ".join(filter(None, (unreadable, missing and f"not handed in: {', '.join(missing)}",
                                                problem))))


def total(assignment) -> int:
    """The points of all tests."""
    return sum(points(assignment).values())


def points(assignment) -> dict:
    """{task: points}, read from the marks in the source of the tests."""
    found = {task: 0 for task in assignment.tasks}
    for path in sorted((assignment.folder / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.task":
                task = ast.literal_eval(node.args[0])
                if task not in found:
                    raise ValueError(f"{path}: task {task} is not among those of assignment.toml")
                found[task] += next(ast.literal_eval(k.value) for k in node.keywords if k.arg == "points")
    return found


def unpack(assignment, submission, folder):
    """Copies the files that count to `folder` -> (those missing, why the submission cannot be read or "")."""
    problem = ""
    try:
        files = files_of(assignment, submission)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        files, problem = {}, f"the submission cannot be read: {error}"
    handed_out = {name: text.encode() for name, text in release.contents(assignment).items()
                  if assignment.handed_in(name)}
    for name, data in (handed_out | files).items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return sorted(handed_out.keys() - files), problem


def files_of(assignment, submission):
    """{name: bytes} of the files that count, with names relative to the folder of student/. Only these are read: what
    else is there, a .git or a bomb, may be as large as it likes."""
    if submission.is_dir():
        paths = [Path(folder, name) for folder, _, names in os.walk(submission) for name in names]      # no links
        return chosen(assignment, {path.relative_to(submission).as_posix(): path.read_bytes for path in paths
                                   if not path.is_symlink() and path.is_file() and path.stat().st_size <= LARGEST})
    with zipfile.ZipFile(submission) as archive:
        return chosen(assignment, {info.filename.replace("\\", "/"): functools.partial(archive.read, info)
                                   for info in archive.infolist()
                                   if info.file_size <= LARGEST and "__MACOSX" not in info.filename})


def chosen(assignment, found):
    """files_of() of {name: function that reads it}. The folder of student/ is the one nearest to the top. Where there
    is none, the files were handed in one by one, and belong there."""
    paths = {PurePosixPath(name): read for name, read in found.items()}
    if not any("student" in path.parts for path in paths):
        paths = {PurePosixPath("student" * (path.name != "adapters.py"), path.name): read
                 for path, read in paths.items()}
    roots = {folder.parent for path in paths for folder in (path, *path.parents)
             if folder.name in ("adapters.py", "student")}
    root = min(roots, key=lambda path: (len(path.parts), path), default=PurePosixPath("."))
    inside = {path.relative_to(root).as_posix(): read for path, read in paths.items() if path.is_relative_to(root)}
    inside = {name: read for name, read in inside.items() if assignment.handed_in(name)}
    if len(inside) > MOST:
        raise ValueError(f"there are {len(inside)} files in student/, there may be {MOST}")
    return {name: read() for name, read in inside.items()}


def submissions_in(folder):
    """{student: path} of the folders and zips in a folder. ValueError where two have one name."""
    found = {}
    for path in sorted(Path(folder).iterdir()):
        if path.name.startswith((".", "__")) or not (path.is_dir() or path.suffix.lower() == ".zip"):
            continue
        student = path.name if path.is_dir() else path.stem
        if student in found:
            raise ValueError(f"course: {found[student]} and {path} are both of {student}; leave one there")
        found[student] = path
    return found


def grade_folder(assignment, folder, out, isolation, secret, say=print):
    """Grades every folder and zip in `folder`, and writes a table with a line for each to `out`, after each. Reports
    for the students go to <out without .csv>/<student>.md, and what is to be graded by hand to a folder beside it.
    Students who are in the table keep their line: what was interrupted goes on, and what was written in by hand stays.
    """
    if Path(out).suffix != ".csv":
        raise ValueError(f"course: --out is {str(out)!r}, must end in .csv")
    reports = Path(out).with_suffix("")
    submissions = submissions_in(folder)
    submissions = {student: path for student, path in submissions.items() if path.resolve() != reports.resolve()}
    if not submissions:
        raise ValueError(f"course: {folder} holds no submissions (folders, or .zip files)")
    rows = read_csv(assignment, out)
    graded = {row["student"] for row in rows}
    todo = {student: path for student, path in submissions.items() if cell(student) not in graded}
    if len(todo) < len(submissions):
        say(f"{len(submissions) - len(todo)} of {len(submissions)} are in {out} and stay as they are; delete their "
            "lines there to grade them again")
    began = time.monotonic()
    reports.mkdir(parents=True, exist_ok=True)
    for number, (student, path) in enumerate(todo.items(), start=1):
        record = grade(assignment, path, isolation, student, secret)
        with atomic_write(reports / f"{student}.md") as file:
            file.write(report(assignment, record).encode())
        for name, data in record["writing"].items():
            (reports / student / name).parent.mkdir(parents=True, exist_ok=True)
            (reports / student / name).write_bytes(data)
        rows = sorted([*rows, row(assignment, record)], key=lambda row: row["student"])
        write_csv(out, rows)
        left = (time.monotonic() - began) / number * (len(todo) - number)
        say(f"{number}/{len(todo)} {student}: {record['score']} of {record['max']} in "
            f"{record['seconds']} s; {left:.0f} s left")
    return rows


def row(assignment, record):
    """A line of the table."""
    by_task = {f"task {task}": sum(t["points"] for t in record["tests"] if t["task"] == task)
               for task in assignment.tasks}
    lost = [f"{t['task']}: {first_line(t['message'])}" for t in record["tests"] if t["status"] == "failed"]
    by_hand = {f"by hand, of {assignment.by_hand}": ""} if assignment.by_hand else {}
    return {"student": record["student"], "score": record["score"], "max": record["max"], **by_hand, **by_task,
            "seconds": record["seconds"], "problem": first_line(record["problem"]),
            "notes": " | ".join(dict.fromkeys(lost))[:1000]}


def first_line(text):
    return text.strip().splitlines()[0] if text.strip() else ""


def read_csv(assignment, path):
    """The lines of a table that is there already. ValueError where it is another's."""
    if not Path(path).exists():
        return []
    with open(path, encoding="utf-8-sig", newline="") as file:                # as spreadsheets save it
        table = csv.DictReader(file)
        columns = list(row(assignment, dict(student="", score=0, max=0, tests=[], seconds=0, problem="")))
        if table.fieldnames != columns:
            raise ValueError(f"course: {path} is no table of {assignment.id}, or was saved in another form; move it "
                             "away, or name another with --out")
        return list(table)


def write_csv(path, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows({key: cell(x) for key, x in row.items()} for row in rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8-sig"))                       # else spreadsheets misread names


def cell(x):
    """What stands in the table: a spreadsheet opens it without running it, since nothing begins like a formula."""
    return f"'{x}" if str(x)[:1] in ("=", "+", "-", "@", "\t") else x


def table(assignment, tests, width=100) -> str:
    """The points by task, and below it what went wrong, for a terminal."""
    lines, messages = [f"{'task':6}{'points':>9}  what"], {}
    for task, what in assignment.tasks.items():
        of_task = [t for t in tests if t["task"] == task]
        reached, most = sum(t["points"] for t in of_task), sum(t["max"] for t in of_task)
        states = {t["status"] for t in of_task}
        state = "" if states <= {"passed"} else "  <- not written yet" if states == {"todo"} else "  <-"
        lines.append(f"{task:6}{reached:4} /{most:3}  {what}{state}")
        for t in of_task:
            if t["status"] == "failed":
                messages.setdefault(t["message"], []).append(f"task {task}, {t['test']}")
    score, most = sum(t["points"] for t in tests), sum(t["max"] for t in tests)
    lines.append(f"{'':6}{score:4} /{most:3}  points in the tests that were run")
    if assignment.by_hand:
        lines.append(f"{assignment.by_hand:15}  more are given by hand")
    for message, where in messages.items():
        more = f" (and {len(where) - 1} more tests)" if len(where) > 1 else ""
        lines += ["", where[0] + more, *(f"  {line}" for line in message.splitlines())]
    return "\n".join(lines)


def report(assignment, record) -> str:
    """What a student is told."""
    problem = f"\n{record['problem']}\n" if record["problem"] else ""
    return (f"# {assignment.title}: {record['student']}\n\n{record['score']} of {record['max']} points\n{problem}\n"
            f"```\n{table(assignment, record['tests'])}\n```\n")
