"""All errors that wnconvert raises on purpose.

    WnconvertError          the base class: what went wrong, where, what to do; exit code 2
    ├── ArgumentError       an option or argument that makes no sense
    ├── InputError          a source that cannot be opened, or is not a checkpoint
    │   └── FormatError     a checkpoint whose bytes contradict its own format
    ├── LayerError          a layer that is refused for its names, shapes or dtypes
    │   └── NumbersError    a layer that is refused for its numbers: zero rows, NaN, overflow
    ├── OutputError         a target that cannot be written: it exists, its folder does not, disk full
    ├── TooFewLayersError   fewer layers would change than are required; exit code 1
    ├── UnfoldedError       a model would still compute weights at every run; exit code 1
    └── VerifyError         the output was read back and differs from the plan; exit code 1

What the system does not give stays what it is (``MemoryError``, ``OSError``); the command line tells it in
words. Any other exception that leaves this package, such as a ``KeyError``, is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "MOST_LISTED",
    "ArgumentError",
    "FormatError",
    "InputError",
    "LayerError",
    "NumbersError",
    "OutputError",
    "TooFewLayersError",
    "UnfoldedError",
    "VerifyError",
    "WnconvertError",
]


#: How many names or items a message lists.
MOST_LISTED = 10


#: Whether exceptions have notes, which a traceback shows: from Python 3.11 on.
_HAS_NOTES = hasattr(BaseException, "add_note")


class WnconvertError(Exception):
    """An error in the user's words: what went wrong, where, and what to do about it.

    ``heading`` says what went wrong. An error about several things lists them below it: ``items`` are their
    places (or names), each with what is wrong there (or nothing). A traceback shows ``fix``, what to do, as a
    note; in Python 3.10, which has none, it stands in ``str``.

    >>> print(WnconvertError("g (12,) does not fit v (16, 8, 3)", where="model.pt: layer dec.weight"))
    model.pt: layer dec.weight: g (12,) does not fit v (16, 8, 3)
    >>> print(WnconvertError("2 layers cannot be folded", items=[("layer a", "no g"), ("layer b", "no v")]))
    2 layers cannot be folded:
      layer a: no g
      layer b: no v
    """

    exit_code = 2

    def __init__(
        self, heading: str, *, where: str = "", fix: str = "", items: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(heading)
        self.heading = heading
        self.items = tuple(items)
        self.where = where
        self.fix = fix

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "fix" and _HAS_NOTES:
            others = [note for note in getattr(self, "__notes__", ()) if note != _note(vars(self).get("fix"))]
            super().__setattr__("__notes__", [*others, *([_note(value)] if value else [])])
        super().__setattr__(name, value)

    @property
    def what(self) -> str:
        """The message without its place."""
        return "\n  ".join(self._lines(self.heading))

    @property
    def lines(self) -> list[str]:
        """The message line by line: place and heading, then the first ten items."""
        return self._lines(f"{self.where}: {self.heading}" if self.where else self.heading)

    def _lines(self, heading: str) -> list[str]:
        if not self.items:
            return [heading]
        items = [f"{where}: {what}" if what else where for where, what in self.items[:MOST_LISTED]]
        more = len(self.items) - len(items)
        return [f"{heading}:", *items, *([f"and {more} more"] if more else [])]

    def __str__(self) -> str:
        text = "\n  ".join(self.lines)
        return text if _HAS_NOTES or not self.fix else f"{text}\n{_note(self.fix)}"

    def __reduce__(self) -> tuple[object, ...]:
        # BaseException pickles its positional arguments only; the others must survive a process pool.
        return (_rebuild, (type(self), self.heading, self.where, self.fix, self.items))


def _note(fix: str | None) -> str:
    return f"fix: {fix}"


def _rebuild(
    cls: type[WnconvertError], heading: str, where: str, fix: str, items: Sequence[tuple[str, str]]
) -> WnconvertError:
    return cls(heading, where=where, fix=fix, items=items)


class ArgumentError(WnconvertError):
    """An option or argument that makes no sense."""


class InputError(WnconvertError):
    """A source that cannot be opened, or is not a checkpoint."""


class FormatError(InputError):
    """A checkpoint whose bytes contradict its own format."""


class LayerError(WnconvertError):
    """A layer that is refused for its names, shapes or dtypes."""


class NumbersError(LayerError):
    """A layer that is refused for its numbers: zero rows, NaN, overflow."""


class OutputError(WnconvertError):
    """A target that cannot be written: it exists, its folder does not, the disk is full."""


class TooFewLayersError(WnconvertError):
    """Fewer layers would be converted than the caller requires; nothing is written."""

    exit_code = 1


class UnfoldedError(WnconvertError):
    """A model computes weights at every run, and the caller requires that they are stored."""

    exit_code = 1


class VerifyError(WnconvertError):
    """The output was read back and differs from the plan."""

    exit_code = 1
