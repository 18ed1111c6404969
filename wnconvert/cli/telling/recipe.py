"""The command recipe: which norms of a model fold into which layers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import click

from wnconvert.cli.options import epilog, with_output
from wnconvert.cli.runs.start import check_torch
from wnconvert.cli.terminal import StepLines, fitting_width, put, stdout_to_stderr

if TYPE_CHECKING:
    from wnconvert.cli.output import Output
    from wnconvert.verbs.recipes.result import RecipeReport

__all__ = ["recipe"]


@click.command(
    epilog=epilog(
        "wnconvert recipe torchvision.models:resnet50 -o resnet50.toml \\\n"
        "      --input 'x=float32[1,3,224,224]'"
    )
)
@click.argument("model")
@click.option(
    "-o",
    "--out",
    "--output",
    "out",
    type=click.Path(),
    metavar="OUT",
    help="TOML file to write.  [default: the recipe goes to stdout]",
)
@click.option(
    "--kwargs",
    metavar="JSON|@FILE",
    help="Arguments of the factory, or settings of a FOLDER's config, as a JSON object.",
)
@click.option(
    "--trust", is_flag=True, help="Load a pickled module, and let it run code. Only for files that you trust."
)
@click.option(
    "--input",
    "inputs",
    metavar="NAME=DTYPE[SHAPE]",
    multiple=True,
    help="An input as of export, e.g. 'x=float32[1,3,224,224]' or 'mel=float32[1,80,T]'; a letter is a "
    "dynamic size.  [default: those proposed for a FOLDER]",
)
@click.option(
    "--inputs",
    "data",
    type=click.Path(),
    metavar="FILE",
    multiple=True,
    help="Prove on your own inputs too: an .npz with each by its name, or an .npy of one (repeatable).",
)
@click.option(
    "--range",
    "ranges",
    metavar="T=LOW..HIGH",
    multiple=True,
    help="The sizes of a letter, e.g. T=16..400.  [default: 16..128]",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Number of inputs to prove the recipe on.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the drawn numbers."
)
@click.option("-f", "--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("-n", "--dry-run", is_flag=True, help="Write nothing.")
@click.option("--wide", is_flag=True, help="Show long names whole, however wide the terminal is.")
@with_output
def recipe(model: str, out: str | None, *, output: Output, **options: Any) -> int:
    """Tell which norms of a model fold into which layers, and prove it.

    MODEL is package.module:factory or path/to/file.py:factory, which is run, or a FOLDER as of export; its
    weights do not matter. A forward is followed operator by operator. Then the model, with drawn numbers, is
    run in float64 unfolded and folded by the recipe, and both must be equal to 1e-11. `wnconvert fold CKPT
    --recipe OUT` folds any checkpoint of this model, without its code.
    """
    check_torch()

    from wnconvert.formats.recipes import recipe_text
    from wnconvert.reports.text.recipes import recipe_line, recipe_report_text
    from wnconvert.verbs.shared.recipes import write_recipe

    built = {name: options.pop(name) for name in ("kwargs", "trust")}
    force, dry_run, wide = (options.pop(name) for name in ("force", "dry_run", "wide"))
    written = None if dry_run else out
    _check(written, options, force=force)
    report = _traced(model, built, options, output)
    if written is not None:
        write_recipe(report.recipe, written, force=force)
    output.notes(report.notes)
    if out is None and not (dry_run or output.json):
        put(recipe_text(report.recipe).removesuffix("\n"))
        return 0
    output.result(
        report.to_dict,
        lambda: recipe_report_text(report, written, fitting_width(wide=wide)),
        lambda: recipe_line(report, written),
    )
    return 0


def _check(written: str | None, options: Mapping[str, Any], *, force: bool) -> None:
    """Raise for a mistake in the options before the model's code runs, which may take long."""
    from wnconvert.storage.files import output_path
    from wnconvert.storage.staging import check_target
    from wnconvert.verbs.models.proof.samples import samples_of
    from wnconvert.verbs.models.proof.signatures import signature_of

    if options["inputs"]:  # those of a folder are known when its class is
        signature = signature_of(options["inputs"], options["ranges"], data=options["data"])
        samples_of(signature, options["samples"], options["seed"])
    if written is not None:
        check_target(output_path(written), force=force)


def _traced(model: str, built: Mapping[str, Any], options: Mapping[str, Any], output: Output) -> RecipeReport:
    """The report on a model, its steps shown as they go."""
    from wnconvert.reports.text.exports import step_text
    from wnconvert.verbs.models.loading.prepared import prepared
    from wnconvert.verbs.recipes.recipe import trace_recipe

    lines = StepLines()

    def progress(step: Any) -> None:
        if output.steps:
            (lines.begin if step.seconds is None else lines.end)(step_text(step))

    with stdout_to_stderr(), contextlib.closing(lines):  # the model's own prints are not part of the report
        fed = {name: options[name] for name in ("inputs", "ranges", "data")}
        made = prepared(model, progress=progress, **fed, **built)
        asked = {**options, "inputs": made.inputs, "ranges": made.ranges}
        return trace_recipe(cast(Any, made.module), made_by=model, progress=progress, **asked)
