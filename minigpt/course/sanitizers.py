"""The sanitizers of g++ (AddressSanitizer, UndefinedBehaviorSanitizer): how their builds are run, and what they found.

A sanitized library needs the sanitizer's own, loaded before all else, and address space without limit: it reserves
terabytes, of which it uses little. So it watches the memory itself.
"""

import re
import subprocess

ADDRESS = re.compile(r"ERROR: AddressSanitizer: (?P<what>.*?)(?: on .*| \(.*|$)", re.MULTILINE)
MEMORY = "AddressSanitizer: hard rss limit exhausted"
ACCESS = re.compile(r"^(READ|WRITE) of size \d+", re.MULTILINE)
UNDEFINED = re.compile(r"^\S*?(?P<file>student/\S+?):(?P<line>\d+):\d+: runtime error: (?P<what>.*)", re.MULTILINE)
FRAME = re.compile(r"^ +#\d+ 0x\w+ in (?P<function>.+?) \S*?(?P<file>student/\S+?):(?P<line>\d+)", re.MULTILINE)
REGION = re.compile(r"^0x\w+ is located (?P<where>\d+ bytes .*? of \d+-byte region)", re.MULTILINE)
VARIABLE = re.compile(r"^ +\[\d+, \d+\) '(?P<name>\w+)'(?: \(line \d+\))? <== Memory access", re.MULTILINE)


def environment(memory_mb) -> dict:
    """The variables of a process that loads sanitized libraries. ImportError where there are no sanitizers."""
    try:
        libraries = [subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
                     for name in ("libasan.so", "libstdc++.so.6")]            # whose exceptions the first looks at
    except OSError:
        libraries = [""]
    if not all(path.startswith("/") for path in libraries):
        raise ImportError("the memory checks need g++ with its sanitizers, on Linux; they are run when your work is "
                          "graded")
    options = f"detect_leaks=0:quarantine_size_mb=8:hard_rss_limit_mb={memory_mb}:max_allocation_size_mb={memory_mb}"
    return {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"}


def finding(text) -> str:
    """What a sanitizer said, in one or two lines, or "" where none did."""
    if found := UNDEFINED.search(text):
        return f"undefined behaviour: {found['what']}\n  at {found['file']}:{found['line']}"
    if MEMORY in text:
        return "used too much memory"
    if not (found := ADDRESS.search(text)):
        return ""
    access, frame, region, variable = (p.search(text) for p in (ACCESS, FRAME, REGION, VARIABLE))
    where = f", {region['where']}" if region else f", beside the variable {variable['name']}" if variable else ""
    at = f"\n  at {frame['file']}:{frame['line']}, in {frame['function']}" if frame else ""
    if not access:                        # a vector freed twice, say
        return f"AddressSanitizer: {found['what']}{where}{at}"
    return f"{access[0].lower()} outside of what is there ({found['what']}{where}){at}"
