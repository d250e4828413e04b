"""minigpt course: assignments, from the instructor's tree to the points. See minigpt/course/.

    minigpt course release tutorials/assignments/* --out dist         # instructor: students' repositories and zips
    minigpt course check                                              # student, in that repository: points so far
    minigpt course submit                                             # student: the zip to hand in
    minigpt course grade tutorials/assignments/a1_ops submissions/    # instructor: a table of points
    minigpt course gradescope tutorials/assignments/*                 # instructor: the zips for Gradescope
    minigpt course classroom50 tutorials/assignments/*                # instructor: the files for Classroom 50
"""

from pathlib import Path


def add_arguments(parser):
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)

    def action(name, help, function):
        added = actions.add_parser(name, help=help, description=help)
        added.set_defaults(function=function)
        return added

    release = action("release", "make the students' repository, without solutions and hidden tests", run_release)
    check = action("check", "run the tests and add up the points", run_check)
    submit = action("submit", "make the zip to hand in", run_submit)
    grade = action("grade", "grade a folder of submissions (folders or zips) into a table", run_grade)
    gradescope = action("gradescope", "make Gradescope's autograder zip", run_gradescope)
    classroom = action("classroom50", "make Classroom 50's autograder files", run_classroom50)
    for made in (release, gradescope, classroom):
        made.add_argument("assignments", nargs="+", help="folders of assignments, with their solutions")
    grade.add_argument("assignment", help="the folder of the assignment, with its solutions")
    for made in (check, submit):
        made.add_argument("assignment", nargs="?", default=".", help="the folder with your files (default: this one)")
    for made, default in ((release, "dist"), (gradescope, "dist"), (classroom, "dist"), (submit, None)):
        made.add_argument("--out", default=default, help="where to write it" + (f" ({default})" if default else ""))
    check.add_argument("--task", help="only this task, as 3.1")
    grade.add_argument("submissions", help="the folder of submissions")
    grade.add_argument("--out", default="grades.csv", help="the table to write (grades.csv)")
    grade.add_argument("--secret", default="", help="changes the numbers that the tests are made of; keep it for later")


def run(args):
    return args.function(args)


def _assignment(folder):
    from ..course.assignment import Assignment

    return Assignment.load(folder)


def _assignments(args):
    return [_assignment(folder) for folder in args.assignments]               # all, before anything is written


def run_release(args):
    from ..course.release import release

    for assignment in _assignments(args):
        target = release(assignment.folder, args.out)
        print(f"{target} is the students' repository, {target}.zip the same as one file")


def run_check(args):
    from ..course import grade

    assignment = _assignment(args.assignment)
    if args.task and args.task not in assignment.tasks:
        raise ValueError(f"course: there is no task {args.task!r}, there are {', '.join(assignment.tasks)}")
    tests, problem = grade.run_tests(assignment, task=args.task or "")
    if problem:
        raise ValueError(f"course: the tests could not be run: {problem}")
    if args.task:
        assignment.tasks = {args.task: assignment.tasks[args.task]}
    print(grade.table(assignment, tests))
    return 0 if all(t["status"] == "passed" for t in tests) else 1


def run_submit(args):
    from ..course.release import submission

    made = submission(args.assignment, args.out)
    print(f"{made} is what to hand in")


def run_grade(args):
    from ..course import grade, student

    assignment, isolation = _assignment(args.assignment), student.isolation()
    if not Path(args.submissions).is_dir():
        raise ValueError(f"course: {args.submissions} is no folder, must hold the submissions")
    print(f"{assignment.title}; submissions are kept apart by: {isolation}")
    grade.grade_folder(assignment, args.submissions, args.out, isolation, args.secret)
    print(f"{args.out} is the table; what to tell the students is in {Path(args.out).with_suffix('')}/")


def run_gradescope(args):
    from ..course.gradescope import autograder

    for assignment in _assignments(args):
        print(f"{autograder(assignment, args.out)} is the zip to upload as the autograder")


def run_classroom50(args):
    from ..course.classroom50 import autograder

    for assignment in _assignments(args):
        print(f"{autograder(assignment, args.out)} is the bundle for Classroom 50: autograder.py and what it needs")
