"""The command loads, on folders."""

from __future__ import annotations

import json

import click

from wnconvert.cli.options import JSON, epilog
from wnconvert.cli.terminal import fitting_width, put, say, stdout_to_stderr

__all__ = ["loads"]


@click.command(epilog=epilog("wnconvert loads wav2vec2.folded/"))
@click.argument("folder", type=click.Path())
@JSON
@click.option(
    "--wide", is_flag=True, help="Show long names in full, even if they are wider than the terminal."
)
@click.option("--quiet", is_flag=True, help="Print only errors; the exit code has the result.")
def loads(folder: str, *, as_json: bool, wide: bool, quiet: bool) -> int:
    """Check whether from_pretrained finds all tensors of a folder.

    The class that config.json names is built by transformers or diffusers, without its weights, and names and
    shapes are compared. What is missing would be random. No code in the folder is run. Exit code 0: all are
    there and no others, 1: tensors are missing, unexpected or of another shape.
    """
    from wnconvert.reports.loads import loads_text
    from wnconvert.verbs.loads.loads import loads_folder

    with stdout_to_stderr():  # what the libraries print is not part of the report
        report = loads_folder(folder)
    say(report.notes, quiet=quiet)
    text = json.dumps(report.to_dict(), indent=1) if as_json else loads_text(report, fitting_width(wide=wide))
    put(text, quiet=quiet)
    return 0 if report else 1
