"""Options shared by several commands, and the parsing of their values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from wnconvert.cli.completion import layers, state_dicts
from wnconvert.cli.terminal import Report, mention, put_json

__all__ = [
    "CAST_CHOICES",
    "CLEAN",
    "DROPS_OPTIMIZER",
    "EXIT_CODES",
    "FIRST_LAYERS",
    "FORM_CHOICES",
    "FRAMEWORK_CHOICES",
    "JSON",
    "NAMED_FORM_CHOICES",
    "NO_PROGRESS",
    "NO_RECORD",
    "PROOFS",
    "THREADS",
    "TIME_LIMIT",
    "TOLD",
    "VERBOSE",
    "WRITING",
    "Conversion",
    "DTypeChoice",
    "dim_of_text",
    "epilog",
    "errors_as_json",
    "globs",
    "kinds_option",
    "target",
    "with_options",
    "with_output",
]


#: How many layers a conversion prints if ``--list`` does not ask for all.
FIRST_LAYERS = 5

#: The forms of torch's, and those that ``--to`` of ``split`` and ``migrate`` gives; a test compares both.
FORM_CHOICES = ("parametrize", "legacy")
NAMED_FORM_CHOICES = (*FORM_CHOICES, "paddle", "physicsnemo", "equinox")
#: The frameworks that ``migrate --to`` takes a file to.
FRAMEWORK_CHOICES = ("torch", "flax", "nnx", "mlx")

# The control character \b keeps click from filling the paragraph.
EXIT_CODES = """\b
Exit codes: 0 done (also if there was nothing to do), 1 checked and different,
2 not possible, 3 a bug, 130 interrupted."""


def dim_of_text(_: click.Context, __: click.Parameter, value: str) -> int | str | None:
    """The value of ``--dim``."""
    if value == "none":
        return None
    try:
        return value if value == "auto" else int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not an axis: use a number, none or auto") from None


def _words_of_text(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    """The value of ``--kinds``: words with commas between them."""
    return tuple(value.split(","))


#: The choices of ``--dtype``; a test compares them with those that Python takes.
CAST_CHOICES = ("float16", "bfloat16", "float32")


class DTypeChoice(click.Choice[str]):
    """A choice of dtypes that takes usual words for them too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The dtype that is meant."""
        from wnconvert.tensors.dtypes import dtype_word  # which `--help` does not need

        return super().convert(dtype_word(value), param, ctx)


_Command = TypeVar("_Command", bound=Callable[..., Any])


def with_options(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """Several options as one decorator; the help lists them in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def epilog(example: str) -> str:
    """The end of a command's help: an example and the exit codes."""
    return f"\b\nExample:\n  {example}\n\n{EXIT_CODES}"


class Conversion(click.Command):
    """A command whose ``--require-layers`` may stand alone, before anything but a number."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the number that is left out."""
        alone = "--require-layers"
        behind = [*args[1:], ""]
        return super().parse_args(
            ctx,
            [
                f"{alone}=1" if arg == alone and not after.isdigit() else arg
                for arg, after in zip(args, behind, strict=False)
            ],
        )


#: The choices of ``--proof``; a test compares them with those that Python takes.
PROOFS = ("model", "layers", "none")
NO_RECORD = click.option(
    "--record/--no-record",
    default=True,
    help="Keep a record of what was done in the output; of an ONNX model in its metadata.  [default: record]",
)
TIME_LIMIT = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=600,
    show_default=True,
    help="The most seconds that onnxruntime may work on an ONNX model in all.",
)


THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Number of threads.  [default: one per processor, at most 4]",
)


def _asks(context: click.Context, _: click.Parameter, value: bool) -> bool:  # noqa: FBT001 - click's own
    if value:
        errors_as_json(context)
    return value


def errors_as_json(context: click.Context, report: Report = put_json) -> None:
    """Have an error of this run printed as JSON: the object of click's context is a dict that says so."""
    context.ensure_object(dict)["report"] = report


#: Eager, so that an error in another option is printed as JSON too.
JSON = click.option(
    "--json", is_flag=True, is_eager=True, callback=_asks, help="Print one JSON object, of an error too."
)
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Print only the last line, and errors.")
_SILENT = click.option("--silent", is_flag=True, help="Print only errors; the exit code is the result.")


def with_output(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options ``--json``, ``--quiet`` and ``--silent``, as one ``output``."""

    @JSON
    @_QUIET
    @_SILENT
    @functools.wraps(command)
    def call(*arguments: Any, json: bool, quiet: bool, silent: bool, **options: Any) -> Any:
        from wnconvert.cli.output import Output  # which `--help` does not need

        return command(*arguments, output=Output(json, quiet, silent), **options)

    return call


def _tells_traffic(context: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
    if value:
        from wnconvert.storage.stores.remote.traffic import TRAFFIC  # which `--help` does not need

        before = TRAFFIC.counts
        context.call_on_close(lambda: mention((TRAFFIC.counts - before).in_words))


VERBOSE = click.option(
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_tells_traffic,
    help="Say at the end how many requests were made of stores, and how many bytes came and went.",
)
NO_PROGRESS = click.option("--no-progress", is_flag=True, help="Show no progress bar.")
DROPS_OPTIMIZER = click.option(
    "--keep-optimizer",
    is_flag=True,
    help="Keep optimizer state although its positions no longer fit the parameters.",
)


def target(default: str) -> Callable[[_Command], _Command]:
    """The source and the output of a conversion; ``default`` is put before the suffix of the source."""
    return with_options(
        click.argument("src", nargs=-1, required=True, type=click.Path()),
        click.option(
            "-o",
            "--out",
            "--output",
            "out",
            type=click.Path(),
            metavar="OUT",
            help="File to write: safetensors or .npz if it has that suffix, else as torch.save writes; or "
            "the folder to write it into (of many files always). A folder, if SRC is one or --as-folder is "
            "given. - is stdout, as SRC - is stdin.  "
            f"[default: SRC with {default} before its suffix]",
        ),
        click.option(
            "--only",
            metavar="PATH",
            shell_complete=state_dicts,
            help="Keep only this state dict, e.g. generator (. is the root).",
        ),
        click.option(
            "--drop-foreign",
            is_flag=True,
            help="Leave out what lies beside the state dicts and names classes or functions that "
            "torch.load(weights_only=True) does not know.",
        ),
        click.option(
            "--strip-prefix",
            metavar="PREFIX",
            multiple=True,
            help="Take this prefix off the names, e.g. _orig_mod.module. (repeatable; the first that fits).",
        ),
        click.option("--add-prefix", metavar="PREFIX", default="", help="Put this prefix before the names."),
        click.option(
            "--rename",
            metavar="OLD=NEW",
            multiple=True,
            help="Replace whole dotted parts of names wherever they stand, e.g. 'enc.*.conv=enc.*.c'; a dot "
            "before OLD: only at the beginning (repeatable, one after another).",
        ),
    )


def globs(does: str) -> Callable[[_Command], _Command]:
    """The options that choose layers; ``does`` is the verb."""
    return with_options(
        click.option(
            "--layers",
            metavar="GLOB",
            multiple=True,
            shell_complete=layers,
            help=f"{does} only layers whose names match, e.g. 'dec.*' (repeatable).",
        ),
        click.option(
            "--exclude",
            metavar="GLOB",
            multiple=True,
            shell_complete=layers,
            help="Leave layers whose names match as they are (repeatable).",
        ),
    )


def kinds_option(what: str) -> Callable[[_Command], _Command]:
    """The option that names kinds of layers; ``what`` is done with them."""
    return click.option(
        "--kinds",
        callback=_words_of_text,
        metavar="KIND[,KIND…]",
        default="weight",
        show_default=True,
        help=what,
    )


#: What is said in place of a recipe.
TOLD = with_options(
    click.option(
        "--norm",
        metavar="by-names|NORM=LAYER",
        multiple=True,
        help="Fold norms with running statistics, with --eps: those of which names, keys and modules tell "
        "the layer (by-names), or the module NORM into the module LAYER before it, e.g. 'bn1=conv1', or "
        "'LAYER:conv_transpose:GROUPS' (repeatable).",
    ),
    click.option(
        "--standardize",
        metavar="GLOB",
        multiple=True,
        help="Fold weights that their classes standardize, with --std, --eps-at and --eps (repeatable).",
    ),
    click.option(
        "--eps",
        type=float,
        metavar="E",
        help="The eps of these, which no checkpoint has; alone, that of weight norm as flax or Keras has it "
        "(default 1e-12; 0: none), or Paddle (default: none).",
    ),
    click.option(
        "--std",
        type=click.Choice(["biased", "unbiased"]),
        help="Which deviation --standardize divides by.",
    ),
    click.option(
        "--eps-at",
        type=click.Choice(["var", "std"]),
        help="Where eps is added: to the variance, or to the deviation.",
    ),
    click.option("--gain", metavar="NAME", help="The name of γ beside a weight that is standardized."),
    click.option(
        "--scale",
        metavar="X|X/fan",
        help="A constant factor of what is standardized; X/fan is X over the root of each weight's fan_in.",
    ),
)

CLEAN = click.option(
    "--clean", is_flag=True, help="Delete what killed runs left beside OUT; a run names it anyway."
)

WRITING = with_options(
    click.option("--copy", is_flag=True, help="Write OUT even if there is nothing to convert."),
    click.option(
        "--require-layers",
        type=click.IntRange(min=1),
        metavar="[N]",
        help="Exit with 1, and write nothing, if fewer than N layers are converted (1 if N is left out).",
    ),
    click.option(
        "--as-folder", is_flag=True, help="Make OUT a folder as on the hub, although SRC is a file."
    ),
    click.option(
        "--in-place", is_flag=True, help="Write over SRC; what cannot be brought back is said first."
    ),
    click.option(
        "--verify",
        is_flag=True,
        help="Read the output back with another reader, if there is one, and recompute every layer.",
    ),
    click.option(
        "--max-shard-size",
        metavar="SIZE",
        default="5GB",
        show_default=True,
        help="Largest file of weights in a folder, e.g. 500MB or 2GiB; a tensor is never cut.",
    ),
    click.option(
        "-f",
        "--force",
        is_flag=True,
        help="Replace OUT if it exists; a folder as a whole, and only if wnconvert wrote all that is in it.",
    ),
    CLEAN,
    THREADS,
    click.option("-n", "--dry-run", is_flag=True, help="Print the plan and write nothing."),
    click.option(
        "--list",
        is_flag=True,
        help=f"List every layer, not only the first {FIRST_LAYERS}.",
    ),
    with_output,
    VERBOSE,
    NO_PROGRESS,
)
