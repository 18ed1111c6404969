"""The commands export and check, on models and ONNX files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from wnconvert.cli.completion import state_dicts
from wnconvert.cli.options import CLEAN, NO_RECORD, TIME_LIMIT, epilog, with_options, with_output
from wnconvert.cli.runs.pages import FORCE_PAGE, HTML_PAGE, PageFile
from wnconvert.cli.runs.start import check_torch
from wnconvert.cli.terminal import StepLines, alarm, fitting_width, stdout_to_stderr
from wnconvert.errors import ArgumentError, OutputError

if TYPE_CHECKING:
    from wnconvert.cli.output import Output
    from wnconvert.reports.html.page import Page
    from wnconvert.verbs.models.proof.report import ExportReport

__all__ = ["EXPORTER_CHOICES", "check", "export"]


#: The choices of ``--exporter``; a test compares them with those of the module.
EXPORTER_CHOICES = ("auto", "dynamo", "torchscript")


_MODEL = with_options(
    click.option(
        "--weights",
        type=click.Path(),
        metavar="CKPT",
        help="Load the weights of this checkpoint, of any kind and form.",
    ),
    click.option(
        "--kwargs",
        metavar="JSON|@FILE",
        help="Arguments of the factory, or settings of a FOLDER's config, as a JSON object.",
    ),
    click.option(
        "--only",
        metavar="PATH",
        shell_complete=state_dicts,
        help="Take this one of several state dicts in CKPT, e.g. generator.",
    ),
    click.option(
        "--strip-prefix",
        metavar="PREFIX",
        multiple=True,
        help="Remove this prefix from the names in CKPT, e.g. module. (repeatable).",
    ),
    click.option(
        "--trust",
        is_flag=True,
        help="Load a pickled module, or any .pt2 or TorchScript archive, and let it run code. Only for files "
        "that you trust.",
    ),
)
_FED = with_options(
    click.option(
        "--input",
        "inputs",
        metavar="NAME=DTYPE[SHAPE]",
        multiple=True,
        help="An input, e.g. 'mel=float32[1,80,T]' or 'ids=int64[1,L]<100'; a letter is a dynamic size. "
        "'mel:x=…' is forward's mel, and x in the ONNX model. Behind the shape its values: '=0,1,0', '=L' "
        "(the size L), '=0..1' (drawn between), '=@FILE.npz' (an example).  [default: those proposed for a "
        "FOLDER]",
    ),
    click.option(
        "--inputs",
        "data",
        type=click.Path(),
        metavar="FILE",
        multiple=True,
        help="Compare on your own inputs too: an .npz with each by its name, or an .npy of one (repeatable).",
    ),
    click.option(
        "--range",
        "ranges",
        metavar="T=LOW..HIGH",
        multiple=True,
        help="The sizes of a letter, e.g. T=16..400.  [default: 16..128]",
    ),
    click.option(
        "--output-name",
        "outputs",
        metavar="NAME",
        multiple=True,
        help="Name the outputs, in order (repeatable).",
    ),
)
_PROOF = with_options(
    click.option(
        "--rtol",
        type=click.FloatRange(min=0),
        default=1e-3,
        show_default=True,
        help="Equal means |onnx-torch| <= atol + rtol·|torch|.",
    ),
    click.option("--atol", type=click.FloatRange(min=0), default=1e-5, show_default=True, help="See --rtol."),
    click.option(
        "--min-snr",
        type=click.FloatRange(min=0, min_open=True),
        metavar="DB",
        help="Each sample must have this SNR too, in decibels, e.g. 100.",
    ),
    click.option(
        "--outliers",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        default=0.0,
        show_default=True,
        help="So many of the elements may be further off, e.g. 1e-5; needs --min-snr.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=1),
        default=4,
        show_default=True,
        help="Number of inputs to compare on: of the least, the largest and odd sizes.",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the inputs."
    ),
    TIME_LIMIT,
    click.option(
        "--require-folded",
        is_flag=True,
        help="Exit with 1 if the ONNX model computes a weight of stored tensors at every run.",
    ),
)
_REPORTING = with_options(
    click.option("--wide", is_flag=True, help="Show long names whole, however wide the terminal is."),
    with_output,
)


@click.command(
    epilog=epilog(
        "wnconvert export models.py:Generator -o gan.onnx --weights g_02500000 --only generator \\\n"
        "      --input 'mel=float32[1,80,T]' --range T=16..400"
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
    help="ONNX file to write.  [required, but for --list-inputs]",
)
@click.option(
    "--list-inputs",
    is_flag=True,
    help="List the arguments of forward, and a text for each that is needed, and export nothing.",
)
@_MODEL
@_FED
@click.option(
    "--opset", type=click.IntRange(min=7), metavar="N", help="ONNX opset.  [default: the exporter's]"
)
@click.option(
    "--exporter",
    type=click.Choice(EXPORTER_CHOICES),
    default="auto",
    show_default=True,
    help="torch's newer exporter (dynamo) or its older one; auto: the older where the newer fails, or leaves "
    "what --require-folded forbids.",
)
@click.option(
    "--constants",
    is_flag=True,
    help="Evaluate weights that the exporter leaves to be computed at every run in a way that no rule knows, "
    "in float64, and store them, rounded once.",
)
@click.option("--external-data", is_flag=True, help="Write the weights to a file beside OUT.")
@_PROOF
@click.option("--keep-failed", is_flag=True, help="Keep a model that is not equal, with .failed in its name.")
@NO_RECORD
@click.option(
    "--card",
    type=click.Path(),
    metavar="FILE.md",
    help="Write a model card for the hub too: the weights, their SHA-256, the proof.",
)
@click.option("-f", "--force", is_flag=True, help="Replace OUT, and the card and the page, if they exist.")
@CLEAN
@HTML_PAGE
@_REPORTING
def export(model: str, out: str | None, *, list_inputs: bool, **options: Any) -> int:
    """Export a model to ONNX with weight norm folded, and prove that it is equal.

    MODEL is package.module:factory or path/to/file.py:factory, which is run; a FOLDER whose config.json names
    a class of transformers or diffusers; or the file of a .pt2 exported program or a TorchScript archive. The
    unfolded module in torch is compared with OUT in onnxruntime, at other sizes than the exported ones. Exit
    code 1: they differ, and OUT is not written.
    """
    check_torch()
    page = PageFile(options.pop("html"), options["force"])
    page.check()
    built, shown = _taken(options, _BUILT), _taken(options, _SHOWN)
    if list_inputs:
        return _list_inputs(model, built, **shown)
    if out is None:
        raise click.MissingParameter(param_hint="'-o' / '--out' / '--output'", param_type="option")
    _check_texts(options)

    from wnconvert.storage.staging import check_target
    from wnconvert.verbs.export.cards import check_card
    from wnconvert.verbs.export.export import export_onnx
    from wnconvert.verbs.export.request import model_path

    _check_other(out, model, built["weights"])
    check_target(model_path(out), force=options["force"])
    if options["card"] is not None:
        check_card(options["card"], model_path(out), force=options["force"])

    def run(module: Any, fed: Mapping[str, Any], progress: Callable[[Any], None]) -> Any:
        return export_onnx(module, out, progress=progress, **fed, **options)

    return _prove(run, model, built, _taken(options, _FED_BY), page=page, **shown)


@click.command(
    epilog=epilog("wnconvert check gan.onnx models.py:Generator --weights g.pt --input 'mel=float32[1,80,T]'")
)
@click.argument("path", type=click.Path(), metavar="FILE")
@click.argument("model")
@_MODEL
@click.option(
    "--recipe",
    type=click.Path(),
    metavar="RECIPE",
    help="Of a folded checkpoint: what told its norms.  [default: a forward of MODEL tells it]",
)
@_FED
@_PROOF
@HTML_PAGE
@FORCE_PAGE
@_REPORTING
def check(path: str, model: str, **options: Any) -> int:
    """Check that an ONNX model, or a folded checkpoint, computes the same as a module.

    MODEL and the options are those of export. The module in torch is compared with FILE: an ONNX model in
    onnxruntime; or a copy of the module into which a folded checkpoint is loaded, and each of its layers too.
    Then --weights is the checkpoint from before the fold. Exit code 0: they are equal, 1: they differ.
    """
    check_torch()
    page = PageFile(options.pop("html"), options.pop("force"))
    page.check()
    built, shown = _taken(options, _BUILT), _taken(options, _SHOWN)
    _check_texts(options)

    from wnconvert.storage.checkpoint import open_checkpoint

    recipe = options.pop("recipe")
    run = _check_graph if open_checkpoint(path).onnx is not None else _check_folded
    if run is _check_graph and recipe is not None:
        raise ArgumentError("--recipe is of a folded checkpoint, and FILE is an ONNX model")
    if run is _check_folded:
        options |= {"recipe": recipe, "only": built["only"], "strip_prefix": built["strip_prefix"]}
        del options["timeout"]
        if options.pop("require_folded"):
            raise ArgumentError("--require-folded is of ONNX models, and FILE is a folded checkpoint")
    fed = _taken(options, _FED_BY)
    return _prove(partial(run, path, options), model, built, fed, page=page, **shown)


def _check_graph(
    path: str,
    options: Mapping[str, Any],
    module: Any,
    fed: Mapping[str, Any],
    progress: Callable[[Any], None],
) -> Any:
    """Check an ONNX model."""
    from wnconvert.verbs.export.check import check_onnx

    return check_onnx(path, module, progress=progress, **fed, **options)


def _check_folded(
    path: str,
    options: Mapping[str, Any],
    module: Any,
    fed: Mapping[str, Any],
    progress: Callable[[Any], None],
) -> Any:
    """Check a folded checkpoint, by a recipe of its model if none is given."""
    from wnconvert.verbs.export.folds import check_checkpoint
    from wnconvert.verbs.recipes.recipe import recipe_of

    told = options["recipe"]
    if told is None:
        told = recipe_of(module, progress=progress, **fed)
    return check_checkpoint(path, module, progress=progress, **fed, **{**options, "recipe": told})


#: The options that choose the model, what it is fed with, and what is printed.
_BUILT = ("weights", "kwargs", "only", "strip_prefix", "trust")
_FED_BY = ("inputs", "ranges", "data")
_SHOWN = ("output", "wide")


def _taken(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Take some of the options out, and return them."""
    return {name: options.pop(name) for name in names}


def _check_other(out: str, *read: str | None) -> None:
    """Raise ``OutputError`` if the ONNX file would replace the model or its weights."""
    for path in filter(None, read):
        if os.path.realpath(path) == os.path.realpath(out):
            raise OutputError("this is the file to export", where=out, fix="choose another -o")


def _check_texts(options: Mapping[str, Any]) -> None:
    """Raise for a mistake in the options before the model's code runs, which may take long."""
    from wnconvert.verbs.models.proof.inputs.texts import check_outputs
    from wnconvert.verbs.models.proof.outputs import Leniency
    from wnconvert.verbs.models.proof.samples import samples_of
    from wnconvert.verbs.models.proof.signatures import signature_of

    if options["inputs"]:  # those of a folder are known when its class is
        signature = signature_of(options["inputs"], options["ranges"], data=options["data"])
        samples_of(signature, options["samples"], options["seed"])
    check_outputs(options["outputs"])
    Leniency(options["min_snr"], options["outliers"])


def _list_inputs(model: str, built: Mapping[str, Any], *, output: Output, wide: bool) -> int:
    """Print what the model takes."""
    from wnconvert.reports.text.exports import inputs_line, inputs_text
    from wnconvert.verbs.models.loading.prepared import inputs_of

    with stdout_to_stderr():  # the model's own prints are not part of the list
        found = inputs_of(model, kwargs=built["kwargs"], trust=built["trust"])
    output.notes(found.notes)
    output.result(
        found.to_dict,
        lambda: inputs_text(found, fitting_width(wide=wide)),
        lambda: inputs_line(found),
    )
    return 0


def _prove(
    run: Callable[[Any, Mapping[str, Any], Callable[[Any], None]], Any],
    model: str,
    built: Mapping[str, Any],
    fed: Mapping[str, Any],
    *,
    page: PageFile,
    output: Output,
    wide: bool,
) -> int:
    """Build the model, export or check it, and print the steps and the result."""
    from dataclasses import replace

    from wnconvert.reports.text.exports import proof_line, proof_text, step_text
    from wnconvert.verbs.models.loading.prepared import prepared

    lines = StepLines()

    def progress(step: Any) -> None:
        if output.steps:
            (lines.begin if step.seconds is None else lines.end)(step_text(step))

    # The model's own prints are not part of the report.
    with stdout_to_stderr(), contextlib.closing(lines):
        made = prepared(model, progress=progress, **fed, **built)
        report = run(made.module, {**fed, "inputs": made.inputs, "ranges": made.ranges}, progress)
    report = replace(report, steps=(*made.steps, *report.steps), notes=(*made.notes, *report.notes))
    page.write(lambda: _page(report))
    output.notes(report.notes)
    output.result(
        report.to_dict,
        lambda: proof_text(report, fitting_width(wide=wide), alarm),
        lambda: proof_line(report, alarm),
    )
    return 0 if report else 1


def _page(report: ExportReport) -> Page:
    from wnconvert.reports.html.proofs import proof_page

    return proof_page(report)
