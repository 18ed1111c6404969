"""Which layers a verb is asked for: names, kinds and the axis, checked and made into a selection."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from wnconvert.errors import ArgumentError
from wnconvert.layers.kinds.table import ALL, SHOWN, WORDS
from wnconvert.layers.rules import Norm
from wnconvert.layers.schemes import Selection
from wnconvert.messages import option

if TYPE_CHECKING:
    from wnconvert.layers.recipes import Recipe
    from wnconvert.layers.telling.asked import Asked

__all__ = ["kinds_of", "selection_of", "texts_of"]


def kinds_of(kinds: Iterable[str], shown: Collection[str] = SHOWN) -> tuple[str, ...]:
    """The kinds of layers that ``--kinds`` names, in words with commas between them or several words.

    Raises ``ArgumentError`` for one that is not among those that are ``shown``, and for none.

    >>> kinds_of("weight,prune"), kinds_of("all"), kinds_of(["spectral-step"])
    (('weight', 'prune'), ('weight', 'spectral', 'prune'), ('spectral-step',))
    """
    words = [word.strip() for text in texts_of(kinds) for word in text.split(",")]
    every = dict.fromkeys(kind for word in words for kind in (ALL if word == "all" else (word,)))
    unknown = [word for word in every if word not in shown]
    if unknown and unknown[0] in WORDS:
        raise ArgumentError(
            f"keys do not show {WORDS[unknown[0]]}, so --kinds {unknown[0]} is for ONNX models alone",
            fix=f"{option('recipe', metavar='FILE')} tells where it is; keys show {', '.join(shown)}",
        )
    if unknown or not every:
        what = f"there is no kind {unknown[0]!r:.80}" if unknown else "no kind is named"
        raise ArgumentError(what, fix=f"some of {', '.join(shown)}, or all, which is {', '.join(ALL)}")
    return tuple(every)


def selection_of(
    layers: Iterable[str],
    exclude: Iterable[str],
    dim: int | str | None,
    kinds: Iterable[str] = (Norm.kind,),
    recipe: Recipe | None = None,
    *,
    asked: Asked | None = None,
    eps: float | None = None,
    shown: Collection[str] = SHOWN,
) -> Selection:
    """The selection of ``--layers``, ``--exclude`` (globs), ``--dim``, ``--kinds`` and ``--recipe``.

    ``asked`` is what is said in place of a recipe, ``eps`` that of pairs; ``shown`` are the kinds that there
    are. Raises ``ArgumentError``.
    """
    if isinstance(dim, str) and dim != "auto":
        raise ArgumentError(
            f"dim {dim!r} is not an axis", fix="a number, None for the whole tensor, or 'auto'"
        )
    wanted = kinds_of(kinds, shown)
    return Selection(
        texts_of(layers), texts_of(exclude), dim, kinds=wanted, recipe=recipe, asked=asked, eps=eps
    )


def texts_of(texts: Iterable[str]) -> tuple[str, ...]:
    """One string, or several, as a tuple. Raises ``ArgumentError`` for anything else.

    >>> texts_of("dec.*"), texts_of(["enc.*", "dec.*"])
    (('dec.*',), ('enc.*', 'dec.*'))
    """
    given: object = texts
    if isinstance(given, str):
        return (given,)
    every = tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(text, str) for text in every):
        raise ArgumentError(f"{given!r:.80} is not a list of strings", fix="a str, or a list of them")
    return every
