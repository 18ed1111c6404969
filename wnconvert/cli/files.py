"""The commands on files of weights: fold, split, migrate, inspect, compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from wnconvert.cli.completion import layers, state_dicts
from wnconvert.cli.options import (
    CAST_CHOICES,
    DROPS_OPTIMIZER,
    FRAMEWORK_CHOICES,
    JSON,
    NAMED_FORM_CHOICES,
    NO_PROGRESS,
    NO_RECORD,
    PROOFS,
    THREADS,
    TIME_LIMIT,
    TOLD,
    VERBOSE,
    WRITING,
    Conversion,
    DTypeChoice,
    dim_of_text,
    epilog,
    globs,
    kinds_option,
    target,
    with_output,
)
from wnconvert.cli.runs.comparison import BY_RUNNING, compare_many, compare_one
from wnconvert.cli.runs.conversion import convert_files
from wnconvert.cli.runs.fleets import FLEET, FLEET_TO_READ
from wnconvert.cli.runs.inspection import show_inspections
from wnconvert.cli.runs.models import BY_MODEL, told_by_model
from wnconvert.cli.runs.pages import FORCE_PAGE, HTML_PAGE, PageFile
from wnconvert.cli.runs.start import load_lightly

if TYPE_CHECKING:
    from wnconvert.cli.output import Output

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
    "that take a step in eval; of an ONNX model also unit (rows of length 1), norm (batch norm) and "
    "standardize. A layer under several needs all of them."
)
@click.option(
    "--recipe",
    type=click.Path(),
    metavar="FILE",
    help="A file that tells what keys do not: which norms fold into which layers, and with which eps.",
)
@TOLD
@NO_RECORD
@click.option(
    "--keep-norms",
    is_flag=True,
    help="Keep the keys of folded norms, with numbers that do nothing: the same class loads them strictly.",
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
    "--requantize",
    is_flag=True,
    help="Store the weights of an ONNX model whose v is stored as codes (int8) as codes again, by the same "
    "scheme, and say how far they are.",
)
@click.option(
    "--proof",
    type=click.Choice(PROOFS),
    default="model",
    show_default=True,
    help="What of an ONNX model is run in onnxruntime before it is put in place: the arithmetic of each "
    "layer and the whole model, the layers alone, or nothing.",
)
@TIME_LIMIT
@click.option(
    "--constants",
    is_flag=True,
    help="Evaluate weights that an ONNX model computes in a way that no rule knows, in float64, and store "
    "them, rounded once.",
)
@click.option(
    "--require-folded",
    is_flag=True,
    help="Exit with 1, and write nothing, if an ONNX model would still compute a weight at every run.",
)
@BY_MODEL
@FLEET
@WRITING
def fold(src: tuple[str, ...], out: str | None, **options: Any) -> int:
    """Fold g and v into plain weights.

    SRC is a checkpoint of any kind: safetensors, a file of any version of torch.save, a whole pickled
    module, a TorchScript archive, an exported program (.pt2), a folder of torch.distributed.checkpoint, an
    .npz file, flax's .msgpack, Paddle's .pdparams, or a folder as on the Hugging Face hub (or its index),
    whose other files are copied. Every state dict in
    it is folded, in both forms of weight norm. SRC may also be an ONNX model: weights that its graph
    computes from g and v become stored weights, and the rest stays byte for byte; the result is run
    beside the original before it is put in place.
    """
    load_lightly()
    from wnconvert.verbs.conversion.files.fold import fold_file

    return convert_files("fold", fold_file, src, out, **told_by_model(src, options))


@click.command(cls=Conversion, epilog=epilog("wnconvert split generator.safetensors --like g_02500000"))
@target(".split")
@click.option(
    "--like", type=click.Path(), metavar="REF", help="Use the layers, dims and form of this checkpoint."
)
@click.option(
    "--to",
    type=click.Choice(NAMED_FORM_CHOICES),
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
@FLEET
@WRITING
def split(src: tuple[str, ...], out: str | None, **options: Any) -> int:
    """Split plain weights into g and v.

    This lets you train a folded model further; folding it again gives the same bits. g is the norm of each
    row, correctly rounded, and v the weight itself. A file that wnconvert fold wrote gets its layers back as
    they were; for any other file, name them: --like REF, or --layers with --dim.
    """
    load_lightly()
    from wnconvert.verbs.conversion.files.split import split_file

    return convert_files("split", split_file, src, out, **options)


@click.command(cls=Conversion, epilog=epilog("wnconvert migrate g_02500000 --to parametrize"))
@target(".parametrize or .legacy")
@click.option(
    "--to",
    type=click.Choice((*NAMED_FORM_CHOICES, *FRAMEWORK_CHOICES)),
    default="parametrize",
    show_default=True,
    help="parametrize: the names of torch 2.1 and later; legacy: weight_g and weight_v; those of other "
    "frameworks where names alone change. A framework (torch, flax, nnx, mlx): the whole file as it has it, "
    "the axes of kernels too.",
)
@click.option(
    "--framework",
    type=click.Choice(FRAMEWORK_CHOICES),
    help="The framework whose layout the source has, where neither names nor the file tell it.",
)
@click.option(
    "--layout",
    multiple=True,
    metavar="GLOB=KIND",
    help="What tensors are whose axes nothing tells: linear, embedding, convolution, transposed, "
    "transpose-kernel (flax), as-is. Repeatable; the first that fits counts.",
)
@globs("Migrate")
@kinds_option("What to migrate: weight, spectral; all is these two, and what is pruned beneath them.")
@click.option(
    "--drop-optimizer", is_flag=True, help="Leave out optimizer state (if its positions would not fit)."
)
@FLEET
@WRITING
def migrate(src: tuple[str, ...], out: str | None, **options: Any) -> int:
    """Rename the keys of old weight norm to those of torch 2.1, or back.

    The names and order of keys become those of torch, the bytes of tensors stay; optimizer state in the file
    stays valid. --kinds spectral does so with spectral norm.
    """
    load_lightly()
    from wnconvert.verbs.conversion.files.migrate import migrate_file

    return convert_files("migrate", migrate_file, src, out, **options)


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
    "--require-folded",
    is_flag=True,
    help="Exit code 1 if a weight is not stored as such: g and v, or arithmetic in an ONNX model.",
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
@click.option("--sha256", is_flag=True, help="Show the SHA-256 of the file, which is read whole.")
@click.option("--recipe", type=click.Path(), metavar="FILE", help="Show what a fold by this recipe would do.")
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
@click.option(
    "--html",
    type=click.Path(),
    metavar="FILE",
    help="Write a page that opens in a browser, offline: of one checkpoint all that --full reads, of several "
    "how their layers moved from step to step.",
)
@click.option("-f", "--force", is_flag=True, help="Replace the picture or the page if it exists.")
@click.option(
    "--drift", is_flag=True, help="Of several files, show how far each layer moved from one to the next."
)
@FLEET_TO_READ
@VERBOSE
@NO_PROGRESS
def inspect(src: tuple[str, ...], *, json: bool, **options: Any) -> int:
    """Show what is in a checkpoint and whether it is healthy.

    It shows the form, the magnitudes of the layers, and what fold, split and migrate would do. Only g is
    read, kilobytes of a file of gigabytes; plain weights of an ONNX model are read and shown too. Of many
    files (names, patterns such as 'runs/**/*.pt', or folders with -r) it shows one row for each; with
    --drift, one for each layer, starting with those that moved most over a training run.
    """
    load_lightly()
    style = options.pop("format")
    return show_inspections(src, style="json" if json else style, **options)


@click.command(epilog=epilog("wnconvert compare g_02500000 generator.safetensors"))
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option(
    "--rtol",
    type=click.FloatRange(min=0),
    help="Numbers are equal if |a-b| <= atol + rtol·|b|; of ONNX models, outputs.",
)
@click.option(
    "--atol",
    type=click.FloatRange(min=0),
    help="See --rtol.  [default of both: 1 ulp of the coarser dtype; of outputs: 1e-3 and 1e-5]",
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
@click.option(
    "--recipe",
    type=click.Path(),
    metavar="FILE",
    help="Compare a side that this recipe fits as it would be folded by it.",
)
@BY_RUNNING
@THREADS
@click.option(
    "--wide", is_flag=True, help="Show long names in full, even if they are wider than the terminal."
)
@HTML_PAGE
@FORCE_PAGE
@with_output
@VERBOSE
@NO_PROGRESS
def compare(
    a: str,
    b: str,
    *,
    output: Output,
    wide: bool,
    no_progress: bool,
    html: str | None,
    force: bool,
    **options: Any,
) -> int:
    """Check whether two checkpoints hold the same weights, or two ONNX models agree.

    They may differ in form, container and nesting: weight-normalized layers are compared by the weights that
    they compute. Two ONNX models are run in onnxruntime too: their outputs decide. Two folders of several
    checkpoints are compared file by file. Exit code 0: equal, 1: different.
    """
    load_lightly()
    page = PageFile(html, force)
    page.check()
    if (code := compare_many(a, b, output=output, page=page, options=options)) is not None:
        return code
    return compare_one(a, b, output=output, page=page, wide=wide, no_progress=no_progress, options=options)
