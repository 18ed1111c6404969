"""An error as its user sees it: words on stderr, with ``--json`` an object on stdout, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from wnconvert.cli.terminal import alarm, discard, in_json, mention, put_json
from wnconvert.cli.words import option_meant
from wnconvert.errors import OutputError, WnconvertError
from wnconvert.messages import printable

__all__ = ["failed", "interrupted"]


def failed(error: Exception, *, as_json: bool, piped: bool = False) -> int:
    """Print an error and return the exit code; ``piped``: stdout is that of an output, which gets no JSON."""
    match error:
        case WnconvertError():
            _say(error.lines, error.fix)
            return _ended(error.what, error.where, error.fix, error.exit_code, as_json=as_json, piped=piped)
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.ClickException():
            what, fix = _click_said(error)
            _say([what], fix)
            return _ended(what, "", fix, error.exit_code, as_json=as_json, piped=piped)
        case BrokenPipeError():
            discard(sys.stdout)  # its reader is gone (| head)
            return 0
    import traceback

    traceback.print_exception(error)
    fix = "this is a bug of wnconvert: please report it with the lines above, and those of wnconvert env"
    mention(fix)
    return _ended(f"{type(error).__name__}: {error}", "", fix, 3, as_json=as_json, piped=piped)


def interrupted(*, as_json: bool, piped: bool = False) -> int:
    """Say that the run was ended from outside, and return the exit code."""
    what = "interrupted; nothing is left half written"
    mention(what)
    return _ended(what, "", "", 130, as_json=as_json, piped=piped)


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


def _ended(what: str, where: str, fix: str, exit_code: int, *, as_json: bool, piped: bool) -> int:
    """Print an error as JSON, where that is asked for, and return its exit code."""
    error = {"what": what, "where": where, "fix": fix, "exit_code": exit_code}
    if as_json and piped:
        mention(in_json({"error": error}))
    elif as_json:
        try:
            put_json({"error": error})
        except (OutputError, BrokenPipeError):  # the words are on stderr
            discard(sys.stdout)
    return exit_code
