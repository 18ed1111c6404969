"""The command line: the commands, how errors are printed, and exit codes.

terminal     data on stdout, the rest on stderr; colours, and the progress bar
output       the result of a command: all of it, its last line, or JSON
completion   what a shell offers for --only and --layers
options      options shared by several commands
words        usual words that are not commands, and help VERB
errors       errors in words and as JSON
runs         what a command does with one file, or with many
files        fold, split, migrate, inspect, compare
export       export, check
modernize    modernize
telling      loads, clean, env, recipe
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import NoReturn

import click

from wnconvert import __version__
from wnconvert.cli.errors import failed, interrupted
from wnconvert.cli.export import check, export
from wnconvert.cli.files import compare, fold, inspect, migrate, split
from wnconvert.cli.modernize import modernize
from wnconvert.cli.options import EXIT_CODES
from wnconvert.cli.telling.environment import env
from wnconvert.cli.telling.loads import clean, loads
from wnconvert.cli.telling.recipe import recipe
from wnconvert.cli.terminal import help_width, put_json
from wnconvert.cli.words import Verbs, help_command
from wnconvert.signals import on_endings

__all__ = ["cli", "main"]


@click.group(
    cls=Verbs,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "auto_envvar_prefix": "WNCONVERT",
    },
    epilog=EXIT_CODES,
)
@click.version_option(__version__, "-V", "--version", prog_name="wnconvert", allow_from_autoenv=False)
def cli() -> None:
    """Convert and inspect weight-normalized PyTorch checkpoints and models (w = g·v/‖v‖).

    Files are data: nothing in a checkpoint is imported or run. Everything in it is kept, unless an option or
    a note says otherwise. Only export, check and recipe run code: that of the model you name.
    """


for _command in (
    fold,
    split,
    migrate,
    inspect,
    compare,
    export,
    check,
    recipe,
    loads,
    clean,
    modernize,
    env,
    help_command,
):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line and exit; errors are in the user's words, and only a bug prints a traceback."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it is closed, and the next file to be opened must not get its number
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the end
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # warnings of libraries mean nothing to a user of this tool
    if isinstance(sys.stdout, io.TextIOWrapper):  # which on Windows may lack a character of a table
        sys.stdout.reconfigure(errors="replace")
    gc.disable()  # a short process needs no search for cycles, which took 20 ms
    code = _run()
    on_endings(signal.SIG_IGN)  # the work is done, and its result is known
    gc.freeze()
    sys.exit(code)


def _run() -> int:
    # What a command line that cannot be parsed asks for is in its words alone.
    asked = {"report": put_json if "--json" in sys.argv[1:] else None}
    try:
        on_endings(_terminated)
        code = cli(standalone_mode=False, obj=asked, terminal_width=help_width())
    except (click.Abort, KeyboardInterrupt):
        return interrupted(asked["report"])
    except SystemExit as ended:
        # click exits so after a completion, and if stdout's reader is gone: that must not mean "different".
        return failed(BrokenPipeError()) if ended.code else 0
    except Exception as error:  # noqa: BLE001 - reported as a bug
        # An import of torch can swallow a Ctrl-C, and then fail because a part is not imported.
        return interrupted(asked["report"]) if _signals else failed(error, asked["report"])
    return code if isinstance(code, int) else 0


#: The signals received that end the run.
_signals: list[int] = []


def _terminated(number: int, _: object) -> NoReturn:
    """End as after Ctrl-C: unfinished files are removed."""
    _signals.append(number)
    raise KeyboardInterrupt
