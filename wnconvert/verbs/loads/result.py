"""The result of ``loads_folder``."""

from __future__ import annotations

from typing import Any

from wnconvert.frozen import dataclass

__all__ = ["LoadReport", "Misfit"]


@dataclass(frozen=True, slots=True)
class Misfit:
    """A tensor whose shape in the folder is not the one in the class."""

    name: str
    shape: tuple[int, ...]
    expected: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a class finds in a folder; true if it finds all of its tensors, and no others.

    ``missing`` names the tensors of the class that are not there: ``from_pretrained`` leaves them random.
    ``unexpected`` names those that the class does not have, and ``misfits`` those of another shape.
    ``tensors`` counts what is in the folder.
    """

    folder: str
    library: str
    version: str
    class_name: str
    tensors: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[Misfit, ...]
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not (self.missing or self.unexpected or self.misfits)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data; docs/json.md documents it."""
        return {
            "schema": 1,
            "folder": self.folder,
            "library": self.library,
            "version": self.version,
            "class_name": self.class_name,
            "loads": bool(self),
            "tensors": self.tensors,
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "misfits": [
                {"name": item.name, "shape": list(item.shape), "expected": list(item.expected)}
                for item in self.misfits
            ],
            "notes": list(self.notes),
        }
