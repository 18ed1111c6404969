"""The commands loads, on folders, and clean, on stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wnconvert.cli.options import epilog, with_output
from wnconvert.cli.terminal import alarm, fitting_width, stdout_to_stderr
from wnconvert.messages import counted

if TYPE_CHECKING:
    from wnconvert.cli.output import Output

__all__ = ["clean", "loads"]


@click.command(epilog=epilog("wnconvert loads wav2vec2.folded/"))
@click.argument("folder", type=click.Path())
@click.option(
    "--wide", is_flag=True, help="Show long names in full, even if they are wider than the terminal."
)
@with_output
def loads(folder: str, *, output: Output, wide: bool) -> int:
    """Check whether from_pretrained finds all tensors of a folder.

    The class that config.json names is built by transformers or diffusers, without its weights, and names and
    shapes are compared. What is missing would be random. No code in the folder is run. Exit code 0: all are
    there and no others, 1: tensors are missing, unexpected or of another shape.
    """
    from wnconvert.reports.text.loads import loads_line, loads_text
    from wnconvert.verbs.loads.loads import loads_folder

    with stdout_to_stderr():  # what the libraries print is not part of the report
        report = loads_folder(folder)
    output.notes(report.notes)
    output.result(
        report.to_dict,
        lambda: loads_text(report, fitting_width(wide=wide), alarm),
        lambda: loads_line(report, alarm),
    )
    return 0 if report else 1


@click.command(epilog=epilog("wnconvert clean s3://bucket/models --dry-run"))
@click.argument("address", type=click.Path())
@click.option("-n", "--dry-run", is_flag=True, help="Show what is unfinished, and abort nothing.")
@with_output
def clean(address: str, *, output: Output, dry_run: bool) -> None:
    """Abort what killed runs left in a store.

    A run that is killed leaves an unfinished upload, which nobody sees and which is paid for. Those of
    ADDRESS and of all below it are aborted, of any tool, also while they are being sent. Beside files,
    --clean of fold, split and migrate does it.
    """
    from wnconvert.verbs.conversion.places.cleaning import clean_store

    found = clean_store(address, dry_run=dry_run)
    what = "is unfinished" if dry_run else "is aborted"
    output.result(
        lambda: {"schema": 1, "uploads": list(found), "aborted": not dry_run},
        lambda: "\n".join(f"an upload of {each} {what}" for each in found) or "nothing is unfinished",
        lambda: f"{counted(len(found), 'upload')} {'unfinished' if dry_run else 'aborted'}",
    )
