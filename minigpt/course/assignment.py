"""What an assignment is: a folder with assignment.toml, the students' files with solutions, adapters.py and tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath

try:
    import tomllib
except ImportError:                       # Python 3.10
    import tomli as tomllib

SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh", ".md")     # what students write ...
RESULTS = (".json", ".png")               # ... and what their programs do


@dataclasses.dataclass
class Assignment:
    """assignment.toml. `files` are those in student/ that are handed out, `given` those that students use and do not
    write (when they are graded, they are ours again); `tasks` names every task."""

    folder: Path
    id: str
    title: str
    hours: int
    files: list
    tasks: dict
    given: list = dataclasses.field(default_factory=list)
    by_hand: int = 0                      # points that a person gives, on top of those of the tests: for a write-up
    seconds: int = 10                     # for one call of a student's function
    build_seconds: int = 20               # for each of the compiler's programs, for one source
    total_seconds: int = 120              # for a whole submission, its compilation too
    memory_mb: int = 512
    processes: int = 16

    @classmethod
    def load(cls, folder) -> Assignment:
        """Reads a folder. ValueError if it holds no assignment, or one that does not make sense."""
        folder = Path(folder).resolve()
        path = folder / "assignment.toml"
        if not path.is_file():
            raise ValueError(f"course: {folder} holds no assignment (there is no assignment.toml in it)")
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
            assignment = cls(folder=folder, **values)
        except (TypeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{path}: {error}") from None
        for name in (*assignment.files, *assignment.given):
            if Path(name).is_absolute() or ".." in Path(name).parts or not (folder / name).is_file():
                raise ValueError(f"{path}: files or given names {name!r}, which is no file in {folder}")
        return assignment

    @property
    def sources(self) -> list:
        """What is compiled."""
        return [name for name in self.files if name.endswith((".cpp", ".cu"))]

    def handed_in(self, name) -> bool:
        """Whether a file of that name is part of a submission: adapters.py, unless it is given, and sources in
        student/."""
        path = PurePosixPath(name)
        return name not in self.given and (name == "adapters.py" or (
            path.parts[:1] == ("student",) and len(path.parts) > 1 and ".." not in path.parts and
            path.suffix in SOURCES + RESULTS))

    def submission(self, folder) -> list:
        """The names of the files in `folder` that belong to a submission."""
        folder = Path(folder)
        found = [folder / "adapters.py", *sorted((folder / "student").rglob("*"))]
        names = [path.relative_to(folder).as_posix() for path in found if path.is_file()]
        return [name for name in names if self.handed_in(name)]
