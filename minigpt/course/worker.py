"""The student's process: imports their adapters.py, and calls what it is asked to call.

    python -I -S worker.py adapters <folder of the submission> <folder of packages> <fd of requests> <fd of answers>

-I -S leave the standard library alone on the path; the packages that the assignment allows are all in the one folder
added to it. Runs with nothing of the course but wire.py, native.py and builder.py beside it. With "builder" in the
place of "adapters" it compiles the submission's sources: see there.
"""

import ctypes
import importlib
import os
import re
import sys
import traceback

NOT_WRITTEN = re.compile(r"task \d+\.\d+ is not written yet")


def main():
    adapters, submission, packages, requests, answers = sys.argv[1:]
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path += [packages, here]
    import builder  # noqa: F401          # ours, before anything of theirs could be found under such a name
    import native
    import numpy
    import wire

    native.folder, libc = submission, ctypes.CDLL(None)
    sys.path.remove(here)
    sys.path.insert(0, submission)
    sys.argv[:] = ["student"]
    requests, answers = os.fdopen(int(requests), "rb"), os.fdopen(int(answers), "wb")

    def answer(value):
        try:
            data = wire.pack(value)
        except TypeError as error:
            data = wire.pack({"error": "failed", "message": f"what was returned cannot be compared: {error}"})
        sys.__stdout__.flush()            # what Python printed, and what C did, before the answer
        libc.fflush(None)
        answers.write(data)
        answers.flush()

    def exactly(n):
        data = requests.read(n)
        if len(data) < n:
            os._exit(0)                                                       # the grader has gone
        return data

    try:
        adapters = importlib.import_module(adapters)
    except BaseException as error:                                            # SystemExit and KeyboardInterrupt too
        answer(failure(error, submission))
        return
    answer({"ready": True})
    while True:
        name, arguments = wire.unpack(exactly)
        before = {key: x.copy() for key, x in arguments.items() if isinstance(x, numpy.ndarray)}
        try:
            result = getattr(adapters, name)(**arguments)
        except native.NotBuilt as error:
            answer({"build": str(error)})
            continue
        except native.NotCallable as error:
            answer({"error": "absent", "message": str(error)})
            continue
        except BaseException as error:
            answer(failure(error, submission))
            continue
        changed = [key for key, x in before.items() if x.tobytes() != arguments[key].tobytes()]
        answer({"result": result, "changed": changed, "seen": native.seen})


def failure(error, submission):
    """What went wrong, and the line of the student's own file where."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(submission + os.sep)]
    where = f" ({os.path.relpath(frames[-1].filename, submission)}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and (error.filename or "").startswith(submission):
        where = f" ({os.path.relpath(error.filename, submission)}:{error.lineno})"
    text = str(error)[:2000]
    if isinstance(error, NotImplementedError):
        return {"error": "todo", "message": text + where}
    if todo := NOT_WRITTEN.search(text):                                      # a CUDA kernel's, told by the emulator
        return {"error": "todo", "message": todo[0]}
    if hasattr(error, "findings"):                                            # the emulator's words say where
        return {"error": "failed", "message": text}
    return {"error": "failed", "message": f"{type(error).__name__}: {text}{where}"}


if __name__ == "__main__":
    main()
