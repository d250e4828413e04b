"""Makes the notebooks: runs each NN_name.py as one, and writes NN_name.ipynb with all that it printed and drew.

    make notebooks                        # all that are stale;  python tutorials/build.py 03 08: these

The sources are what people edit. A notebook is stale when its cells are not those of its source
(tests/test_tutorials.py notices); what it took to run is written below its first cell.
"""

import os
import platform
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from minigpt.bench.machine import cpuinfo
from minigpt.files.atomic import atomic_write

FOLDER = Path(__file__).resolve().parent
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
MEASURED = re.compile(r"\n\n\*All cells took .*\*\Z")


def cells(path):
    """[(kind, text)] of a source or of a notebook, without what the build adds."""
    notebook = jupytext.read(path, fmt="py:percent") if path.suffix == ".py" else nbformat.read(path, as_version=4)
    return [(cell.cell_type, MEASURED.sub("", cell.source)) for cell in notebook.cells]


def stale(path):
    made = path.with_suffix(".ipynb")
    return not made.exists() or cells(made) != cells(path)


def build(path):
    """Runs a source as a notebook, in this folder, with a kernel of this Python, and writes it. -> seconds"""
    notebook = nbformat.v4.new_notebook(metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"}})
    for number, (kind, text) in enumerate(cells(path)):
        make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        notebook.cells.append(make(text, id=f"cell-{number}"))               # not random: so that a diff shows changes
    start = time.perf_counter()
    NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": str(FOLDER)}}).execute()
    took = time.perf_counter() - start
    processor = cpuinfo().get("model name", platform.machine())
    notebook.cells[0].source += f"\n\n*All cells took {took:.0f} s on {os.cpu_count()} cores ({processor}).*"
    with atomic_write(path.with_suffix(".ipynb")) as file:
        file.write((nbformat.writes(notebook) + "\n").encode())
    return took


def main(wanted):
    unknown = [w for w in wanted if not any(path.name.startswith(w) for path in SOURCES)]
    if unknown:
        sys.exit(f"build.py: no tutorial begins with {unknown[0]!r}; there are "
                 f"{', '.join(path.name[:2] for path in SOURCES)}")
    todo = [path for path in SOURCES if (any(map(path.name.startswith, wanted)) if wanted else stale(path))]
    for number, path in enumerate(todo, start=1):
        print(f"{path.name} ({number} of {len(todo)}) ... ", end="", flush=True)
        print(f"{build(path):.0f} s")
    print("all notebooks are up to date" if not todo else f"{len(todo)} written; look at them before you commit")


if __name__ == "__main__":
    main(sys.argv[1:])
