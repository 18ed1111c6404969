"""An error as its user sees it: words on stderr, with ``--json`` an object on stdout, and an exit code.

``report`` prints that object, where it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from wnconvert.cli.terminal import Report, alarm, discard, mention
from wnconvert.cli.words import option_meant
from wnconvert.errors import OutputError, WnconvertError
from wnconvert.messages import printable
from wnconvert.verbs.shared.refusals import refused_by_system

__all__ = ["failed", "interrupted", "say_error"]


def failed(error: Exception, report: Report | None = None) -> int:
    """Print an error and return the exit code."""
    match error:
        case WnconvertError():
            say_error(error)
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
    if (said := refused_by_system(error)) is not None:
        return failed(said, report)
    import traceback

    traceback.print_exception(error)
    fix = "this is a bug of wnconvert: please report it with the lines above, and those of wnconvert env"
    mention(fix)
    return _ended(f"{type(error).__name__}: {error}", "", fix, 3, report)


def say_error(error: WnconvertError) -> None:
    """Print an error to stderr, and what to do about it."""
    _say(error.lines, error.fix)


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
