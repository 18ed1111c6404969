"""The command modernize, on code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from wnconvert.cli.options import FORM_CHOICES, epilog, with_output
from wnconvert.cli.terminal import alarm

if TYPE_CHECKING:
    from wnconvert.cli.output import Output

__all__ = ["RULE_CHOICES", "modernize"]


#: The groups of rules; a test compares them with those that exist.
RULE_CHOICES = ("weight", "spectral")


@click.command(epilog=epilog("wnconvert modernize src/ train.py --write"))
@click.argument("src", nargs=-1, required=True, type=click.Path())
@click.option(
    "--diff", is_flag=True, help="Print what changes, also with --write or --check.  [default: without these]"
)
@click.option("-w", "--write", is_flag=True, help="Write the files: all of them, or none.")
@click.option("--check", is_flag=True, help="Exit with 1 if anything is left to do: for CI.")
@click.option(
    "--to",
    type=click.Choice(FORM_CHOICES),
    default="parametrize",
    show_default=True,
    help="The form that the code shall use.",
)
@click.option("--compat", is_flag=True, help="Write code that runs on torch before 2.1 too.")
@click.option(
    "--rules",
    type=click.Choice(RULE_CHOICES),
    multiple=True,
    default=("weight",),
    show_default=True,
    help="Migrate weight norm, or spectral norm (repeatable).",
)
@click.option(
    "--include",
    metavar="GLOB",
    multiple=True,
    help="Take folders of this name too, such as build, site-packages, third_party (repeatable).",
)
@click.option(
    "--verify",
    metavar="MODULE:FACTORY",
    help="Run this factory, seen from the first SRC, from the old and the new code; compare the models.",
)
@click.option(
    "--input",
    "inputs",
    metavar="NAME=DTYPE[SHAPE]",
    multiple=True,
    help="An input of that model, e.g. 'mel=float32[1,80,T]', as of export (repeatable).",
)
@click.option(
    "--range",
    "ranges",
    metavar="T=LOW..HIGH",
    multiple=True,
    help="The sizes of a letter.  [default: 16..128]",
)
@click.option(
    "--weights",
    type=click.Path(),
    metavar="CKPT",
    help="Load this checkpoint into both.  [default: of a seed]",
)
@click.option("--only", metavar="PATH", help="Take this one of several state dicts in CKPT, e.g. generator.")
@with_output
def modernize(src: tuple[str, ...], *, diff: bool, check: bool, output: Output, **options: Any) -> int:
    """Migrate code from torch.nn.utils.weight_norm to the parametrize API, or back.

    SRC are Python files, notebooks, and folders of them. Names are followed through imports; what cannot be
    decided is listed with what to do. Only --verify runs code, and nothing is written without --write. A line
    with the comment "# wnconvert: keep" stays as it is.
    """
    from wnconvert.reports.text.modernizations import modernize_line, modernize_text
    from wnconvert.verbs.modernization.modernize import modernize_code

    report = modernize_code(*src, **options)
    shown = diff or not (options["write"] or check)
    output.result(
        report.to_dict,
        lambda: modernize_text(report, alarm, diff=shown, places=check),
        lambda: modernize_line(report, alarm),
    )
    differs = report.proof is not None and not report.proof
    return 1 if differs or (check and not report) else 0
