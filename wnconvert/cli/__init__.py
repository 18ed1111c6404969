"""The command line: the commands, how errors are printed, and exit codes.

terminal  data on stdout, the rest on stderr
options   options shared by several commands
files     fold, split, migrate, inspect, compare
export    export, check
loads     loads
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
from wnconvert.cli.loads import loads
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

    Files are data: nothing in a checkpoint is imported or run. Everything in it is kept, unless an option or
    a note says otherwise. Only export and check run code: that of the model you name.
    """


for _command in (fold, split, migrate, inspect, compare, export, check, loads):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line and exit; errors are in the user's words, and only a bug prints a traceback."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it is closed, and the next file to be opened must not get its number
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the end
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # warnings of libraries mean nothing to a user of this tool
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(ending, _terminated)
    gc.disable()  # a short process needs no search for cycles, which took 20 ms
    code = _run()
    gc.freeze()
    sys.exit(code)


def _run() -> int:
    try:
        code = cli(standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        return _interrupted()
    except SystemExit:  # click exits so if stdout's reader is gone; its code would mean "different"
        return _failed(BrokenPipeError())
    except Exception as error:  # noqa: BLE001 - reported as a bug
        # An import of torch can swallow a Ctrl-C, and then fail because a part is not imported.
        return _interrupted() if _signals else _failed(error)
    return code if isinstance(code, int) else 0


def _failed(error: Exception) -> int:
    """Print an error and return the exit code."""
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


#: The signals received that end the run.
_signals: list[int] = []


def _terminated(number: int, _: object) -> NoReturn:
    """End as after Ctrl-C: unfinished files are removed."""
    _signals.append(number)
    raise KeyboardInterrupt
