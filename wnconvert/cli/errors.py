"""An error as its user sees it: words on stderr, with ``--json`` an object on stdout, and an exit code.

``report`` prints that object, where it is asked for.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click

from wnconvert.cli.terminal import Report, alarm, discard, mention
from wnconvert.cli.words import option_meant
from wnconvert.errors import InputError, OutputError, WnconvertError
from wnconvert.messages import printable

__all__ = ["failed", "interrupted"]


def failed(error: Exception, report: Report | None = None) -> int:
    """Print an error and return the exit code."""
    match error:
        case WnconvertError():
            _say(error.lines, error.fix)
            return _ended(error.what, error.where, error.fix, error.exit_code, report)
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.ClickException():
            what, fix = _click_said(error)
            _say([what], fix)
            return _ended(what, "", fix, error.exit_code, report)
        case BrokenPipeError():
            discard(sys.stdout)  # its reader is gone (| head)
            return 0
    if (said := _refused_by_system(error)) is not None:
        return failed(said, report)
    import traceback

    traceback.print_exception(error)
    fix = "this is a bug of wnconvert: please report it with the lines above, and those of wnconvert env"
    mention(fix)
    return _ended(f"{type(error).__name__}: {error}", "", fix, 3, report)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
#: What the loader says of a library for which there is no memory.
_NOT_LOADED = ("failed to map segment", "annot allocate memory")
_ELSEWHERE = "free some space; TMPDIR=FOLDER names another folder for temporary files"


def _refused_by_system(error: Exception) -> WnconvertError | None:
    """What the system does not give in words: memory, threads, room, names; None for what must be a bug."""
    unloaded = isinstance(error, ImportError) and any(words in str(error) for words in _NOT_LOADED)
    if isinstance(error, MemoryError) or unloaded:
        detail = "" if unloaded else str(error)
        what = f"not enough memory ({detail})" if detail else "not enough memory"
        return InputError(what, fix="--threads 1 takes less; else free some, or raise the limit (ulimit -v)")
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return InputError("no more threads can be started", fix="raise the limit (ulimit -u), or end others")
    if isinstance(error, ValueError) and "maximum supported dimension" in str(error):  # NumPy 1 has 32
        return InputError("a tensor has more axes than this NumPy can hold", fix="pip install 'numpy>=2'")
    if type(error).__module__ == "google.protobuf.message":
        fix = "download or export the model again, or free some memory"
        return InputError(f"a part of the ONNX model cannot be read or made ({error})", fix=fix)
    if isinstance(error, OSError) and error.errno not in (None, errno.EBADF):
        return _refused_call(error)
    return None


def _refused_call(error: OSError) -> WnconvertError:
    """A call of the system that failed, in words."""
    where = "" if error.filename is None else os.fsdecode(error.filename)
    match error.errno:
        case errno.ENOENT if not where and not _current_folder():
            return InputError("the current folder was deleted", fix="cd to one that is there")
        case errno.ENOENT if not where:  # in the words of Python's tempfile
            return InputError(f"{error.strerror}", fix=_ELSEWHERE)
        case errno.ENAMETOOLONG:
            return InputError(
                "its name is too long for this system", where=where, fix="choose a shorter name"
            )
        case code if code in _NO_ROOM:
            return OutputError("the disk is full", where=where, fix=_ELSEWHERE)
        case code if code in _TOO_MANY_FILES:
            return InputError("too many files are open", where=where, fix="raise the limit (ulimit -n 4096)")
    return InputError(
        f"the system refuses ({error.strerror})",
        where=where,
        fix="look at this path, its disk, and your rights",
    )


def _current_folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - whether there is one
    except OSError:
        return ""


def interrupted(report: Report | None = None) -> int:
    """Say that the run was ended from outside, and return the exit code."""
    what = "interrupted; nothing is left half written"
    mention(what)
    return _ended(what, "", "", 130, report)


def _click_said(error: click.ClickException) -> tuple[str, str]:
    """An error of click's own in its words, and where they are explained, or what was meant."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    seen = f"{context.command_path if context else 'wnconvert'} --help"
    if isinstance(error, click.NoSuchOption) and (meant := option_meant(error)):
        return error.message, f"did you mean {meant}? See {seen}"
    return error.format_message(), seen


def _say(lines: Sequence[str], fix: str) -> None:
    """Print an error, line by line, and what to do about it, to stderr."""
    first, *others = map(printable, lines)
    mention("\n  ".join([f"{alarm('error:')} {first}", *others]))
    if fix:
        mention(f"fix: {printable(fix)}")


def _ended(what: str, where: str, fix: str, exit_code: int, report: Report | None) -> int:
    """Print an error as JSON, where that is asked for, and return its exit code."""
    if report is not None:
        error = {"what": what, "where": where, "fix": fix, "exit_code": exit_code}
        try:
            report({"error": error})
        except (OutputError, BrokenPipeError):  # the words are on stderr
            discard(sys.stdout)
    return exit_code
