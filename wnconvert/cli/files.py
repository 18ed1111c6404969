"""The commands on files of weights: fold, split, migrate, inspect, compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wnconvert.cli.options import (
    DROPS_OPTIMIZER,
    FORM_CHOICES,
    JSON,
    NO_PROGRESS,
    THREADS,
    WRITING,
    dim_of_text,
    epilog,
    globs,
    target,
)
from wnconvert.cli.terminal import fitting_width, progress_bar, put, say

__all__ = ["FORMAT_CHOICES", "SORT_CHOICES", "compare", "fold", "inspect", "migrate", "split"]


#: The choices of ``inspect --sort`` and ``--format``; a test compares them with the modules that do the work.
SORT_CHOICES = ("name", "form", "rows", "g-min", "g-mean", "g-max", "norm", "ratio")
FORMAT_CHOICES = ("table", "json", "csv", "markdown")


@click.command(epilog=epilog("wnconvert fold g_02500000 --only generator -o generator.safetensors"))
@target(".folded")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="Cast to this dtype with a single rounding; other float tensors of the state dict are cast too.",
)
@globs("Fold")
@click.option(
    "--dim",
    callback=dim_of_text,
    metavar="N|none|auto",
    default="auto",
    show_default=True,
    help="The axis that is not summed over; auto reads it from the shape of g.",
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
@WRITING
def fold(src: str, out: str | None, **options: Any) -> None:
    """Fold g and v into plain weights.

    SRC is a checkpoint of any kind: safetensors, a file of any version of torch.save, a whole pickled
    module, a TorchScript archive, or a folder as on the Hugging Face hub (or its index), whose other files
    are copied. Every state dict in it is folded, in both forms of weight norm. SRC may also be an ONNX
    model: weights that its graph computes from g and v become stored weights, and the rest stays byte for
    byte; the result is run beside the original before it is put in place.
    """
    from wnconvert.verbs.conversion.files import fold_file

    _convert(fold_file, "folded", src, out, **options)


@click.command(epilog=epilog("wnconvert split generator.safetensors --like g_02500000"))
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
    from wnconvert.verbs.conversion.files import split_file

    _convert(split_file, "split", src, out, **options)


@click.command(epilog=epilog("wnconvert migrate g_02500000 --to parametrize"))
@target(".parametrize or .legacy")
@click.option(
    "--to",
    type=click.Choice(FORM_CHOICES),
    default="parametrize",
    show_default=True,
    help="parametrize: the names of torch 2.1 and later; legacy: weight_g and weight_v.",
)
@globs("Migrate")
@click.option(
    "--drop-optimizer", is_flag=True, help="Leave out optimizer state (if its positions would not fit)."
)
@WRITING
def migrate(src: str, out: str | None, *, to: str, **options: Any) -> None:
    """Rename the keys of old weight norm to those of torch 2.1, or back.

    The names and order of keys become those of torch, the bytes of tensors stay; optimizer state in the file
    stays valid.
    """
    from wnconvert.verbs.conversion.files import migrate_file

    _convert(migrate_file, to, src, out, to=to, **options)


def _convert(
    verb: Callable[..., Any],
    kind: str,
    src: str,
    out: str | None,
    *,
    as_json: bool,
    quiet: bool,
    no_progress: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run a verb on a file, or plan it, and print the result."""
    from wnconvert.reports.conversions import plan_text, result_text
    from wnconvert.verbs.conversion.targets import default_output

    output = str(default_output(src, kind)) if out is None else out
    if dry_run:
        plan = verb(src, output, dry_run=True, **options)
        there = (
            ()
            if options["force"] or not Path(output).exists()
            else (f"{output} exists: --force replaces it",)
        )
        say((*plan.notes, *there), quiet=quiet)
        put(json.dumps(plan.to_dict(), indent=1) if as_json else plan_text(plan, output), quiet=quiet)
        return
    said: tuple[str, ...] = ()
    if Path(src).is_dir():  # what its class would leave random is said before it is written
        said = verb(src, output, dry_run=True, **options).notes
        say(said, quiet=quiet)
    with progress_bar(src, shown=not (quiet or no_progress)) as progress:
        result = verb(src, output, progress=progress, **options)
    say(tuple(note for note in result.notes if note not in said), quiet=quiet)
    put(json.dumps(result.to_dict(), indent=1) if as_json else result_text(result), quiet=quiet)


@click.command(epilog=epilog("wnconvert inspect ckpt.safetensors --full --sort ratio --top 20"))
@click.argument("src", nargs=-1, required=True, type=click.Path())
@click.option(
    "--full", is_flag=True, help="Read v too, for ‖v‖, g/‖v‖, zero rows, overflow and untouched layers."
)
@click.option(
    "--all", "all_weights", is_flag=True, help="Show every plain weight of two or more dimensions too."
)
@click.option(
    "--layers", metavar="GLOB", multiple=True, help="Show only layers whose names match (repeatable)."
)
@click.option("--sort", type=click.Choice(SORT_CHOICES), help="Sort by a column, largest first.")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show only the first N layers.")
@click.option(
    "--format",
    "style",
    type=click.Choice(FORMAT_CHOICES),
    default="table",
    show_default=True,
    help="Output format.",
)
@click.option(
    "--wide", is_flag=True, help="Show long names in full, even if they are wider than the terminal."
)
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw the magnitudes to a .png or .svg file.")
@NO_PROGRESS
def inspect(
    src: tuple[str, ...],
    *,
    sort: str | None,
    top: int | None,
    style: str,
    wide: bool,
    plot: str | None,
    no_progress: bool,
    **options: Any,
) -> None:
    """Show what is in a checkpoint and whether it is healthy.

    It shows the form, the magnitudes of the layers, and what fold, split and migrate would do. Only g is
    read, kilobytes of a file of gigabytes; plain weights of an ONNX model are read and shown too. Of several
    files (a training run) it shows one row for each layer, starting with those that moved most.
    """
    from wnconvert.reports.inspections import arranged, inspection_text, moves_text
    from wnconvert.verbs.inspection.inspect import inspect_file

    if sort is not None and len(src) > 1:
        raise click.UsageError(
            "--sort is for one file; layers of several files are sorted by how far they moved"
        )
    if sort in ("norm", "ratio") and not options["full"]:
        raise click.UsageError(f"--sort {sort} needs --full, which reads v")
    found = []
    for path in src:
        with progress_bar(path, shown=not no_progress) as progress:
            found.append(inspect_file(path, progress=progress, **options))
    if len(found) == 1:
        found = [arranged(found[0], sort=sort, top=top)]
    width = fitting_width(wide=wide)
    if style == "json":
        data = (
            found[0].to_dict()
            if len(found) == 1
            else {"schema": 1, "files": [item.to_dict() for item in found]}
        )
        put(json.dumps(data, indent=1))
    elif len(found) == 1:
        put(inspection_text(found[0], style=style, width=width))
    else:
        put(moves_text(found, style=style, top=top, width=width))
    if plot is not None:
        from wnconvert.reports.plots import plot_magnitudes

        plot_magnitudes(found, plot)


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
    help="Compare this state dict, on whichever side has it; given twice: A's, then B's.",
)
@click.option(
    "--layers", metavar="GLOB", multiple=True, help="Compare only tensors whose names match (repeatable)."
)
@click.option(
    "--exclude", metavar="GLOB", multiple=True, help="Leave out tensors whose names match (repeatable)."
)
@THREADS
@JSON
@click.option(
    "--wide", is_flag=True, help="Show long names in full, even if they are wider than the terminal."
)
@click.option("--quiet", is_flag=True, help="Print only errors; the exit code has the result.")
@NO_PROGRESS
def compare(
    a: str, b: str, *, as_json: bool, wide: bool, quiet: bool, no_progress: bool, **options: Any
) -> int:
    """Check whether two checkpoints hold the same weights.

    They may differ in form, container and nesting: weight-normalized layers are compared by the weights that
    they compute. Exit code 0: equal, 1: different.
    """
    from wnconvert.reports.comparisons import comparison_text
    from wnconvert.verbs.comparison.compare import compare_files

    with progress_bar(f"{Path(a).name} {Path(b).name}", shown=not (quiet or no_progress)) as progress:
        found = compare_files(a, b, progress=progress, **options)
    say(found.notes, quiet=quiet)
    text = (
        json.dumps(found.to_dict(), indent=1) if as_json else comparison_text(found, fitting_width(wide=wide))
    )
    put(text, quiet=quiet)
    return 0 if found else 1
