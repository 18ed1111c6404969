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

    >>> print(WnconvertError("g (12,) does not fit v (16, 8, 3)", where="model.pt: layer dec.weight"))
    model.pt: layer dec.weight: g (12,) does not fit v (16, 8, 3)
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what

    def __reduce__(self) -> tuple[object, ...]:
        # BaseException pickles its positional arguments only; where and fix must survive a process pool.
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(cls: type[WnconvertError], what: str, where: str, fix: str) -> WnconvertError:
    return cls(what, where=where, fix=fix)


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
