"""Gradescope: a zip with setup.sh and run_autograder, which writes /autograder/results/results.json
(https://gradescope-autograders.readthedocs.io). Made for the smallest container, 768 MB and half a processor.

The results are there, valid and with 0 points, before a student's file is touched, and are replaced in one step. The
container is root's: the submission runs as a user who cannot read /autograder/source, where tests and answers are.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from ..files.atomic import atomic_write
from . import bundle, grade, release, student
from .assignment import Assignment

SETUP = f"""#!/usr/bin/env bash
# Runs once, when the container is built.
set -euo pipefail
apt-get update -y
apt-get install -y python3 python3-pip
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install {bundle.REQUIREMENTS}
"""
COMPILER = "apt-get install -y g++\n"
EMULATOR = """cd "$(dirname "$0")"            # its runtime is compiled now, and not again for every submission
python3 -c "from minigpt.emulator import build; build.runtime()"
"""
RUN = """#!/usr/bin/env bash
# Runs for every submission. What follows the first line can only make the results better.
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$here/results"
echo '{"score": 0, "output": "The autograder did not start, tell your instructor"}' > "$here/results/results.json"
chmod -R go-rwx "$here/source"
cd "$here/source"
PYTHONPATH="$here/source" python3 -m minigpt.course.gradescope "$here"
exit 0
"""


def autograder(assignment, out) -> Path:
    """Writes <out>/<id>_gradescope.zip."""
    Path(out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bundle.write(assignment, Path(folder))
        kinds = {Path(name).suffix for name in assignment.sources}
        setup = SETUP + COMPILER * bool(kinds) + EMULATOR * (".cu" in kinds)
        for name, text in (("setup.sh", setup), ("run_autograder", RUN)):
            (Path(folder) / name).write_text(text)
            (Path(folder) / name).chmod(0o755)
        return release.pack(Path(folder), Path(out) / f"{assignment.id}_gradescope.zip")


def results(assignment, tests, problem, seconds):
    """The dictionary of results.json."""
    visibility = {"visible": "visible", "hidden": "after_published"}
    by_hand = f"{assignment.by_hand} more points are given by hand." if assignment.by_hand else ""
    return {
        "output": clean("\n".join(filter(None, (problem, by_hand)))),
        "execution_time": round(seconds),
        "stdout_visibility": "hidden",
        "tests": [{
            "name": clean(entry["name"]), "number": entry["task"], "score": entry["points"], "max_score": entry["max"],
            "status": "passed" if entry["status"] == "passed" else "failed", "output": clean(entry["message"]),
            "output_format": "text", "visibility": visibility[entry["visibility"]],
        } for entry in bundle.lines(assignment, tests, problem)],
    }


def clean(text):
    """Text that every reader of JSON accepts: no halves of characters, no control characters."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def run(root):
    """Grades <root>/submission into <root>/results/results.json. Never raises."""
    path = Path(root, "results", "results.json")

    def write(values):
        with atomic_write(path) as file:
            file.write(json.dumps(values, allow_nan=False).encode())

    try:
        assignment = Assignment.load(bundle.own_folder() / "assignment")
        write(results(assignment, [], "The autograder was stopped before it had finished.", 0))
        record = grade.grade(assignment, Path(root, "submission"), student.isolation(), who(root))
        write(results(assignment, record["tests"], record["problem"], record["seconds"]))
    except Exception as error:            # whatever it is, Gradescope must get its file
        write({"score": 0, "output": f"The autograder failed, please tell your instructor: {clean(str(error))}"})


def who(root):
    """The students' numbers, which make the numbers of the tests theirs."""
    try:
        users = json.loads(Path(root, "submission_metadata.json").read_text())["users"]
        return "/".join(sorted(str(user["id"]) for user in users))
    except (OSError, ValueError, KeyError, TypeError):
        return ""


if __name__ == "__main__":
    os.umask(0o022)
    run(sys.argv[1])
