"""Conversions whose output goes to stdout: made beside it, whole, then copied there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wnconvert.errors import ArgumentError
from wnconvert.plan.plan import Plan
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.files import Name
from wnconvert.storage.stores.standard import STANDARD, spooled_beside, standard_output
from wnconvert.tensors.containers import Container

if TYPE_CHECKING:
    from wnconvert.verbs.conversion.convert import Result

__all__ = ["check_piped", "goes_to_stdout", "to_stdout"]


def goes_to_stdout(src: Name, out: Name | None) -> bool:
    """Whether an output goes to stdout: ``-`` says so, and what comes from stdin goes there by itself.

    >>> goes_to_stdout("x.pt", "-"), goes_to_stdout("-", None), goes_to_stdout("-", "x.pt")
    (True, True, False)
    """
    return out == STANDARD or (out is None and src == STANDARD)


def check_piped(*, in_place: bool, as_folder: bool) -> None:
    """Raise ``ArgumentError`` for options that ask for anything but one file, where it goes to stdout."""
    for name, value in {"--in-place": in_place, "--as-folder": as_folder}.items():
        if value:
            raise ArgumentError(f"{name} writes to a disk, and this goes to stdout", fix="name files")


def to_stdout(
    src: Name,
    convert_to: Callable[[Path], Result | Plan],
    beside: Callable[[Path], tuple[str, ...]],
    *,
    dry_run: bool,
) -> Result | Plan:
    """Run a conversion, given the path of its output, and copy that to stdout: in the source's container.

    ``beside`` gives notes on what other runs left beside the place where the output is made.
    """
    container = open_checkpoint(src).container
    name = f"stdout{(container.facts.suffixes or Container.TORCH_ZIP.facts.suffixes)[0]}"
    left = beside(spooled_beside())
    if dry_run:
        made = convert_to(Path(name))
    else:
        with standard_output(name) as path:
            made = convert_to(path)
    made = replace(made, notes=(*left, *made.notes))
    return made if isinstance(made, Plan) else replace(made, output=Path("stdout"))
