"""What travels to a grading service: the package, and the assignment with all its tests but no solutions."""

import shutil
from pathlib import Path

from ..emulator import build
from . import grade, release
from .layout import PACKAGE

REQUIREMENTS = "numpy pytest"


def write(assignment, target):
    """Fills the folder `target` with minigpt/ (its Python files) and assignment/."""
    for path in sorted(PACKAGE.rglob("*.py")):
        copy = target / "minigpt" / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    if any(name.endswith(".cu") for name in assignment.sources):
        shutil.copytree(build.sources() / "emulator", target / "csrc" / "emulator")
    tests = {f"tests/{path.name}": path.read_text(encoding="utf-8")
             for path in sorted((assignment.folder / "tests").glob("*.py"))}
    for name, text in (release.contents(assignment) | tests).items():
        copy = target / "assignment" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text, encoding="utf-8")


def lines(assignment, tests, problem):
    """One entry for every test, and for what was not run one that says so, so that the points always add up."""
    entries = [dict(t, name=f"{t['task']} {assignment.tasks[t['task']]}: {t['test']}") for t in tests]
    for task, most in grade.points(assignment).items():
        missing = most - sum(t["max"] for t in tests if t["task"] == task)
        if missing:
            entries.append(dict(task=task, name=f"{task} {assignment.tasks[task]}: not run", points=0, max=missing,
                                status="failed", visibility="visible", message=problem or "not reached"))
    return sorted(entries, key=lambda entry: entry["task"])


def own_folder() -> Path:
    """Where the bundle lies that this file belongs to."""
    return PACKAGE.parent
