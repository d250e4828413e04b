"""Classroom 50 (https://github.com/foundation50/classroom50): a folder with autograder.py, which runs in the student's
checkout on GitHub's machines and writes result.json there, in the format classroom50/result/v1.

Exit code 0 says that grading worked, whatever the grade. On those machines an ordinary user may make no namespaces but
may become root, so it does, to keep the submission from the answers.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from ..files.atomic import atomic_write
from . import bundle, grade, student
from .assignment import Assignment

AUTOGRADER = f'''"""Grades the checkout it is started in, and writes result.json there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
packages = here / "packages"
if not packages.exists():
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", packages,
                    *"{bundle.REQUIREMENTS}".split()], check=True)
command = [sys.executable, "-m", "minigpt.course.classroom50"]
environment = os.environ | {{"PYTHONPATH": f"{{here}}{{os.pathsep}}{{packages}}"}}
if os.getuid() and shutil.which("sudo") and not subprocess.run(["sudo", "-n", "true"]).returncode:
    command = ["sudo", "-n", "env", *(f"{{name}}={{value}}" for name, value in environment.items()), *command]
sys.exit(subprocess.run(command, env=environment).returncode)
'''
FIELDS = {"classroom": "CLASSROOM", "assignment": "ASSIGNMENT", "submission": "SUBMISSION_TAG", "commit": "COMMIT_URL",
          "release": "RELEASE_URL", "review": "REVIEW_URL"}


def autograder(assignment, out) -> Path:
    """Writes the folder <out>/<id>_classroom50. FileExistsError where it is there."""
    target = Path(out) / f"{assignment.id}_classroom50"
    if target.exists():
        raise FileExistsError(17, "is there already; remove it first", str(target))
    Path(out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        made = Path(folder, "made")
        bundle.write(assignment, made)
        (made / "autograder.py").write_text(AUTOGRADER, encoding="utf-8")
        os.replace(made, target)
    return target


def result(assignment, tests, problem, environment):
    """The dictionary of result.json. What the service must tell comes from its variables; the review is the commit
    where it names none."""
    fields = {name: environment.get(variable) or environment.get("COMMIT_URL") or "" if name == "review" else
              environment[variable] for name, variable in FIELDS.items()}
    entries = [{"test-name": entry["name"], "passed": entry["status"] == "passed", "score": entry["points"],
                "max-score": entry["max"]} for entry in bundle.lines(assignment, tests, problem)]
    return {"schema": "classroom50/result/v1", **fields,
            "datetime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "score": sum(e["score"] for e in entries), "max-score": sum(e["max-score"] for e in entries),
            "tests": entries}


def main():
    assignment = Assignment.load(bundle.own_folder() / "assignment")
    missing = [v for v in FIELDS.values() if v != "REVIEW_URL" and v not in os.environ]
    if missing:
        sys.exit(f"course: the variables {', '.join(missing)} are not set; Classroom 50 sets them")
    record = grade.grade(assignment, Path.cwd(), student.isolation(), os.environ["COMMIT_URL"].split("/commit/")[0])
    with atomic_write("result.json") as file:
        file.write(json.dumps(result(assignment, record["tests"], record["problem"], os.environ), indent=1).encode())
    print(grade.report(assignment, record))


if __name__ == "__main__":
    main()
