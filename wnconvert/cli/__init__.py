"""The command line: the commands, and how a run of one ends: exit code, errors in the user's words.

terminal  data on stdout, the rest on stderr
options   options that commands share
files     fold, split, migrate, inspect, compare
export    export, check
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

import click

from wnconvert import __version__
from wnconvert.cli.export import check, export
from wnconvert.cli.files import compare, fold, inspect, migrate, split
from wnconvert.cli.options import EXIT_CODES
from wnconvert.cli.terminal import discard, say_error
from wnconvert.errors import WnconvertError

__all__ = ["cli", "main"]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EXIT_CODES
)
@click.version_option(__version__, prog_name="wnconvert")
def cli() -> None:
    """Convert and inspect weight-normalized PyTorch checkpoints and models (w = g·v/‖v‖).

    Files are data: nothing in a checkpoint is imported or run, and nothing in it is lost. Only export and
    check run code: that of the model that you name.
    """


for _command in (fold, split, migrate, inspect, compare, export, check):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line and exit: errors in the user's words, never a traceback but for a bug."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it is closed; the next file that is opened must not take its number
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the end
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # a warning of a library says nothing to a user of this tool
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # nohup has it ignored
            signal.signal(ending, _terminated)
    gc.disable()  # what a short process makes goes with it; to look for cycles took 20 ms
    code = _run()
    gc.freeze()
    sys.exit(code)


def _run() -> int:
    try:
        code = cli(standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        return _interrupted()
    except SystemExit:  # so click alone ends, where a reader is gone, and with the code for "they differ"
        return _failed(BrokenPipeError())
    except Exception as error:  # noqa: BLE001 - the last resort, and it says so
        # torch, while it is imported, can swallow a Ctrl-C and fail at what was not imported then.
        return _interrupted() if _signals else _failed(error)
    return code if isinstance(code, int) else 0


def _failed(error: Exception) -> int:
    """Say what went wrong; the exit code."""
    match error:
        case WnconvertError():
            say_error(error.lines, error.fix)
            return error.exit_code
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.ClickException():
            context = getattr(error, "ctx", None)
            say_error([error.format_message()], f"{context.command_path if context else 'wnconvert'} --help")
            return error.exit_code
        case BrokenPipeError():
            discard(sys.stdout)  # its reader is gone (| head)
            return 0
    traceback.print_exception(error)
    click.echo("this is a bug of wnconvert: please report the lines above", err=True)
    return 3


def _interrupted() -> int:
    click.echo("interrupted; nothing is left half written", err=True)
    return 130


#: Those that asked for an end.
_signals: list[int] = []


def _terminated(number: int, _: object) -> NoReturn:
    """End as after Ctrl-C: what was begun is cleaned up."""
    _signals.append(number)
    raise KeyboardInterrupt
