"""What an assignment is: a folder with assignment.toml, the students' files with solutions, adapters.py and tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

try:
    import tomllib
except ImportError:                       # Python 3.10, where pytest brings its twin along
    import tomli as tomllib


@dataclasses.dataclass
class Assignment:
    """assignment.toml. `files` are what students write and hand in, beside adapters.py; `tasks` names every task."""

    folder: Path
    id: str
    title: str
    hours: int
    files: list
    tasks: dict
    seconds: int = 10                     # for one call of a student's function
    total_seconds: int = 120              # for a whole submission
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
        for name in assignment.files:
            if Path(name).is_absolute() or ".." in Path(name).parts or not (folder / name).is_file():
                raise ValueError(f"{path}: files names {name!r}, which is no file in {folder}")
        return assignment

    @property
    def handed_in(self) -> list:
        """The files of a submission, relative to its folder."""
        return [*self.files, "adapters.py"]
