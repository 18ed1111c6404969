"""The commands on files of weights: fold, split, migrate, inspect, compare."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wnconvert.cli.completion import layers, state_dicts
from wnconvert.cli.options import (
    CAST_CHOICES,
    DROPS_OPTIMIZER,
    FIRST_LAYERS,
    FORM_CHOICES,
    JSON,
    NO_PROGRESS,
    PROOFS,
    THREADS,
    TIME_LIMIT,
    VERBOSE,
    WRITING,
    Conversion,
    DTypeChoice,
    dim_of_text,
    epilog,
    errors_as_json,
    globs,
    kinds_option,
    target,
    with_output,
)
from wnconvert.cli.terminal import alarm, fitting_width, mention, mention_json, progress_bar, put, put_json
from wnconvert.heap import keep_large_apart
from wnconvert.messages import printable

if TYPE_CHECKING:
    from wnconvert.cli.output import Output
    from wnconvert.plan.plan import Plan

__all__ = ["FORMAT_CHOICES", "SORT_CHOICES", "compare", "fold", "inspect", "migrate", "split"]


#: The choices of ``inspect --sort`` and ``--format``; a test compares them with the modules that do the work.
SORT_CHOICES = ("name", "form", "rows", "g-min", "g-mean", "g-max", "norm", "ratio")
FORMAT_CHOICES = ("table", "json", "csv", "markdown")


@click.command(
    cls=Conversion, epilog=epilog("wnconvert fold g_02500000 --only generator -o generator.safetensors")
)
@target(".folded")
@click.option(
    "--dtype",
    type=DTypeChoice(CAST_CHOICES),
    help="Cast to this dtype (or fp16, half, bf16 …) with a single rounding; other float tensors of the "
    "state dict are cast too.",
)
@globs("Fold")
@kinds_option(
    "What to fold: weight, spectral, prune; all is these three; spectral-step is spectral norm of ports "
    "that take a step in eval. A layer under several needs all of them."
)
@click.option(
    "--dim",
    callback=dim_of_text,
    metavar="N|none|auto",
    default="auto",
    show_default=True,
    help="The axis that is not summed over, or that spectral norm's u belongs to; auto reads it from shapes.",
)
@click.option(
    "--zero-rows",
    type=click.Choice(["error", "zero"]),
    default="error",
    show_default=True,
    help="What to do with a zero row of v, which has no direction: refuse it, or write zeros.",
)
@click.option(
    "--allow-nonfinite", is_flag=True, help="Write NaN, infinities and overflow instead of refusing them."
)
@DROPS_OPTIMIZER
@click.option(
    "--proof",
    type=click.Choice(PROOFS),
    default="model",
    show_default=True,
    help="What of an ONNX model is run in onnxruntime before it is put in place: the arithmetic of each "
    "layer and the whole model, the layers alone, or nothing.",
)
@TIME_LIMIT
@WRITING
def fold(src: str, out: str | None, **options: Any) -> None:
    """Fold g and v into plain weights.

    SRC is a checkpoint of any kind: safetensors, a file of any version of torch.save, a whole pickled
    module, a TorchScript archive, an exported program (.pt2), a folder of torch.distributed.checkpoint, or
    a folder as on the Hugging Face hub (or its index), whose other files are copied. Every state dict in
    it is folded, in both forms of weight norm. SRC may also be an ONNX model: weights that its graph
    computes from g and v become stored weights, and the rest stays byte for byte; the result is run
    beside the original before it is put in place.
    """
    _load_lightly()
    from wnconvert.verbs.conversion.files import fold_file

    _convert(fold_file, "folded", src, out, **options)


@click.command(cls=Conversion, epilog=epilog("wnconvert split generator.safetensors --like g_02500000"))
@target(".split")
@click.option(
    "--like", type=click.Path(), metavar="REF", help="Use the layers, dims and form of this checkpoint."
)
@click.option(
    "--to",
    type=click.Choice(FORM_CHOICES),
    help="The form to write.  [default: as recorded, or as in REF, else parametrize]",
)
@globs("Split")
@click.option(
    "--dim",
    callback=dim_of_text,
    metavar="N|none",
    default="auto",
    help="With --layers: the axis that is not summed over (0 is torch's default); none or torch's -1 for the "
    "norm of the whole tensor.",
)
@DROPS_OPTIMIZER
@WRITING
def split(src: str, out: str | None, **options: Any) -> None:
    """Split plain weights into g and v.

    This lets you train a folded model further; folding it again gives the same bits. g is the norm of each
    row, correctly rounded, and v the weight itself. A file that wnconvert fold wrote gets its layers back as
    they were; for any other file, name them: --like REF, or --layers with --dim.
    """
    _load_lightly()
    from wnconvert.verbs.conversion.files import split_file

    _convert(split_file, "split", src, out, **options)


@click.command(cls=Conversion, epilog=epilog("wnconvert migrate g_02500000 --to parametrize"))
@target(".parametrize or .legacy")
@click.option(
    "--to",
    type=click.Choice(FORM_CHOICES),
    default="parametrize",
    show_default=True,
    help="parametrize: the names of torch 2.1 and later; legacy: weight_g and weight_v.",
)
@globs("Migrate")
@kinds_option("What to migrate: weight, spectral; all is these two, and what is pruned beneath them.")
@click.option(
    "--drop-optimizer", is_flag=True, help="Leave out optimizer state (if its positions would not fit)."
)
@WRITING
def migrate(src: str, out: str | None, *, to: str, **options: Any) -> None:
    """Rename the keys of old weight norm to those of torch 2.1, or back.

    The names and order of keys become those of torch, the bytes of tensors stay; optimizer state in the file
    stays valid. --kinds spectral does so with spectral norm.
    """
    _load_lightly()
    from wnconvert.verbs.conversion.files import migrate_file

    _convert(migrate_file, to, src, out, to=to, **options)


def _load_lightly() -> None:
    """Have numpy load without the threads of its BLAS, which took 15 ms, and free memory go back at once."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    keep_large_apart()


def _convert(
    verb: Callable[..., Any],
    kind: str,
    src: str,
    out: str | None,
    *,
    output: Output,
    no_progress: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run a verb on a file, or plan it, and print the result."""
    from wnconvert.reports.conversions import plan_line, plan_text, result_line, result_text
    from wnconvert.storage.files import kind_of
    from wnconvert.verbs.conversion.places.piped import goes_to_stdout
    from wnconvert.verbs.conversion.targets import target_of

    piped = goes_to_stdout(src, out)
    if piped:
        output = replace(output, on_stderr=True)
        if output.json:
            errors_as_json(click.get_current_context(), mention_json)
    in_place = options["in_place"]
    target = None if piped else target_of(src, out, kind, as_folder=options["as_folder"], in_place=in_place)
    shown = "stdout" if target is None else str(target.path)
    most = None if options.pop("list") else FIRST_LAYERS
    if dry_run:
        plan = verb(src, out, dry_run=True, **options)
        there = target is not None and kind_of(target.path) is not None
        exists = there and plan.writes and not (options["force"] or in_place)
        output.notes((*plan.notes, *([f"{shown} exists: --force replaces it"] if exists else [])))
        output.result(plan.to_dict, lambda: plan_text(plan, shown, most), lambda: plan_line(plan, shown))
        return
    said: set[str] = set()

    def before(plan: Plan) -> None:  # what is lost, or left random, is said before it is
        said.update(plan.notes)
        output.notes(plan.notes)

    with progress_bar(src, shown=output.steps and not no_progress) as progress:
        result = verb(src, out, progress=progress, on_plan=before, **options)
    output.notes(tuple(note for note in result.notes if note not in said))
    output.result(result.to_dict, lambda: result_text(result, most), lambda: result_line(result))


@click.command(epilog=epilog("wnconvert inspect ckpt.safetensors --full --sort ratio --top 20"))
@click.argument("src", nargs=-1, required=True, type=click.Path())
@click.option(
    "--full",
    is_flag=True,
    help="Read every float tensor: for ‖v‖, g/‖v‖, NaN, zero rows, overflow and untouched layers.",
)
@click.option(
    "--check",
    is_flag=True,
    help="As --full; exit code 1 if there are NaN, infinities, zero rows, half pairs or empty tensors.",
)
@click.option(
    "--all", "all_weights", is_flag=True, help="Show every plain weight of two or more dimensions too."
)
@click.option(
    "--layers",
    metavar="GLOB",
    multiple=True,
    shell_complete=layers,
    help="Show only layers (of --tensors, tensors) whose names match (repeatable).",
)
@click.option("--tensors", is_flag=True, help="List every tensor in the place of the layers.")
@click.option(
    "--metadata", is_flag=True, help="Show what a safetensors file or an ONNX model says of itself."
)
@click.option("--sort", type=click.Choice(SORT_CHOICES), help="Sort by a column, largest first.")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show only the first N rows.")
@click.option(
    "--format",
    type=click.Choice(FORMAT_CHOICES),
    default="table",
    show_default=True,
    help="Output format.",
)
@JSON
@click.option(
    "--wide", is_flag=True, help="Show long names in full, even if they are wider than the terminal."
)
@click.option(
    "--plot", type=click.Path(), metavar="FILE", help="Draw the magnitudes to a .png, .svg or .pdf file."
)
@click.option("-f", "--force", is_flag=True, help="Replace the picture if it exists.")
@VERBOSE
@NO_PROGRESS
def inspect(
    src: tuple[str, ...],
    *,
    sort: str | None,
    top: int | None,
    json: bool,
    wide: bool,
    plot: str | None,
    check: bool,
    full: bool,
    force: bool,
    no_progress: bool,
    **options: Any,
) -> int:
    """Show what is in a checkpoint and whether it is healthy.

    It shows the form, the magnitudes of the layers, and what fold, split and migrate would do. Only g is
    read, kilobytes of a file of gigabytes; plain weights of an ONNX model are read and shown too. Of several
    files (a training run) it shows one row for each layer, starting with those that moved most.
    """
    _load_lightly()
    from wnconvert.reports.inspections import arranged, healths_text, inspection_text, moves_text
    from wnconvert.verbs.inspection.inspect import inspect_file

    full, style = full or check, options.pop("format")
    if json := json or style == "json":
        errors_as_json(click.get_current_context())
    if sort in ("norm", "ratio") and not full:
        raise click.UsageError(f"--sort {sort} needs --full, which reads v")
    if len(src) > 1:
        _check_of_several(sort, lists=not json and (options["tensors"] or options["metadata"]))
    if plot is not None:
        from wnconvert.reports.plots import check_picture

        check_picture(plot, force=force)
    found = []
    for path in src:
        with progress_bar(path, shown=not no_progress) as progress:
            found.append(inspect_file(path, full=full, progress=progress, **options))
    if len(found) == 1:
        found = [arranged(found[0], sort=sort, top=top)]
    drawn: tuple[str, ...] = ()
    if plot is not None:  # before the report: an error has stdout, and its JSON, for itself
        from wnconvert.reports.plots import plot_magnitudes

        drawn = (f"the picture is in {printable(plot)}", *plot_magnitudes(found, plot, force=force))
    width = fitting_width(wide=wide)
    if json:
        every = [item.to_dict() for item in found]
        put_json(every[0] if len(every) == 1 else {"schema": 1, "files": every})
    elif len(found) == 1:
        put(inspection_text(found[0], style=style, width=width, alarm=alarm))
    else:
        put(moves_text(found, style=style, top=top, width=width))
        if full and style != "csv":
            put(healths_text(found))
    for note in drawn:
        mention(note)
    return 0 if not check or all(item.health for item in found) else 1


def _check_of_several(sort: str | None, *, lists: bool) -> None:
    """Raise for what has no place in the table of several files."""
    if sort is not None:
        raise click.UsageError(
            "--sort is for one file; layers of several files are sorted by how far they moved"
        )
    if lists:
        raise click.UsageError("--tensors and --metadata are for one file; with --json also for several")


@click.command(epilog=epilog("wnconvert compare g_02500000 generator.safetensors"))
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--rtol", type=click.FloatRange(min=0), help="Numbers are equal if |a-b| <= atol + rtol·|b|.")
@click.option(
    "--atol", type=click.FloatRange(min=0), help="See --rtol.  [default of both: 1 ulp of the coarser dtype]"
)
@click.option(
    "--strip-prefix",
    metavar="PREFIX",
    multiple=True,
    help="Remove this prefix from the names of either side, e.g. module. (repeatable).",
)
@click.option(
    "--only",
    metavar="PATH",
    multiple=True,
    shell_complete=state_dicts,
    help="Compare this state dict, on whichever side has it; given twice: A's, then B's.",
)
@click.option(
    "--layers",
    metavar="GLOB",
    multiple=True,
    shell_complete=layers,
    help="Compare only tensors whose names match (repeatable).",
)
@click.option(
    "--exclude",
    metavar="GLOB",
    multiple=True,
    shell_complete=layers,
    help="Leave out tensors whose names match (repeatable).",
)
@THREADS
@click.option(
    "--wide", is_flag=True, help="Show long names in full, even if they are wider than the terminal."
)
@with_output
@VERBOSE
@NO_PROGRESS
def compare(a: str, b: str, *, output: Output, wide: bool, no_progress: bool, **options: Any) -> int:
    """Check whether two checkpoints hold the same weights.

    They may differ in form, container and nesting: weight-normalized layers are compared by the weights that
    they compute. Exit code 0: equal, 1: different.
    """
    _load_lightly()
    from wnconvert.reports.comparisons import comparison_line, comparison_text
    from wnconvert.verbs.comparison.compare import compare_files

    with progress_bar(f"{Path(a).name} {Path(b).name}", shown=output.steps and not no_progress) as progress:
        found = compare_files(a, b, progress=progress, **options)
    output.notes(found.notes)
    output.result(
        found.to_dict,
        lambda: comparison_text(found, fitting_width(wide=wide), alarm),
        lambda: comparison_line(found, alarm),
    )
    return 0 if found else 1
