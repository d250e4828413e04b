"""Makes assignments and grades them. One source tree with solutions is the truth; everything else is made from it.

    assignment.py   what an assignment is: the folder, its assignment.toml, its tasks
    release.py      the student's repository: solutions cut out, hidden tests left out
    plugin.py       pytest collects the points; tests call the student's functions through `adapters`
    judging.py      holds an answer against NumPy, the specification, within a measured error budget
    student.py      calls the student's functions in a process of their own, process.py, which sees layout.py's files
    worker.py       that process
    native.py       how adapters.py calls C++ and CUDA there; builder.py compiles them, in a jail too
    sanitizers.py   C++ with AddressSanitizer and UndefinedBehaviorSanitizer
    wire.py         what the two say to each other: numbers and arrays, never pickles
    jail.py         what that process may do: its time, memory, files, processes
    grade.py        one submission, or a folder of them into a table
    gradescope.py, classroom50.py   the same for those two services

Student code never runs in the process that knows the answers: it sees inputs, returns values, and they are compared
elsewhere. So there is nothing to tamper with.
"""
