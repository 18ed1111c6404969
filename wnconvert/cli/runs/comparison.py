"""Two files compared: checkpoints by their weights, ONNX models by what they compute too."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wnconvert.cli.errors import say_error
from wnconvert.cli.options import TIME_LIMIT, with_options
from wnconvert.cli.terminal import StepLines, alarm, fitting_width, progress_bar
from wnconvert.errors import ArgumentError

if TYPE_CHECKING:
    from wnconvert.cli.output import Output
    from wnconvert.cli.runs.pages import PageFile
    from wnconvert.reports.html.page import Page
    from wnconvert.verbs.comparison.result import Comparison
    from wnconvert.verbs.export.pairs.result import OnnxComparison
    from wnconvert.verbs.fleet.comparing import FolderComparison

__all__ = ["BY_RUNNING", "compare_many", "compare_one"]


#: What two ONNX models are run on, and how near their outputs must be.
BY_RUNNING = with_options(
    click.option(
        "--input",
        "inputs",
        metavar="NAME=DTYPE[SHAPE]",
        multiple=True,
        help="Of ONNX models: an input of A, as export has them, e.g. 'ids=int64[1,L]<100'; 'mel:x=…' is A's "
        "mel, and x in B (repeatable).  [default: all that A declares]",
    ),
    click.option(
        "--inputs",
        "data",
        type=click.Path(),
        metavar="FILE",
        multiple=True,
        help="Of ONNX models: compare on your own inputs, an .npz with each by its name, or an .npy of one "
        "(repeatable). Without --input nothing else is drawn.",
    ),
    click.option(
        "--range",
        "ranges",
        metavar="T=LOW..HIGH",
        multiple=True,
        help="Of ONNX models: the sizes of a dynamic axis, e.g. T=16..400.  [default: 16..128]",
    ),
    click.option(
        "--min-snr",
        type=click.FloatRange(min=0, min_open=True),
        metavar="DB",
        help="Of ONNX models: each sample must have this SNR too, in decibels, e.g. 100.  [default of floats "
        "of 16 bits: 45, in place of --rtol and --atol]",
    ),
    click.option(
        "--outliers",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        default=0.0,
        show_default=True,
        help="Of ONNX models: so many of the elements may be further off; needs --min-snr.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=0),
        default=4,
        show_default=True,
        help="Of ONNX models: number of inputs to draw; 0 runs nothing, and compares weights alone.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Of ONNX models: seed of the inputs.",
    ),
    TIME_LIMIT,
)
#: What is said of checkpoints alone, and what of ONNX models alone.
_OF_CHECKPOINTS = ("strip_prefix", "only", "layers", "exclude", "recipe")
_OF_GRAPHS = ("inputs", "data", "ranges", "min_snr", "outliers", "samples", "seed", "timeout")


def compare_many(a: str, b: str, *, output: Output, page: PageFile, options: Mapping[str, Any]) -> int | None:
    """Compare two folders of several checkpoints, and print what came of it; None where they are none."""
    if not (Path(a).is_dir() or "://" in a) or not (Path(b).is_dir() or "://" in b):  # which most are
        return None
    from wnconvert.verbs.fleet.comparing import compare_folders, holds_several

    if not holds_several(a, b):
        return None
    from wnconvert.reports.text.fleets import folders_line, folders_text

    found = compare_folders(a, b, **_without(options, _OF_GRAPHS, "ONNX models"))
    page.write(lambda: _page_of_folders(found))
    output.result(found.to_dict, lambda: folders_text(found), lambda: folders_line(found))
    for item in found.files:
        if item.error is not None:
            say_error(item.error)
    return found.exit_code


def compare_one(
    a: str,
    b: str,
    *,
    output: Output,
    page: PageFile,
    wide: bool,
    no_progress: bool,
    options: Mapping[str, Any],
) -> int:
    """Compare two files, print what differs, and write the page that is asked for; the exit code."""
    from wnconvert.storage.checkpoint import open_checkpoint

    width = fitting_width(wide=wide)
    if any(open_checkpoint(each).onnx is not None for each in (a, b)):
        return _graphs(a, b, output, page, width, _without(options, _OF_CHECKPOINTS, "checkpoints"))
    given = _without(options, _OF_GRAPHS, "ONNX models")
    with progress_bar(f"{Path(a).name} {Path(b).name}", shown=output.steps and not no_progress) as progress:
        from wnconvert.verbs.comparison.compare import compare_files

        found = compare_files(a, b, progress=progress, **given)
    page.write(lambda: _page(found))
    _put_weights(found, output, width)
    return 0 if found else 1


def _without(options: Mapping[str, Any], names: tuple[str, ...], those: str) -> dict[str, Any]:
    """The options but for some that are of other files. Raises ``UsageError`` if one of them is given."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in names and source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP"):
            raise ArgumentError(f"{parameter.opts[0]} is of {those}", fix=f"leave {parameter.opts[0]} out")
    return {name: value for name, value in options.items() if name not in names}


def _page(found: Comparison) -> Page:
    from wnconvert.reports.html.comparisons import comparison_page

    return comparison_page(found)


def _page_of_folders(found: FolderComparison) -> Page:
    from wnconvert.reports.html.comparisons import folders_page

    return folders_page(found)


def _page_of_models(found: OnnxComparison) -> Page:
    from wnconvert.reports.html.models import models_page

    return models_page(found)


def _put_weights(found: Comparison, output: Output, width: int | None) -> None:
    """Print the comparison of two checkpoints."""
    from wnconvert.reports.text.comparisons import comparison_line, comparison_text

    output.notes(found.notes)
    output.result(
        found.to_dict, lambda: comparison_text(found, width, alarm), lambda: comparison_line(found, alarm)
    )


def _graphs(  # noqa: PLR0917 -- as ``compare_one``
    a: str, b: str, output: Output, page: PageFile, width: int | None, options: Mapping[str, Any]
) -> int:
    """Compare two ONNX models."""
    from wnconvert.reports.text.comparisons import models_line, models_text
    from wnconvert.reports.text.exports import step_text
    from wnconvert.verbs.export.pairs.compare import compare_onnx

    lines = StepLines()

    def progress(step: Any) -> None:
        if output.steps:
            (lines.begin if step.seconds is None else lines.end)(step_text(step))

    with contextlib.closing(lines):
        found = compare_onnx(a, b, progress=progress, **options)
    page.write(lambda: _page_of_models(found))
    output.notes(found.notes)
    output.result(found.to_dict, lambda: models_text(found, width, alarm), lambda: models_line(found, alarm))
    return 0 if found else 1
