"""Output: data on stdout; notes, errors and progress on stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import click

from wnconvert.errors import OutputError
from wnconvert.messages import printable

__all__ = [
    "StepLines",
    "discard",
    "fitting_width",
    "mention",
    "progress_bar",
    "put",
    "say",
    "say_error",
    "stdout_to_stderr",
]


def fitting_width(*, wide: bool) -> int | None:
    """The width that tables must fit: the terminal's, or COLUMNS; None in a pipe."""
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    return shutil.get_terminal_size().columns if fits and not wide else None


def say(notes: tuple[str, ...], *, quiet: bool) -> None:
    """Print notes to stderr."""
    for note in () if quiet else notes:
        mention(f"note: {printable(note)}")


def mention(text: str, end: str = "\n") -> None:
    """Print a line to stderr; if that fails, the work goes on."""
    try:
        click.echo(text + end, nl=False, err=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Point a broken stream at /dev/null, so that Python does not fail on it again at exit."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def put(text: str, *, quiet: bool = False) -> None:
    """Print to stdout; a full disk is an error of the user's, not a bug. OUT has been written by then."""
    if quiet:
        return
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"it cannot be written ({error.strerror})", where="stdout") from error


@contextlib.contextmanager
def progress_bar(label: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, if that is a terminal, for work that takes longer than a second."""
    if not (shown and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from tqdm import tqdm

    with tqdm(desc=Path(label).name, unit="B", unit_scale=True, delay=1, leave=False) as bar:

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
            self._open = text[: shutil.get_terminal_size().columns - 1]
            mention(self._open, end="")
        else:
            mention(text)

    def end(self, text: str) -> None:
        """Say what came of the step."""
        mention(f"\r{text.ljust(len(self._open))}" if self._open else text)
        self._open = ""

    def close(self) -> None:
        """End the line of a step that failed, so that its error has its own."""
        if self._open:
            mention("")
        self._open = ""


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send the output of other people's code, in Python or in C, to stderr: stdout is for the report."""
    from wnconvert.verbs.streams import redirected  # which `--help` does not need

    sys.stdout.flush()
    with redirected(1, 2), contextlib.redirect_stdout(sys.stderr):
        yield


def say_error(lines: Sequence[str], fix: str) -> None:
    """Print an error, line by line, and what to do about it, to stderr."""
    first, *others = map(printable, lines)
    click.echo("\n  ".join([f"error: {first}", *others]), err=True)
    if fix:
        click.echo(f"fix: {printable(fix)}", err=True)
