"""The command line run in this process, as a process of its own would run it.

A process takes 0.2 s to start, and seconds where torch is imported. ``run_here`` gives the command what a
process would have: its arguments, folder, variables, streams (as descriptors, too), warning filters, and
handlers of signals; all of that is put back afterwards. Signals, pipes that close and terminals need a
process.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from unittest import mock

from wnconvert import cli

__all__ = ["Ended", "run_here"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ended:
    """How a command ended; the names are those of ``subprocess.CompletedProcess``."""

    returncode: int
    stdout: str
    stderr: str


def run_here(
    *arguments: str | Path,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
    warn: str = "",
    merged: bool = False,
) -> Ended:
    """Run ``wnconvert`` with these arguments.

    ``warn`` is what PYTHONWARNINGS would be. With ``merged`` stderr goes where stdout goes, in order.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, contextlib.ExitStack() as stack:
        where = folder or Path.cwd()
        stack.enter_context(_modules_of(where))
        stack.enter_context(contextlib.chdir(where) if sys.version_info >= (3, 11) else _chdir(where))
        stack.enter_context(mock.patch.dict(os.environ, variables or {}))
        stack.enter_context(mock.patch.object(sys, "argv", ["wnconvert", *map(str, arguments)]))
        stack.enter_context(mock.patch.object(sys, "path", [*sys.path]))
        stack.enter_context(_warnings(warn))
        stack.enter_context(_signals_and_garbage())
        stack.enter_context(_streams(out, out if merged else err))
        code = _exit_code()
        stack.close()
        return Ended(code, _text(out), _text(err))


def _exit_code() -> int:
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="backslashreplace")


@contextlib.contextmanager
def _chdir(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _modules_of(folder: Path) -> Iterator[None]:
    """Be the script ``wnconvert``; forget what is imported from the folder: the next may have other code."""
    main, before = sys.modules["__main__"], {*sys.modules}
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
    if Path(cli.__file__).is_relative_to(folder.resolve()):
        return  # modules of our own must stay
    for name in {*sys.modules} - before:
        if Path(getattr(sys.modules[name], "__file__", None) or os.devnull).is_relative_to(folder.resolve()):
            del sys.modules[name]


@contextlib.contextmanager
def _warnings(warn: str) -> Iterator[None]:
    with warnings.catch_warnings(), mock.patch.object(sys, "warnoptions", [warn] if warn else []):
        warnings.resetwarnings()
        if warn == "error":
            warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def _signals_and_garbage() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    collects = gc.isenabled()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.unfreeze()
        if collects:
            gc.enable()


@contextlib.contextmanager
def _streams(out: IO[bytes], err: IO[bytes]) -> Iterator[None]:
    """The descriptors 0 to 2 and Python's streams on them, unbuffered, for a while."""
    kept = (sys.stdin, sys.stdout, sys.stderr)
    for stream in kept[1:]:
        stream.flush()
    copies = [os.dup(number) for number in range(3)]
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - as a shell's < /dev/null
        for number, file in enumerate((nothing, out, err)):
            os.dup2(file.fileno(), number)
    sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb", closefd=False))
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(os.fdopen(number, "wb", 0, closefd=False), "utf-8", write_through=True)
        for number in (1, 2)
    )
    ours = (sys.stdin, sys.stdout, sys.stderr)
    try:
        yield
    finally:
        for stream in ours:
            stream.close()  # not the descriptor
        sys.stdin, sys.stdout, sys.stderr = kept
        for number, copy in enumerate(copies):
            os.dup2(copy, number)
            os.close(copy)
