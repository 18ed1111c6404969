"""Options that several commands share, and what their texts mean."""

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
    "dim_of_text",
    "epilog",
    "globs",
    "target",
    "with_options",
]


#: What ``split`` and ``migrate`` take as ``--to``; tests hold these to what the modules know.
FORM_CHOICES = ("parametrize", "legacy")

# The control character \b keeps click from filling the paragraph.
EXIT_CODES = """\b
Exit codes: 0 done (nothing to do is done too), 1 checked and different,
2 could not, 3 a bug, 130 interrupted."""


def dim_of_text(_: click.Context, __: click.Parameter, value: str) -> int | str | None:
    """The argument that ``--dim`` means."""
    if value == "none":
        return None
    try:
        return value if value == "auto" else int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no axis: use a number, none or auto") from None


_Command = TypeVar("_Command", bound=Callable[..., Any])


def with_options(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """Several options as one decorator; the help shows them in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def epilog(example: str) -> str:
    """The end of a command's help: an example, and the exit codes."""
    return f"\b\nExample:\n  {example}\n\n{EXIT_CODES}"


THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads.  [default: the processors, at most 4]"
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
NO_PROGRESS = click.option("--no-progress", is_flag=True, help="Show no progress on a terminal.")
DROPS_OPTIMIZER = click.option(
    "--keep-optimizer", is_flag=True, help="Keep optimizer state although its positions no longer fit."
)


def target(default: str) -> Callable[[_Command], _Command]:
    """What a conversion reads and where it writes; ``default`` is what goes before the suffix."""
    return with_options(
        click.argument("src", type=click.Path()),
        click.option(
            "-o",
            "--out",
            type=click.Path(),
            metavar="OUT",
            help="File to write: safetensors if so called, else as torch.save writes; or a folder, if SRC is "
            f"one or OUT ends in a slash.  [default: SRC, {default} before its suffix]",
        ),
        click.option(
            "--only", metavar="PATH", help="Keep this state dict alone, e.g. generator (. is the root)."
        ),
    )


def globs(does: str) -> Callable[[_Command], _Command]:
    """Which layers; ``does`` is what is done to them."""
    return with_options(
        click.option(
            "--layers",
            metavar="GLOB",
            multiple=True,
            help=f"{does} only layers of such names, e.g. 'dec.*' (repeatable).",
        ),
        click.option(
            "--exclude",
            metavar="GLOB",
            multiple=True,
            help="Leave layers of such names as they are (repeatable).",
        ),
    )


WRITING = with_options(
    click.option(
        "--verify",
        is_flag=True,
        help="Read the output back with an independent reader and recompute every layer.",
    ),
    click.option(
        "--max-shard-size",
        metavar="SIZE",
        default="5GB",
        show_default=True,
        help="Weights of a folder go into files of at most this: 500MB, 2GiB; a tensor is never cut.",
    ),
    click.option("--force", is_flag=True, help="Replace OUT if it exists; a folder whole."),
    THREADS,
    click.option("--dry-run", is_flag=True, help="Print the plan and write nothing."),
    JSON,
    click.option("--quiet", is_flag=True, help="Print nothing but errors."),
    NO_PROGRESS,
)
