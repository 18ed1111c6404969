"""Words for messages: names that are safe to print, lists that end, numbers of things."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["counted", "listed", "printable"]


def printable(text: str) -> str:
    r"""A text whose control characters are spelled out: names in a file must not move a terminal's cursor.

    >>> print(printable("conv" + chr(27) + "[2J.weight"))
    conv\x1b[2J.weight
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "layer"), counted(3, "layer")
    ('1 layer', '3 layers')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names, the first of them where there are many."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
