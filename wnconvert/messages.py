"""Words for messages: safe names, lists that end, numbers of things, options as Python spells them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from wnconvert.errors import WnconvertError

__all__ = ["REPORT_BUG", "counted", "listed", "options_as_python", "printable"]


#: The fix of an error that no input should cause.
REPORT_BUG = "this is a bug of wnconvert: please report it with the output of --dry-run --json"


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


_OPTION = re.compile(
    r"--(?P<name>[a-z]+(?:-[a-z]+)*)(?: (?P<value>'[^']*'|-?\d+|zero|none|b?float\d+|[A-Z]+))?"
)
_FLAGS = ("allow-nonfinite", "drop-optimizer", "force", "keep-optimizer")


@contextmanager
def options_as_python() -> Iterator[None]:
    """What is raised inside names arguments as Python spells them, not as the command line does.

    >>> try:
    ...     with said_in_python():
    ...         raise ArgumentError("--dim alone says no layers", fix="--layers GLOB, or --zero-rows zero")
    ... except ArgumentError as error:
    ...     print(error.what, "|", error.fix)
    dim=… alone says no layers | layers=…, or zero_rows="zero"
    """
    try:
        yield
    except WnconvertError as error:
        error.what, error.fix = _OPTION.sub(_argument, error.what), _OPTION.sub(_argument, error.fix)
        raise


def _argument(option: re.Match[str]) -> str:
    value = option["value"] or "…"
    if option["name"] in _FLAGS:
        value = "True"
    elif value == "none":
        value = "None"
    elif value.isalnum() and not value.isdigit():
        value = "…" if value.isupper() else f'"{value}"'
    return f"{option['name'].replace('-', '_')}={value}"
