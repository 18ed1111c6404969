"""Output: data on stdout; notes, errors and progress on stderr.

Names in files may hold anything: what could control a terminal is spelled out here, where texts leave.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import click

from wnconvert.errors import OutputError
from wnconvert.messages import printable

__all__ = [
    "Report",
    "StepLines",
    "alarm",
    "discard",
    "fitting_width",
    "help_width",
    "in_json",
    "mention",
    "mention_json",
    "progress_bar",
    "put",
    "put_json",
    "say",
    "stdout_to_stderr",
]


#: Prints data as JSON.
Report: TypeAlias = Callable[[Mapping[str, Any]], None]
#: The columns of what does not tell its own, and the most of a page of help.
_USUAL, _MOST_HELP = 80, 100
#: The most characters of a progress bar, and of the name before it.
_BAR = 80
_BAR_NAME = 28


def fitting_width(*, wide: bool) -> int | None:
    """The width that tables must fit: the terminal's, or COLUMNS; None in a pipe."""
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    return _columns() if fits and not wide else None


def _columns() -> int:
    """What ``shutil.get_terminal_size`` says, which comes with all that compresses."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return int(said)
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no stdout, or no terminal
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or _USUAL  # type: ignore[union-attr]
    return _USUAL


def help_width() -> int:
    """The width of help: the terminal's, between 50 and 98, as click has it."""
    return max(min(_columns(), _MOST_HELP) - 2, 50)


#: Where a text of what is wrong begins and ends: two characters that Unicode leaves to programs.
_ALARM, _CALM = "\ufdd0", "\ufdd1"


def alarm(text: str) -> str:
    """A text marked as wrong: it leaves in the colour of that where colours are wanted."""
    return f"{_ALARM}{text}{_CALM}"


def _safe(text: str) -> str:
    """A text as it may leave: in lines, and with no control over a terminal but the colour of ``alarm``."""
    parts = re.split(f"{_ALARM}([^{_CALM}]*){_CALM}", text)
    safe = ["\n".join(map(printable, part.split("\n"))) for part in parts]
    safe[1::2] = [click.style(part, fg="red", bold=True) for part in safe[1::2]]
    return "".join(safe)


def _colour() -> bool | None:
    """Whether colours are wanted (no-color.org, force-color.org); None: on a terminal they are."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return True if os.environ.get("FORCE_COLOR", "0") not in ("", "0") else None


def say(notes: tuple[str, ...]) -> None:
    """Print notes to stderr, a line each."""
    for note in notes:
        mention(f"note: {printable(note)}")


def mention(text: str, end: str = "\n", *, over: str = "") -> None:
    """Print a line to stderr, or write it ``over`` another; if that fails, the work goes on."""
    line = f"\r{_safe(text).ljust(len(over))}" if over else _safe(text)
    try:
        click.echo(line + end, nl=False, err=True, color=_colour())
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Point a broken stream at /dev/null, so that Python does not fail on it again at exit."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def put(text: str) -> None:
    """Print to stdout; a full disk is an error of the user's, not a bug. OUT has been written by then."""
    try:
        click.echo(_safe(text), color=_colour())
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)  # what it holds still would be written at exit
        raise OutputError(f"it cannot be written ({error.strerror})", where="stdout") from error


def in_json(data: Mapping[str, Any]) -> str:
    """Data as it is printed."""
    from json import dumps  # which `--help` does not need

    return dumps(data, indent=1)


def put_json(data: Mapping[str, Any]) -> None:
    """Print data to stdout, as ``put`` prints a text."""
    put(in_json(data))


def mention_json(data: Mapping[str, Any]) -> None:
    """Print data to stderr."""
    mention(in_json(data))


@contextlib.contextmanager
def progress_bar(label: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, if that is a terminal, for work that takes longer than a second."""
    if not (shown and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from tqdm import tqdm

    from wnconvert.reports.tables import shortened

    name = shortened(printable(Path(label).name), _BAR_NAME)
    width = os.get_terminal_size(sys.stderr.fileno()).columns or _BAR  # 0: it does not know
    with tqdm(desc=name, unit="B", unit_scale=True, delay=1, leave=False, ncols=min(width, _BAR)) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


class StepLines:
    """Lines on stderr about steps: one as a step begins, and one when it is done.

    On a terminal the second is written over the first; ``close`` ends a line that is still open.
    """

    def __init__(self) -> None:
        self._open = ""

    def begin(self, text: str) -> None:
        """Say that a step begins."""
        if sys.stderr.isatty():
            self._open = text[: _columns() - 1]
            mention(self._open, end="")
        else:
            mention(text)

    def end(self, text: str) -> None:
        """Say what came of the step."""
        mention(text, over=self._open)
        self._open = ""

    def close(self) -> None:
        """End the line of a step that failed, so that its error has its own."""
        if self._open:
            mention("")
        self._open = ""


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send the output of other people's code, in Python or in C, to stderr: stdout is for the report."""
    from wnconvert.verbs.shared.streams import redirected  # which `--help` does not need

    sys.stdout.flush()
    with redirected(1, 2), contextlib.redirect_stdout(sys.stderr):
        yield
