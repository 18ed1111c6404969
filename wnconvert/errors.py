"""Every way in which wnconvert says no.

    WnconvertError          the root: what, where, and what to do; exit code 2
    ├── ArgumentError       an option or argument that cannot be meant
    ├── InputError          a source that cannot be opened, or is no checkpoint
    │   └── FormatError     a checkpoint whose bytes contradict its own format
    ├── LayerError          a layer that is refused for its names, shapes or dtypes
    │   └── NumbersError    a layer that is refused for its numbers: zero rows, NaN, overflow
    ├── OutputError         a target that cannot be written: exists, no folder, disk full
    └── VerifyError         the output was read back and is not what was planned; exit code 1

A bare ``ValueError`` or ``KeyError`` out of this package is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ArgumentError",
    "FormatError",
    "InputError",
    "LayerError",
    "NumbersError",
    "OutputError",
    "VerifyError",
    "WnconvertError",
]


class WnconvertError(Exception):
    """What went wrong, where, and what to do about it, in the user's words.

    An error about many things lists them as ``items``, each with its place and what is wrong there;
    ``heading`` is then its first line.

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
        self.heading = heading
        self.items = tuple(items)
        self.what = heading + _listing(self.items)
        self.where = where
        self.fix = fix
        super().__init__(self.what)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what

    def __reduce__(self) -> tuple[object, ...]:
        # BaseException pickles its positional arguments only; the others must survive a process pool.
        return (_rebuild, (type(self), self.heading, self.where, self.fix, self.items))


def _listing(items: Sequence[tuple[str, str]]) -> str:
    """The first ten items, a line each, behind a heading."""
    if not items:
        return ""
    lines = [f"{where}: {what}" for where, what in items[:10]]
    lines += [f"and {len(items) - 10} more"] if len(items) > 10 else []
    return "".join([":", *(f"\n  {line}" for line in lines)])


def _rebuild(
    cls: type[WnconvertError], heading: str, where: str, fix: str, items: Sequence[tuple[str, str]]
) -> WnconvertError:
    return cls(heading, where=where, fix=fix, items=items)


class ArgumentError(WnconvertError):
    """An option or argument that cannot be meant."""


class InputError(WnconvertError):
    """A source that cannot be opened, or is no checkpoint."""


class FormatError(InputError):
    """A checkpoint whose bytes contradict its own format."""


class LayerError(WnconvertError):
    """A layer that is refused for its names, shapes or dtypes."""


class NumbersError(LayerError):
    """A layer that is refused for its numbers: zero rows, NaN, overflow."""


class OutputError(WnconvertError):
    """A target that cannot be written: it exists, its folder does not, the disk is full."""


class VerifyError(WnconvertError):
    """The output was read back and is not what was planned."""

    exit_code = 1
