"""Recipes as TOML: ``[[fold]]`` tables of a fixed set of keys.

A recipe is input like any other: what is not one, or has a key too many, is an error that names the entry.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, cast

from wnconvert.errors import ArgumentError, InputError
from wnconvert.layers.recipes import NORM_KINDS, RECIPE_KINDS, RECIPE_SCHEMA, Recipe, RecipeFold
from wnconvert.messages import listed, printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["MOST_BYTES", "parse_recipe", "recipe_text"]


#: A recipe is not longer: that of 18,000 norms takes 2 MiB.
MOST_BYTES = 16 << 20

_NORM = ("kind", "weight", "bias", "norm", "op", "groups")
#: The keys of a fold by its kind, in the order in which they are written.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "norm behind": (*_NORM, "eps"),
    "norm before": (*_NORM, "eps"),
    "affine before": _NORM,
    "standardize": ("kind", "weight", "std", "eps_at", "eps", "scale", "fan", "gain", "shift", "dim"),
    "unit": ("kind", "weight", "eps", "scale", "dim"),
    "equalized": ("kind", "weight", "scale"),
}
#: Those that a fold must state, whatever they would be if it did not.
_STATED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(NORM_KINDS, ("kind", "weight", "norm", "op")),
    "standardize": ("kind", "weight", "std", "eps_at"),
    "unit": ("kind", "weight"),
    "equalized": ("kind", "weight", "scale"),
}
_WHOLE = ("groups", "fan", "dim")
_REAL = ("eps", "scale")
_TOP = ("schema", "made_by", "proven", "names", "fold")


def recipe_text(recipe: Recipe) -> str:
    r"""A recipe as TOML; what is as usual is left out.

    >>> print(recipe_text(Recipe((RecipeFold("norm behind", "conv1.weight", "bn1", eps=1e-5),))))
    schema = 1
    made_by = "said"
    <BLANKLINE>
    [[fold]]
    kind = "norm behind"
    weight = "conv1.weight"
    norm = "bn1"
    op = "conv"
    eps = 1e-05
    <BLANKLINE>
    """
    heads = (("made_by", recipe.made_by), ("proven", recipe.proven), ("names", recipe.names))
    lines = [f"schema = {RECIPE_SCHEMA}", *(f"{key} = {_literal(value)}" for key, value in heads if value)]
    for fold in recipe.folds:
        usual = RecipeFold(fold.kind, "w", "n" * fold.has_norm, eps=1.0)
        lines += ["", "[[fold]]"]
        for key in _KEYS[fold.kind]:
            value = getattr(fold, key)
            if value is not None and (
                key in _STATED[fold.kind] or value != getattr(usual, key) or key == "eps"
            ):
                lines.append(f"{key} = {_literal(value)}")
    return "\n".join([*lines, ""])


def _literal(value: object) -> str:
    """A value as TOML; a text's escapes are JSON's."""
    if not isinstance(value, str):
        return repr(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"{value!a:.80} is not Unicode, so no recipe can name it") from None
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def parse_recipe(text: bytes | str, where: str = "") -> Recipe:
    """The recipe that TOML states; ``where`` names it in errors.

    Raises ``InputError`` for what is not TOML or too long, and ``ArgumentError`` for TOML that is no recipe.

    >>> parse_recipe(recipe_text(Recipe(())))
    Recipe(folds=(), made_by='said', proven='', names='')
    """
    if len(text) > MOST_BYTES:
        raise InputError(f"it has {len(text):,} bytes, and a recipe at most {MOST_BYTES:,}", where=where)
    try:
        read = tomllib.loads(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, nested too deeply
        raise InputError(
            f"it is not a recipe: {printable(str(error)):.200}", where=where, fix=_FIX_OF_TEXT
        ) from None
    _check_head(read, where)
    folds = [_fold(entry, f"fold {at}", where) for at, entry in enumerate(read.get("fold", ()), 1)]
    try:
        heads = {key: read[key] for key in ("made_by", "proven", "names") if key in read}
        return Recipe(tuple(folds), **heads)
    except ArgumentError as error:
        error.where = where
        raise


_FIX_OF_TEXT = "a recipe is TOML, as docs/recipes.md shows it"


def _check_head(read: Mapping[str, Any], where: str) -> None:
    """Raise ``ArgumentError`` for anything but the folds that makes no sense."""
    if (schema := read.get("schema")) != RECIPE_SCHEMA or isinstance(schema, bool):
        what = "it states no schema" if schema is None else f"its schema is {_shown(schema)}"
        raise ArgumentError(f"{what}, and {RECIPE_SCHEMA} is known", where=where, fix=_FIX_OF_TEXT)
    if unknown := [key for key in read if key not in _TOP]:
        raise _unknown(unknown[0], _TOP, where)
    for key in ("made_by", "proven", "names"):
        if not isinstance(read.get(key, ""), str):
            raise ArgumentError(f"{key} is {_shown(read[key])}, not a text", where=where)
    folds = read.get("fold", [])
    if not isinstance(folds, list) or not all(isinstance(entry, dict) for entry in folds):
        raise ArgumentError("fold is not a list of tables", where=where, fix="[[fold]] before each of them")


def _fold(entry: Mapping[str, Any], number: str, where: str) -> RecipeFold:
    """One fold. Raises ``ArgumentError``."""
    weight = entry.get("weight")
    of_weight = f" ({printable(weight):.120})" if isinstance(weight, str) else ""
    place = f"{where}: {number}{of_weight}" if where else f"{number}{of_weight}"
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in RECIPE_KINDS:
        what = "it states no kind" if kind is None else f"there is no kind {_shown(kind)}"
        raise ArgumentError(what, where=place, fix=f"one of {listed(RECIPE_KINDS)}")
    keys = _KEYS[kind]
    if unknown := [key for key in entry if key not in keys]:
        raise _unknown(unknown[0], keys, place)
    if missing := [key for key in _STATED[kind] if key not in entry]:
        raise ArgumentError(f"{kind} needs {listed(missing)}", where=place)
    values = {key: _value(key, value, place) for key, value in entry.items()}
    try:
        return RecipeFold(**cast("dict[str, Any]", values))
    except ArgumentError as error:
        error.where = place
        raise


def _value(key: str, value: object, place: str) -> object:
    """A value of the type that its key has. Raises ``ArgumentError``."""
    if key in _WHOLE:
        fits, what = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif key in _REAL:
        fits, what = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
    else:
        fits, what = isinstance(value, str), "a text"
    if not fits:
        raise ArgumentError(f"{key} is {_shown(value)}, not {what}", where=place)
    if key in _REAL:
        assert isinstance(value, (int, float))  # noqa: S101 - told above
        try:
            return float(value)
        except OverflowError:
            raise ArgumentError(f"{key} is larger than any number", where=place) from None
    return value


def _unknown(key: str, known: tuple[str, ...], place: str) -> ArgumentError:
    return ArgumentError(f"there is no key {_shown(key)}", where=place, fix=f"one of {listed(known)}")


def _shown(value: object) -> str:
    return printable(repr(value))[:80]
