"""Runs a tutorial's source as plain Python, and does its exercises: python rehearse.py SOURCE [MISTAKES]

Cell after cell, as a learner would. Where an exercise's check comes, it must first say "not written yet"; then, with
each known mistake in the folded solution, "wrong"; with the solution, "right". Then it goes on with what stood in the
exercise. Prints what went against this, and exits with 1; at the end, in JSON, the seconds it took.
"""

import contextlib
import io
import json
import re
import resource
import sys
import time
import warnings
from pathlib import Path

import jupytext

try:
    import tomllib
except ImportError:                       # Python 3.10
    import tomli as tomllib

SOLUTION = re.compile(r"<summary>Solution</summary>\n+```python\n(.*?)```", re.DOTALL)
CHECK = re.compile(r"^check\w*\(", re.MULTILINE)


def rehearse(path, mistakes):
    """-> the problems found, as lines. `mistakes`: [{"exercise", "what", "right", "wrong"}]"""
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent")
    names, problems, position, exercise = {"__name__": "__main__", "__file__": str(path)}, [], 0, 0

    def run(code, line=1):
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), names)

    def said(code):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            run(code)
        return out.getvalue().strip()

    stub = checks = None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            position = text.index(cell.source.splitlines()[0], position)
            if CHECK.search(cell.source):
                exercise, checks = exercise + 1, cell.source
                if not said(checks).startswith("not written yet"):
                    problems.append(f"exercise {exercise}: the check says {said(checks)!r} before anything is written")
            else:
                stub = cell.source
                run(cell.source, 1 + text.count("\n", 0, position))
        elif (found := SOLUTION.search(cell.source)) and checks:
            for mistake in (m for m in mistakes if m["exercise"] == exercise):
                if found[1].count(mistake["right"]) != 1:
                    problems.append(f"exercise {exercise}: the solution has {mistake['right']!r} not exactly once")
                    continue
                run(found[1].replace(mistake["right"], mistake["wrong"]))
                if not said(checks).startswith("wrong"):
                    problems.append(f"exercise {exercise}: {mistake['what']} is not noticed: {said(checks)}")
            run(found[1])
            if not said(checks).startswith("right"):
                problems.append(f"exercise {exercise}: the check says of the solution: {said(checks)}")
            run(stub)
            checks = None
    if not exercise:
        problems.append("there is no exercise")
    return problems


if __name__ == "__main__":
    import matplotlib.pyplot as plt

    source = Path(sys.argv[1]).resolve()
    known = tomllib.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))["mistake"] if sys.argv[2:] else []
    sys.path.insert(0, str(source.parent))
    warnings.simplefilter("error", RuntimeWarning)                            # overflows, divisions by 0
    plt.show = lambda: plt.close("all")
    start = time.perf_counter()
    found = rehearse(source, known)
    print("\n".join(found), file=sys.stderr)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu": sum(u.ru_utime + u.ru_stime for u in used)}))
    sys.exit(bool(found))
