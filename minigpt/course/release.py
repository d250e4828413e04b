"""The student's repository, made from the instructor's tree: solutions become stubs, hidden tests stay behind.

In .py, .cpp and .cu files, between two lines of their own,

    # BEGIN SOLUTION 3.1            // BEGIN SOLUTION 3.1
    ...                             ...
    # END SOLUTION                  // END SOLUTION

the solution of task 3.1 is replaced, at the same indentation, by a line that fails and names the task. A region marked
`BEGIN SOLUTION 3.1 NO PROMPT` leaves nothing behind: for helpers, and for the second region of one function.
"""

import ast
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

from .assignment import Assignment

COMMENT = {".py": "#", ".cpp": "//", ".h": "//", ".cu": "//", ".cuh": "//"}
STUB = {
    ".py": 'raise NotImplementedError("task {task} is not written yet")',
    ".cpp": 'throw std::logic_error("task {task} is not written yet");',
    ".h": 'throw std::logic_error("task {task} is not written yet");',
    ".cu": 'TODO("task {task} is not written yet");',
    ".cuh": 'TODO("task {task} is not written yet");',
}
ALWAYS = ("assignment.toml", "README.md", "AGENTS.md", "adapters.py")
CONFTEST = '"""Lets `pytest` run the tests; `minigpt course check` adds up the points."""\n\n' \
           'pytest_plugins = ["minigpt.course.plugin"]\n'


def stubbed(text: str, path) -> str:
    """The text of a source file without its solutions. ValueError, with the line, where markers do not match."""
    suffix = Path(path).suffix
    mark = re.compile(rf"(\s*){COMMENT[suffix]} (BEGIN|END) SOLUTION(?: (\d+\.\d+)( NO PROMPT)?)?\s*")
    kept, opened = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        found = mark.fullmatch(line)
        if found is None and re.search(r"(BEGIN|END) SOLUTION", line):
            raise ValueError(f"{path}:{number}: {line.strip()!r} is no marker; write {COMMENT[suffix]} BEGIN SOLUTION "
                             f"3.1, {COMMENT[suffix]} END SOLUTION")
        if found is None:
            if opened is None:
                kept.append(line)
            continue
        indent, word, task, quiet = found.groups()
        if (word == "BEGIN") == (opened is not None) or (word == "BEGIN") != (task is not None):
            inside = f"inside the one of line {opened}" if opened else "where none is open"
            raise ValueError(f"{path}:{number}: {word} SOLUTION {inside}, or with its task's number misplaced")
        opened = number if word == "BEGIN" else None
        if word == "BEGIN" and not quiet:
            kept.append(indent + STUB[suffix].format(task=task))
    if opened is not None:
        raise ValueError(f"{path}:{opened}: BEGIN SOLUTION without END SOLUTION")
    result = "\n".join(kept) + "\n"
    if suffix == ".py":
        ast.parse(result, str(path))      # what students get must at least be Python
    return result


def release(folder, out) -> Path:
    """Writes the student's repository to out/<id>, and the same as out/<id>.zip. FileExistsError where one is there."""
    assignment = Assignment.load(folder)
    target = Path(out) / assignment.id
    if target.exists():
        raise FileExistsError(17, "is there already; remove it first", str(target))
    Path(out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as made:                        # nothing half-made, if a marker is wrong
        made = Path(made, assignment.id)
        made.mkdir()
        for name, text in contents(assignment).items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(text, encoding="utf-8")
        zipped = pack(made, made.parent / "made.zip", assignment.id)
        os.replace(made, target)
        os.replace(zipped, Path(out) / f"{assignment.id}.zip")
    return target


def contents(assignment) -> dict:
    """{name: text} of all that a student gets."""
    texts = {}
    for name in (*ALWAYS, *assignment.files, *assignment.given):
        text = (assignment.folder / name).read_text(encoding="utf-8")
        texts[name] = stubbed(text, assignment.folder / name) if Path(name).suffix in COMMENT else text
    for path in sorted((assignment.folder / "tests").glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if 'visibility="hidden"' not in text:
            texts[f"tests/{path.name}"] = text
    texts["conftest.py"] = CONFTEST
    return texts


def submission(folder, out) -> Path:
    """The zip that a student hands in: the files of the assignment and nothing else."""
    assignment = Assignment.load(folder)
    out = Path(out or f"{assignment.id}.zip")
    with tempfile.TemporaryDirectory() as made:
        for name in assignment.submission(assignment.folder):
            (Path(made) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(assignment.folder / name, Path(made) / name)
        return pack(Path(made), out)


def pack(folder, path, prefix="") -> Path:
    """Zips a folder, the same bytes every time: files in order, and dated alike."""
    path = Path(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            info = zipfile.ZipInfo(str(Path(prefix) / file.relative_to(folder)), (2020, 1, 1, 0, 0, 0))
            info.external_attr = (0o100755 if os.access(file, os.X_OK) else 0o100644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, file.read_bytes())
    return path
