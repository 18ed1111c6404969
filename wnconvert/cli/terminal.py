"""What is said to a terminal: data on stdout; notes, errors and progress on stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import click

from wnconvert.errors import OutputError
from wnconvert.messages import printable

__all__ = [
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
    """The width that tables have to fit: the terminal's, or what COLUMNS asks for; none in a pipe."""
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    return shutil.get_terminal_size().columns if fits and not wide else None


def say(notes: tuple[str, ...], *, quiet: bool) -> None:
    """Print notes to stderr."""
    for note in () if quiet else notes:
        mention(f"note: {printable(note)}")


def mention(text: str) -> None:
    """Print a line to stderr; where nobody can read it the work goes on."""
    try:
        click.echo(text, err=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Have what is written to a stream go nowhere: Python must not fail at it again when it ends."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def put(text: str, *, quiet: bool = False) -> None:
    """Print to stdout, where a full disk is the user's affair and no bug; OUT is written by then."""
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
    """A bar on stderr, where that is a terminal, for whatever takes longer than a second."""
    if not (shown and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from tqdm import tqdm

    with tqdm(desc=Path(label).name, unit="B", unit_scale=True, delay=1, leave=False) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """What code of others prints meanwhile, in Python or in C, goes to stderr: stdout is for the report."""
    from wnconvert.verbs.streams import redirected  # which `--help` does not need

    sys.stdout.flush()
    with redirected(1, 2), contextlib.redirect_stdout(sys.stderr):
        yield


def say_error(what: str, fix: str) -> None:
    """Print an error, and what to do about it, to stderr."""
    lines = what.split("\n  ")  # as errors list items; any other line break stands in a name
    click.echo("\n  ".join(printable(line) for line in ("error: " + lines[0], *lines[1:])), err=True)
    if fix:
        click.echo(f"fix: {printable(fix)}", err=True)
