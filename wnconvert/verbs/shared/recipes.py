"""Recipes on disk: read whole, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from wnconvert.errors import ArgumentError, InputError
from wnconvert.layers.recipes import Recipe
from wnconvert.messages import option, refuse_other_than_path

if TYPE_CHECKING:
    import os

__all__ = ["read_recipe", "recipe_given", "refuse_recipe", "write_recipe"]


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a TOML file.

    Raises ``InputError`` for a file that cannot be read or is not TOML, ``ArgumentError`` for one that is no
    recipe.

    >>> [(fold.norm, fold.weight) for fold in read_recipe("fixtures/normed.toml").folds][:1]
    [('stem.bn', 'stem.conv.weight')]
    """
    from wnconvert.formats.recipes import MOST_BYTES, parse_recipe  # which loads what reads TOML

    refuse_other_than_path(path, "a recipe")
    try:
        with Path(path).open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"the recipe cannot be read: {reason}", where=str(path)) from None
    return parse_recipe(text, str(path))


def write_recipe(recipe: Recipe, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write a recipe as a TOML file, whole or not at all; with ``force`` an old one is replaced.

    Raises ``OutputError`` where it cannot be written.
    """
    from wnconvert.formats.recipes import recipe_text
    from wnconvert.storage.staging import staged

    refuse_other_than_path(path, "a recipe")
    text = recipe_text(recipe).encode()
    with staged(Path(path), force=force, size=len(text)) as target:
        target.path.write_bytes(text)


def recipe_given(recipe: Recipe | str | os.PathLike[str] | None) -> Recipe | None:
    """The recipe that a verb was given, itself or as a file. Raises as ``read_recipe`` does."""
    return recipe if recipe is None or isinstance(recipe, Recipe) else read_recipe(recipe)


def refuse_recipe(told: str = "recipe") -> NoReturn:
    """Raise ``ArgumentError`` for a recipe, or what else is ``told`` by an option, beside an ONNX model."""
    raise ArgumentError(
        f"{option(told)} tells what the keys of a checkpoint do not, and this is an ONNX model",
        fix="leave it out: a graph is folded by what it computes",
    )
