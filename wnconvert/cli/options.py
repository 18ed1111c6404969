"""Options shared by several commands, and the parsing of their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = [
    "DROPS_OPTIMIZER",
    "EXIT_CODES",
    "FORM_CHOICES",
    "JSON",
    "NO_PROGRESS",
    "THREADS",
    "WRITING",
    "Conversion",
    "dim_of_text",
    "epilog",
    "globs",
    "target",
    "with_options",
]


#: The choices of ``--to`` of ``split`` and ``migrate``; a test compares them with the forms that exist.
FORM_CHOICES = ("parametrize", "legacy")

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


THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Number of threads.  [default: one per processor, at most 4]",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
NO_PROGRESS = click.option("--no-progress", is_flag=True, help="Show no progress bar.")
DROPS_OPTIMIZER = click.option(
    "--keep-optimizer",
    is_flag=True,
    help="Keep optimizer state although its positions no longer fit the parameters.",
)


def target(default: str) -> Callable[[_Command], _Command]:
    """The source and the output of a conversion; ``default`` is put before the suffix of the source."""
    return with_options(
        click.argument("src", type=click.Path()),
        click.option(
            "-o",
            "--out",
            type=click.Path(),
            metavar="OUT",
            help="File to write: safetensors or .npz if it has that suffix, else as torch.save writes; or "
            "the folder to write it into. A folder, if SRC is one or --as-folder is given. - is stdout, as "
            "SRC - is stdin.  "
            f"[default: SRC with {default} before its suffix]",
        ),
        click.option(
            "--only", metavar="PATH", help="Keep only this state dict, e.g. generator (. is the root)."
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
            help=f"{does} only layers whose names match, e.g. 'dec.*' (repeatable).",
        ),
        click.option(
            "--exclude",
            metavar="GLOB",
            multiple=True,
            help="Leave layers whose names match as they are (repeatable).",
        ),
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
        "--force",
        is_flag=True,
        help="Replace OUT if it exists; a folder as a whole, and only if wnconvert wrote all that is in it.",
    ),
    THREADS,
    click.option("--dry-run", is_flag=True, help="Print the plan and write nothing."),
    JSON,
    click.option("--quiet", is_flag=True, help="Print only errors."),
    NO_PROGRESS,
)
