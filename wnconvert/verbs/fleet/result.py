"""What came of one of many checkpoints, as frozen data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from wnconvert.errors import TooFewLayersError, UnfoldedError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.messages import counted, printable, short_repr
from wnconvert.verbs.inspection.result import Inspection

__all__ = ["FileResult", "State", "exit_code_of", "state_of_error"]


#: What came of a file: it was converted (or inspected), there was nothing to convert, it has fewer layers
#: than are required, it was skipped, it would be converted (a dry run), or it failed.
State: TypeAlias = Literal["done", "nothing", "lacking", "skipped", "planned", "failed"]


@dataclass(frozen=True, slots=True, repr=False)
class FileResult:
    """What one of the verbs did with one of many checkpoints.

    ``layers`` is the number that was converted, or is there; ``output`` None where nothing was written.
    ``sha256`` is that of the output (of a folder: that of the list which ``sha256sum`` prints of its files),
    where a report was asked for, else ``""``. ``size``, ``mtime_ns`` and ``tag`` (the ETag or version in a
    store) are those of the source, in place after it. ``error`` is what went wrong, or None;
    ``inspection`` what ``inspect_files`` found.
    """

    source: str
    verb: str
    state: State
    output: str | None = None
    layers: int = 0
    notes: tuple[str, ...] = ()
    bytes_in: int = 0
    bytes_out: int = 0
    size: int = 0
    mtime_ns: int = 0
    tag: str = ""
    sha256: str = ""
    seconds: float = 0.0
    error: WnconvertError | None = None
    inspection: Inspection | None = None

    def __repr__(self) -> str:
        heading = f"FileResult: {self.verb} {self.source}: {self.state}, {counted(self.layers, 'layer')}"
        said = self.error.lines[0] if self.error else self.output or ""
        return short_repr(heading, [], printable(said))

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-able data; docs/json.md documents it."""
        error = self.error
        return {
            "source": self.source,
            "verb": self.verb,
            "state": self.state,
            "output": self.output,
            "layers": self.layers,
            "notes": list(self.notes),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "size": self.size,
            "mtime_ns": self.mtime_ns,
            "tag": self.tag or None,
            "sha256": self.sha256 or None,
            "seconds": round(self.seconds, 3),
            "error": None
            if error is None
            else {
                "what": error.what,
                "where": error.where,
                "fix": error.fix,
                "exit_code": error.exit_code,
            },
        }


def exit_code_of(results: Iterable[FileResult]) -> int:
    """The exit code for many files: 2 where one failed, else 1 where one has too few layers, else 0.

    >>> exit_code_of([FileResult("a.pt", "fold", "done"), FileResult("b.pt", "fold", "lacking")])
    1
    """
    states = {result.state for result in results}
    return 2 if "failed" in states else 1 if "lacking" in states else 0


def state_of_error(error: WnconvertError) -> State:
    """What an error makes of a file: too few layers are no failure, and other files go on."""
    return "lacking" if isinstance(error, (TooFewLayersError, UnfoldedError)) else "failed"
