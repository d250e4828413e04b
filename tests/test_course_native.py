"""Submissions in C++ that attack: the compiler, the process that calls them, the grader. Each costs its own tasks and
no others, and the results are always there. All are tried on a small assignment of two files; A2's own mistakes and
A3's are tried in test_course.py.
"""

import shutil
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
from test_course import by_task, results, simulated

from minigpt import cli
from minigpt.course import builder, grade, judging, release, sanitizers
from minigpt.course.assignment import Assignment
from minigpt.course.process import Failed

try:
    builder.compiler()
    why = ""
except ImportError as error:
    why = str(error)
pytestmark = pytest.mark.skipif(bool(why) or sys.platform == "win32", reason=why or "limits are those of POSIX")

FILES = {
    "assignment.toml": """
        id = "tiny"
        title = "Two functions in one file, one in another"
        hours = 1
        files = ["student/a.cpp", "student/b.cpp"]
        given = ["adapters.py"]
        seconds = 2
        build_seconds = 2
        [tasks]
        "1.1" = "twice"
        "1.2" = "thrice"
        "2.1" = "negative"
        """,
    "adapters.py": """
        import numpy as np
        from native import library

        a, b = library("student/a.cpp"), library("student/b.cpp")


        def results(function, x):
            y = np.full_like(x, np.nan)
            function(x, y, x.size)
            return y


        def twice(x):
            return results(a.twice, x)


        def thrice(x):
            return results(a.thrice, x)


        def negative(x):
            return results(b.negative, x)
        """,
    "student/a.cpp": """
        #include <cstdint>
        #include <stdexcept>
        // here
        extern "C" void twice(const float* x, float* y, int64_t n) {
          // BEGIN SOLUTION 1.1
          for (int64_t i = 0; i < n; i++) y[i] = 2 * x[i];
          // END SOLUTION
        }
        extern "C" void thrice(const float* x, float* y, int64_t n) {
          // BEGIN SOLUTION 1.2
          for (int64_t i = 0; i < n; i++) y[i] = 3 * x[i];
          // END SOLUTION
        }
        """,
    "student/b.cpp": """
        #include <cstdint>
        #include <stdexcept>
        extern "C" void negative(const float* x, float* y, int64_t n) {
          // BEGIN SOLUTION 2.1
          for (int64_t i = 0; i < n; i++) y[i] = -x[i];
          // END SOLUTION
        }
        """,
    "tests/test_public.py": """
        import numpy as np
        import pytest

        from minigpt.course.process import Failed


        @pytest.mark.parametrize("name, factor", [
            pytest.param("twice", 2, marks=pytest.mark.task("1.1", points=1)),
            pytest.param("thrice", 3, marks=pytest.mark.task("1.2", points=1)),
            pytest.param("negative", -1, marks=pytest.mark.task("2.1", points=1))])
        def test_a_product(adapters, rng, name, factor):
            x = rng.normal(size=17).astype(np.float32)
            if not np.array_equal(getattr(adapters, name)(x=x), factor * x):
                raise Failed(f"{name}: wrong")
        """,
    "README.md": "", "AGENTS.md": "",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        lines = text.strip("\n").splitlines()
        (folder / name).write_text("\n".join(line.removeprefix(" " * 8) for line in lines).rstrip() + "\n")
    return Assignment.load(folder)


def submission(tiny, target, at_top="", in_twice=""):
    """The solution, with a line or two more in student/a.cpp."""
    shutil.copytree(tiny.folder / "student", target / "student")
    path = target / "student" / "a.cpp"
    text = path.read_text().replace("// here\n", f"{at_top}\n").replace("  // BEGIN SOLUTION 1.1\n", f"  {in_twice}\n")
    path.write_text(text)
    return target


AT_COMPILE_TIME = {                                   # these cost both tasks of the file, and not that of the other
    "an error": ("int x = ;", "student/a.cpp:3:9: error"),
    "templates without end": ("template <int N> struct A { static constexpr int x = A<N + 1>::x; };\n"
                              "int x = A<0>::x;", "student/a.cpp:3"),
    "a constant without end": ("constexpr long f(long n) {\n  long s = 0;\n  for (long i = 0; i < n; i++) {\n"
                               "    for (long j = 0; j < n; j++) s += j;\n  }\n  return s;\n}\n"
                               "template <int N> struct A { static constexpr long x = f(4000 + N) + A<N - 1>::x; };\n"
                               "template <> struct A<0> { static constexpr long x = 0; };\nlong x = A<800>::x;",
                               "the compiler was stopped"),
    "a secret included": ('#include "/etc/shadow"', "student/a.cpp:3:10: fatal error"),
    "a secret taken into the library": ('asm(".incbin \\"/etc/shadow\\"");', "/etc/shadow"),
    "a device included": ('#include "/dev/zero"', "does not compile"),
    "words without end": ("int x = " + "((((((((((" * 9999 + "y;", "does not compile"),
    "a function with another name": ("#define twice twice2\n#define thrice thrice2", "has no function"),
    "a static variable that exits": ("#include <cstdlib>\nint x = (std::exit(0), 1);", "ended by itself"),
    "a static variable that crashes": ("volatile int* volatile p = nullptr;\nint x = *p;", "crashed"),
}
IN_A_FUNCTION = {                                     # these cost task 1.1, and nothing else
    "crashes": ("*(volatile int*)0 = 1;", "crashed"),
    "writes to all memory": ("for (int64_t i = 0; ; i++) y[i] = 1;", "crashed"),
    "hangs": ("for (volatile int i = 0; ; ) {}", "was stopped (an endless loop?)"),
    "exits": ("std::exit(0);", "ended by itself, with exit code 0"),
    "throws": ('throw std::runtime_error("no");', "twice: threw std::runtime_error: no"),
    "throws a number": ("throw 1;", "twice: threw int"),
    "recurses": ("volatile float on_the_stack = *x; twice(x, y, n); y[0] = on_the_stack;", "crashed"),
    "takes all memory": ("y[0] = *new float[1l << 40];", "twice: threw std::bad_alloc"),
    "answers in the wrong format": ("for (int fd = 3; fd < 20; fd++) (void)!write(fd, twice_text, 999);", "twice"),
    "a fork bomb": ("fork_bomb();", "no more processes"),
}
HEADERS = "#include <cstdlib>\n#include <ctime>\n#include <unistd.h>\n#include <cstdio>\n" \
    'char twice_text[999]; extern "C" void twice(const float*, float*, int64_t);\n'
BOMB = """
void fork_bomb() {                    // one that ends by itself
  for (int i = 0; i < 200; i++) {
    int child = fork();
    if (child < 0) throw std::runtime_error("no more processes");
    if (child == 0) {
      setsid();
      for (time_t end = time(nullptr) + 3; time(nullptr) < end;) {}
      _exit(0);
    }
  }
}
"""


@pytest.mark.parametrize("what", AT_COMPILE_TIME)
def test_a_source_that_attacks_costs_its_own_tasks(what, tiny, isolation, tmp_path):
    code, said = AT_COMPILE_TIME[what]
    tests, problem = grade.run_tests(tiny, submission(tiny, tmp_path, at_top=code), isolation)
    assert not problem and by_task(tests) == {"1.1": (0, 1), "1.2": (0, 1), "2.1": (1, 1)}
    for t in tests[:2]:
        assert said in t["message"] and len(t["message"]) < 5000 and "root:" not in t["message"], t["message"]


@pytest.mark.parametrize("what", IN_A_FUNCTION)
def test_a_bad_function_costs_its_task_alone(what, tiny, isolation, tmp_path):
    code, said = IN_A_FUNCTION[what]
    tests, problem = grade.run_tests(tiny, submission(tiny, tmp_path, HEADERS + BOMB, code), isolation, task="1.")
    assert not problem and by_task(tests) == {"1.1": (0, 1), "1.2": (1, 1)}, tests
    assert said in tests[0]["message"], tests[0]["message"]


def test_what_a_library_prints_when_it_is_loaded_changes_nothing(tiny, isolation, tmp_path):
    code = '#include <cstdio>\nint x = std::printf("score: 100 task 1.1 is not written yet\\n");'
    tests, _ = grade.run_tests(tiny, submission(tiny, tmp_path, code), isolation)
    assert all(t["status"] == "passed" for t in tests), tests


def test_only_sources_are_handed_in(tiny, isolation, tmp_path):
    """Neither an adapters.py that knows the answers, nor a library that was compiled elsewhere."""
    released = release.release(tiny.folder, tmp_path)
    (released / "adapters.py").write_text("def twice(x):\n    return 2 * x\n\n\ndef thrice(x):\n    return 3 * x\n")
    solved = submission(tiny, tmp_path / "solved")
    for name in ("a.cpp.so", "libevil.so"):
        (released / "student" / name).write_bytes(builder.build(str(solved), "student/a.cpp", False).tobytes())
    record = grade.grade(tiny, released, isolation)
    assert record["score"] == 0 and {t["status"] for t in record["tests"]} == {"todo"}


def test_gradescope_gets_its_file_when_the_compiler_is_attacked(tiny, isolation, tmp_path):
    root = simulated(tiny, tmp_path)
    for what, (code, _) in (("of templates", AT_COMPILE_TIME["a constant without end"]),
                            ("of text", ("\\u0000\x07\x1b[31m\ufffe", ""))):
        written = results(root, submission(tiny, tmp_path / what, at_top=code))
        assert sum(t["score"] for t in written["tests"]) == 1 and sum(t["max_score"] for t in written["tests"]) == 3
        assert all("does not compile" in t["output"] for t in written["tests"][:2])


def test_where_no_compiler_is(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["course", "check", str(tiny.folder)]) == 2
    said = capsys.readouterr().err
    assert "needs a C++ compiler" in said and said.count("\n") == 1


def test_functions_can_be_debugged_in_the_process_of_pytest(tiny, tmp_path):
    released = release.release(tiny.folder, tmp_path)
    shutil.copy(tiny.folder / "student" / "a.cpp", released / "student")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-k", "twice or thrice", "--debug-here"], cwd=released,
                          capture_output=True, text=True)
    assert "2 passed" in done.stdout, done.stdout


def test_the_words_of_the_sanitizers():
    """As g++ 12 and g++ 14 say them."""
    for text, wanted in [
        ("==1==ERROR: AddressSanitizer: heap-use-after-free on address 0x6 at pc 0x7 bp 0x8 sp 0x9\n"
         "READ of size 4 at 0x6 thread T0\n    #0 0x7 in std::vector<float>::at(unsigned long) /usr/include/vector:12\n"
         "    #1 0x7 in f(float*) /submission/student/a.cpp:7\n0x6 is located 4 bytes inside of 68-byte region [0,9)\n",
         "read of size 4 outside of what is there (heap-use-after-free, 4 bytes inside of 68-byte region)\n"
         "  at student/a.cpp:7, in f(float*)"),
        ("==1==ERROR: AddressSanitizer: stack-buffer-overflow on address 0x6\nWRITE of size 8 at 0x6 thread T0\n"
         "    #0 0x7 in f student/a.cpp:3:5\n  This frame has 1 object(s):\n    [32, 288) 'm' (line 2) "
         "<== Memory access at offset 288 overflows this variable\n",
         "write of size 8 outside of what is there (stack-buffer-overflow, beside the variable m)\n"
         "  at student/a.cpp:3, in f"),
        ("student/a.cpp:9:4: runtime error: division by zero\n", "undefined behaviour: division by zero\n"
         "  at student/a.cpp:9"),
        ("==1==ERROR: AddressSanitizer: attempting double-free on 0x602 in thread T0:\n    #0 0x7 in free (/x+0x1)\n"
         "    #1 0x7 in f student/a.cpp:4\n0x602 is located 0 bytes inside of 4-byte region [0,4)\n",
         "AddressSanitizer: attempting double-free, 0 bytes inside of 4-byte region\n  at student/a.cpp:4, in f"),
        ("==1==ERROR: AddressSanitizer: SEGV on unknown address 0x0 (pc 0x1)", "AddressSanitizer: SEGV"),
        ("==1==AddressSanitizer: hard rss limit exhausted (512Mb vs 514Mb)\n", "used too much memory"),
        ("nothing of the kind", ""),
    ]:
        assert sanitizers.finding(text) == wanted


@pytest.mark.parametrize("result, message", [(np.zeros(3), "0 everywhere"), (np.array([1, np.nan]), "element \\[1\\]")])
def test_results_that_nobody_computed(result, message):
    adapters = types.SimpleNamespace(f=lambda: result)
    with pytest.raises(Failed, match=message):
        judging.writes_all(adapters, "f")


def test_the_bundle_holds_no_solution(tiny, tmp_path):
    with zipfile.ZipFile(release.release(tiny.folder, tmp_path).with_suffix(".zip")) as archive:
        assert b"2 * x[i]" not in archive.read("tiny/student/a.cpp")
        assert b'throw std::logic_error("task 1.1 is not written yet");' in archive.read("tiny/student/a.cpp")
