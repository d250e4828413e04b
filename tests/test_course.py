"""The course is tested as it will be used: solutions earn all points, what students get contains none of them and earns
nothing, every known mistake costs points on its own task and on no other, and a folder of submissions becomes a table.

Submissions that mean harm are in test_course_hostile.py, test_course_native.py and test_course_cuda.py.
"""

import ast
import csv
import itertools
import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minigpt import cli
from minigpt.course import bundle, classroom50, grade, gradescope, release
from minigpt.course.assignment import Assignment, tomllib
from minigpt.course.worker import NOT_WRITTEN

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.parent for path in (ROOT / "tutorials" / "assignments").glob("*/assignment.toml"))
each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
A1, A4 = (ROOT / "tutorials" / "assignments" / name for name in ("a1_ops", "a4_train"))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="students' processes are limited as POSIX does")


def by_task(tests):
    return {task: (sum(t["points"] for t in tests if t["task"] == task),
                   sum(t["max"] for t in tests if t["task"] == task)) for task in {t["task"] for t in tests}}


def copy_of(folder, target):
    """An assignment's solutions, as a submission."""
    shutil.copytree(folder / "student", target / "student", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(folder / "adapters.py", target)
    return target


def hostile(target, at_import="", in_function=""):
    copy_of(A1, target)
    path = target / "student" / "gelu.py"
    text = path.read_text().replace('    # BEGIN SOLUTION 2.1\n', f"    {in_function}\n")
    path.write_text(at_import + text)
    return target


# ---------------------------------------------------------------------------------------------------------------
# the assignments


@each
def test_solutions_earn_all_points(folder):
    assignment = Assignment.load(folder)
    tests, problem = grade.run_tests(assignment)
    assert not problem
    assert all(t["status"] == "passed" for t in tests), grade.table(assignment, tests)
    assert sum(t["points"] for t in tests) == grade.total(assignment) == 100 - assignment.by_hand
    assert set(by_task(tests)) == set(assignment.tasks)
    for task in assignment.tasks:                     # every task can be seen, and none can be passed by that alone
        assert {t["visibility"] for t in tests if t["task"] == task} == {"visible", "hidden"}, task


@each
def test_students_get_no_solution_and_no_points(folder, tmp_path):
    released = release.release(folder, tmp_path)
    assignment = Assignment.load(folder)
    for path in released.rglob("*"):
        if path.is_file():
            assert "SOLUTION" not in path.read_text() and 'visibility="hidden"' not in path.read_text(), path
    lines = {line.strip() for name in assignment.files for line in solution_lines(folder / name)}
    handed_out = {line.strip() for path in released.rglob("student/*.*") for line in path.read_text().splitlines()}
    assert lines and not lines & handed_out
    tests, problem = grade.run_tests(assignment, released)
    assert not problem and sum(t["max"] for t in tests) == 100 - assignment.by_hand
    for t in tests:
        assert t["points"] == 0 and t["status"] == "todo" and NOT_WRITTEN.search(t["message"]), t
    assert (released.parent / f"{assignment.id}.zip").exists()


def solution_lines(path):
    """The lines between the markers that say something: a return or a bracket alone may stand elsewhere too."""
    inside = False
    for line in path.read_text().splitlines():
        if "BEGIN SOLUTION" in line or "END SOLUTION" in line:
            inside = "BEGIN" in line
        elif inside and len(line.strip()) > 20:
            yield line


@each
def test_what_students_get_has_the_interface_of_the_solution(folder, tmp_path):
    released = release.release(folder, tmp_path)
    for path in folder.rglob("student/*.py"):
        name = path.relative_to(folder)
        solved, given = interface(path), interface(released / name)
        assert given and given == {f: solved[f] for f in given}, name
        marked = path.read_text()
        helpers = {f for f in solved if f not in given}
        assert all("NO PROMPT" in marked[:marked.index(f"def {f}(")] for f in helpers)


def interface(path):
    """{function: its arguments and docstring}."""
    return {node.name: (ast.unparse(node.args), ast.get_docstring(node))
            for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def wrongs(folder):
    return tomllib.loads((folder / "wrong.toml").read_text())["wrong"]


@each
def test_a_known_mistake_costs_points_on_its_task_alone(folder, tmp_path):
    """One of every task."""
    of_tasks = {}
    for wrong in wrongs(folder):
        of_tasks.setdefault(wrong["task"], wrong)
    assert set(of_tasks) == set(Assignment.load(folder).tasks)
    try_mistakes(folder, tmp_path, list(of_tasks.values()))


@each
@pytest.mark.slow
def test_every_known_mistake_costs_points_on_its_task_alone(folder, tmp_path):
    try_mistakes(folder, tmp_path, wrongs(folder))


def try_mistakes(folder, tmp_path, mistakes):
    """The tests of its chapter are run, two mistakes at a time: the others do not call what is in the file, or belong
    to a chapter that builds on it and falls with it."""
    def run(number, wrong):
        path = copy_of(folder, tmp_path / str(number)) / wrong["file"]
        text = path.read_text()
        assert text.count(wrong["right"]) == 1, wrong
        path.write_text(text.replace(wrong["right"], wrong["wrong"]))
        chapter = wrong["task"].split(".")[0] + "."
        return grade.run_tests(Assignment.load(folder), tmp_path / str(number), task=chapter)

    with ThreadPoolExecutor(2) as pool:
        for wrong, (tests, problem) in zip(mistakes, pool.map(run, itertools.count(), mistakes), strict=True):
            lost = {task for task, (points, most) in by_task(tests).items() if points < most}
            assert not problem and lost == {wrong["task"]}, (wrong, tests)
            for t in tests:
                if t["status"] == "failed":           # in words: which function, and what about it
                    assert "Look at: " in t["message"] and ": " in t["message"].splitlines()[0], t["message"]


@each
def test_the_handout_tells_the_points(folder):
    text = (folder / "README.md").read_text()
    most = {}
    for task, points in grade.points(Assignment.load(folder)).items():
        most.setdefault(task.split(".")[0], []).append((task, str(points)))
    for of_chapter in most.values():
        told = [line.split("|") for line in text.splitlines() if line.startswith("| " + of_chapter[0][0])]
        rows = [(task.strip(), points.strip()) for line in told
                for task, points in zip(line[1].split(","), line[3].split("+"), strict=True)]
        rows += [(line.split("|")[1].strip(), line.split("|")[3].strip()) for line in text.splitlines()
                 for task, _ in of_chapter[1:] if line.startswith(f"| {task} ")]
        assert rows == of_chapter


# ---------------------------------------------------------------------------------------------------------------
# a folder of submissions, and the services


def test_a_folder_becomes_a_table(impatient, isolation, tmp_path, capsys):
    folder = tmp_path / "submissions"
    folder.mkdir()
    copy_of(A1, folder / "=ada")
    with zipfile.ZipFile(folder / "bob.zip", "w") as archive:                 # with a folder around, and with one file
        archive.write(A1 / "adapters.py", "a1_ops-main/adapters.py")
        archive.write(A1 / "student" / "gelu.py", "a1_ops-main/student/gelu.py")
        archive.writestr("a1_ops-main/../../student/escaped.py", "")
    (folder / "eve.zip").write_bytes(b"PK\x03\x04 no zip at all")
    grade.grade_folder(impatient, folder, tmp_path / "grades.csv", isolation, "secret")
    with open(tmp_path / "grades.csv", encoding="utf-8-sig", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert {name: row["score"] for name, row in rows.items()} == {"'=ada": "100", "bob": "9", "eve": "0"}
    assert rows["bob"]["task 2.1"] == "3" and "student/linear.py" in rows["bob"]["problem"]
    assert "cannot be read" in rows["eve"]["problem"]
    assert "100 of 100 points" in (tmp_path / "grades" / "=ada.md").read_text()
    assert not list(tmp_path.rglob("escaped.py"))


def test_a_table_goes_on_where_it_was_left(tmp_path, monkeypatch):
    """What was interrupted, or what came late: nobody in the table is graded again, and what a person added stays."""
    asked, folder, out = [], tmp_path / "submissions", tmp_path / "grades.csv"
    monkeypatch.setattr(grade, "run_tests", lambda *_: asked.append(1) or ([], ""))
    for name in ("j.smith", "j.doe", "=Žofie", ".git", "__MACOSX"):
        (folder / name).mkdir(parents=True)
    grade.grade_folder(Assignment.load(A4), folder, out, "none", "")
    assert len(asked) == 3 and (tmp_path / "grades" / "j.smith.md").exists()
    out.write_text(out.read_text("utf-8").replace("j.smith,0,80,,", "j.smith,0,80,17,"), "utf-8")
    zipfile.ZipFile(folder / "late.ZIP", "w").close()
    rows = grade.grade_folder(Assignment.load(A4), folder, out, "none", "")
    assert len(asked) == 4 and [row["student"] for row in rows] == ["'=Žofie", "j.doe", "j.smith", "late"]
    assert rows[2]["by hand, of 20"] == "17" and "j.smith,0,80,17," in out.read_text("utf-8")
    with pytest.raises(ValueError, match="no table of a1_ops"):
        grade.grade_folder(Assignment.load(A1), folder, out, "none", "")
    (folder / "late").mkdir()
    with pytest.raises(ValueError, match="both of late"):
        grade.grade_folder(Assignment.load(A4), folder, out, "none", "")


def test_what_else_lies_in_a_submission_is_not_read(tmp_path):
    """A git repository, an environment, a macOS zip's shadows: the files that count are found among them."""
    folder = copy_of(A1, tmp_path / "of")
    for i in range(900):
        path = folder / ".git" / f"{i % 9}" / f"{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with zipfile.ZipFile(tmp_path / "of.zip", "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, f"my\\work/{path.relative_to(folder)}")
            archive.writestr(f"__MACOSX/{path.relative_to(folder)}", "")
    expected = {"adapters.py", *Assignment.load(A1).files}
    for submission in (folder, tmp_path / "of.zip"):
        files = grade.files_of(Assignment.load(A1), submission)
        assert set(files) == expected and files["adapters.py"] == (A1 / "adapters.py").read_bytes()
    shutil.rmtree(folder / ".git")
    (folder / "adapters.py").rename(folder / "student" / "adapters.py")
    (folder / "student").rename(folder / "one by one")
    assert set(grade.files_of(Assignment.load(A1), folder)) == expected
    (folder / "one by one").rename(folder / "student")
    for i in range(60):
        (folder / "student" / f"{i}.py").touch()
    with pytest.raises(ValueError, match="66 files in student/, there may be 64"):
        grade.files_of(Assignment.load(A1), folder)


def test_every_student_has_numbers_of_their_own(tmp_path):
    def numbers(seed):
        wrong = copy_of(A1, tmp_path / "of") if not (tmp_path / "of").exists() else tmp_path / "of"
        path = wrong / "student" / "gelu.py"
        path.write_text(path.read_text().replace("0.5 * x", "0.6 * x"))
        tests, _ = grade.run_tests(Assignment.load(A1), wrong, seed=seed, task="2.1")
        return [t["message"] for t in tests]
    assert numbers("a") == numbers("a") != numbers("b")


def simulated(assignment, tmp_path):
    """Gradescope's folders, as they are when run_autograder starts."""
    made, root = gradescope.autograder(assignment, tmp_path), tmp_path / "autograder"
    with zipfile.ZipFile(made) as archive:
        archive.extractall(root / "source")
        assert archive.getinfo("run_autograder").external_attr >> 16 == 0o100755
    text = (root / "source" / "run_autograder").read_text().replace("python3 -m", f"{sys.executable} -m")
    (root / "run_autograder").write_text(text)
    (root / "submission_metadata.json").write_text('{"users": [{"id": 7}]}')
    return root


def results(root, submission):
    shutil.rmtree(root / "submission", ignore_errors=True)
    shutil.copytree(submission, root / "submission")
    subprocess.run(["bash", root / "run_autograder"], check=True, capture_output=True, cwd="/",
                   env={"PATH": "/usr/local/bin:/usr/bin:/bin"})
    return json.loads((root / "results" / "results.json").read_text(), parse_constant=pytest.fail)


def test_gradescope_always_gets_its_file(impatient, isolation, tmp_path):
    root = simulated(impatient, tmp_path)
    assert not any("SOLUTION" in p.read_text() for p in (root / "source" / "assignment").rglob("*.*"))
    solved = results(root, copy_of(A1, tmp_path / "solved"))
    assert sum(t["score"] for t in solved["tests"]) == sum(t["max_score"] for t in solved["tests"]) == 100
    assert {t["visibility"] for t in solved["tests"]} == {"visible", "after_published"}
    crashed = results(root, hostile(tmp_path / "crashed", at_import="print('\\ud800\\x00'); import os; os.abort()\n"))
    assert sum(t["score"] for t in crashed["tests"]) == 0 and sum(t["max_score"] for t in crashed["tests"]) == 100
    (tmp_path / "empty").mkdir()
    assert "not handed in" in results(root, tmp_path / "empty")["output"]
    (root / "source" / "assignment" / "assignment.toml").unlink()
    assert results(root, tmp_path / "solved")["score"] == 0


def test_classroom_50_gets_its_file(impatient, isolation, tmp_path):
    made = classroom50.autograder(impatient, tmp_path)
    checkout = hostile(tmp_path / "checkout", in_function="return x")
    variables = {"CLASSROOM": "c", "ASSIGNMENT": "a1", "SUBMISSION_TAG": "submit/1", "RELEASE_URL": "https://x/r",
                 "COMMIT_URL": "https://x/o/r/commit/1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(made)}
    subprocess.run([sys.executable, "-m", "minigpt.course.classroom50"], cwd=checkout, env=variables, check=True,
                   capture_output=True)
    result = json.loads((checkout / "result.json").read_text())
    assert set(result) == {"schema", "classroom", "assignment", "submission", "commit", "release", "review", "datetime",
                           "score", "max-score", "tests"}
    assert result["schema"] == "classroom50/result/v1" and result["review"] == variables["COMMIT_URL"]
    assert (result["score"], result["max-score"]) == (97, 100) and type(result["score"]) is int
    for t in result["tests"]:
        assert set(t) == {"test-name", "passed", "score", "max-score"} and t["score"] == t["passed"] * t["max-score"]


def test_what_was_not_run_counts_as_lost():
    assignment = Assignment.load(A1)
    entries = bundle.lines(assignment, [], "stopped")
    assert sum(e["max"] for e in entries) == 100 and all(e["message"] == "stopped" for e in entries)


# ---------------------------------------------------------------------------------------------------------------
# the tools


def test_all_assignments_are_released_at_once(tmp_path, capsys):
    assert cli.main(["course", "release", *map(str, FOLDERS), "--out", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.glob("*.zip")} == {Assignment.load(folder).id for folder in FOLDERS}
    assert cli.main(["course", "release", str(A1), "nowhere", "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_stubs_in_three_languages():
    python = release.stubbed("def f():\n    # BEGIN SOLUTION 1.2\n    return 1\n    # END SOLUTION\n", "a.py")
    assert python == 'def f():\n    raise NotImplementedError("task 1.2 is not written yet")\n'
    for name, call in (("a.cpp", "throw std::logic_error"), ("a.cu", "TODO")):
        text = release.stubbed("void f() {\n  // BEGIN SOLUTION 2.1\n  g();\n  // END SOLUTION\n}\n", name)
        assert text == f'void f() {{\n  {call}("task 2.1 is not written yet");\n}}\n'
    assert release.stubbed("# BEGIN SOLUTION 1.1 NO PROMPT\nx = 1\n# END SOLUTION\ny = 2\n", "a.py") == "y = 2\n"


@pytest.mark.parametrize("text, message", [
    ("# BEGIN SOLUTION 1.1\n", "a.py:1: BEGIN SOLUTION without END"),
    ("# END SOLUTION\n", "a.py:1: END SOLUTION where none is open"),
    ("# BEGIN SOLUTION 1.1\n# BEGIN SOLUTION 1.2\n", "a.py:2: BEGIN SOLUTION inside the one of line 1"),
    ("# BEGIN SOLUTION\n# END SOLUTION\n", "a.py:1"),
    ("#BEGIN SOLUTION 1.1\n", "a.py:1: '#BEGIN SOLUTION 1.1' is no marker"),
])
def test_markers_that_do_not_match(text, message):
    with pytest.raises(ValueError) as error:
        release.stubbed(text, "a.py")
    assert message in str(error.value)


def test_the_way_of_a_student(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(release.release(A1, tmp_path))
    assert cli.main(["course", "check", "--task", "2.1"]) == 1
    assert "2.1      0 /  2  gelu, forward  <- not written yet" in capsys.readouterr().out
    path = Path("student/gelu.py")
    path.write_text(path.read_text().replace('raise NotImplementedError("task 2.1 is not written yet")', "return x"))
    assert cli.main(["course", "check", "--task", "2.1"]) == 1
    said = capsys.readouterr().out
    assert "% of the error budget" in said and "expected" in said and "Look at: the cube" in said
    shutil.copy(A1 / "student" / "gelu.py", path)
    assert cli.main(["course", "check", "--task", "2.1"]) == 0
    assert "2.1      2 /  2  gelu, forward\n" in capsys.readouterr().out
    assert cli.main(["course", "submit"]) == 0
    with zipfile.ZipFile("a1_ops.zip") as archive:
        assert sorted(archive.namelist()) == sorted(["adapters.py", *Assignment.load(A1).files])
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-k", "gelu", "--debug-here"], capture_output=True,
                          text=True, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    assert "2 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("argv, message", [
    (["check", "nowhere"], "holds no assignment"),
    (["check", str(A1), "--task", "9.9"], "there is no task '9.9'"),
    (["release", str(A1), "--out", "{exists}"], "is there already"),
    (["grade", str(A1), "nowhere"], "nowhere is no folder"),
    ([], "required: action"),
])
def test_bad_commands(argv, message, tmp_path, capsys, isolation):
    (tmp_path / "a1_ops").mkdir()
    assert cli.main(["course", *(word.format(exists=tmp_path) for word in argv)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
