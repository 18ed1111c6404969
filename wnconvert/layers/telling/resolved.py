"""What a user asks for, as a recipe for one state dict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase

from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import Op, Recipe, RecipeFold
from wnconvert.layers.telling.arrangement import Arrangement
from wnconvert.layers.telling.asked import Asked, ByNames, SaidNorms, SaidPair, SaidStandardize
from wnconvert.layers.telling.neighbours import (
    LeftNorm,
    doubt_of,
    is_square,
    more_than_statistics,
    told_by_names,
)
from wnconvert.messages import option
from wnconvert.tensors.tree import Shape, StateDict

__all__ = ["Resolved", "resolved"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """The recipe that is asked for.

    ``left`` are norms that names do not tell, ``doubtful`` weights of which the user must say more, each with
    the reason and what to say.
    """

    recipe: Recipe
    left: tuple[LeftNorm, ...] = ()
    doubtful: tuple[tuple[str, str, str], ...] = ()


def resolved(state: StateDict, asked: Asked) -> Resolved:
    """What is asked for, as a recipe for a state dict.

    What the state dict does not have is named all the same: the recipe is then none of this one.
    """
    if isinstance(asked, ByNames):
        told = told_by_names(state, asked.eps)
        return Resolved(Recipe(told.folds, "names"), told.left)
    there = Arrangement(state)
    if isinstance(asked, SaidNorms):
        return _said_norms(asked, there)
    return Resolved(Recipe(tuple(_standardized(asked, there))))


def _said_norms(asked: SaidNorms, there: Arrangement) -> Resolved:
    folds: list[RecipeFold] = []
    doubtful: list[tuple[str, str, str]] = []
    for pair in asked.pairs:
        op, weight = pair.op or _op_of(pair, there), f"{pair.layer}.weight"
        others = more_than_statistics(pair.norm, there) if pair.norm in there.tensors else iter(())
        if other := next(others, ""):
            fix = f"{option('recipe', metavar='FILE')}, made with the model's code, folds it if anything does"
            doubtful.append((weight, f"{pair.norm} is none to fold: {other}", fix))
        elif op is None:
            sizes = there.weight_shape(pair.layer)
            reason = f"{sizes} may be a convolution or a transposed one: both axes fit {pair.norm}"
            said = f"{pair.norm}={pair.layer}"
            fix = f"{option('norm', glob=f'{said}:conv')}, or {option('norm', glob=f'{said}:conv_transpose')}"
            doubtful.append((weight, reason, fix))
        else:
            folds.append(RecipeFold("norm behind", weight, pair.norm, op, pair.groups, asked.eps))
    return Resolved(Recipe(tuple(folds)), doubtful=tuple(doubtful))


def _op_of(pair: SaidPair, there: Arrangement) -> Op | None:
    """What kind of layer a shape and a norm show; None where both a convolution and a transposed one fit."""
    shape = there.weight_shape(pair.layer) or ()
    variance = there.tensors.get(pair.norm, {}).get("running_var")
    if len(shape) == 2:
        return "linear"
    if variance is not None and len(shape) > 2 and shape[0] != variance.numel == shape[1]:
        return "conv_transpose"
    return None if is_square(shape) or doubt_of(pair.layer, shape) else "conv"


def _standardized(asked: SaidStandardize, there: Arrangement) -> Iterator[RecipeFold]:
    for glob in asked.globs:
        found = [(name, shape) for name, shape in there.weights.items() if fnmatchcase(name, glob)]
        for name, shape in found:
            yield _standardize(asked, name, _fan_of(shape))
        if not found:
            yield _standardize(asked, glob, 1)


def _standardize(asked: SaidStandardize, weight: str, fan: int) -> RecipeFold:
    # The order of torch's users, gamma · fan_in ** -0.5: the quotient by the root may be another float64.
    scale = asked.scale * fan**-0.5 if asked.over_fan else asked.scale
    return RecipeFold(
        "standardize",
        weight,
        eps=asked.eps,
        std=asked.std,
        eps_at=asked.eps_at,
        gain=asked.gain,
        scale=scale,
    )


def _fan_of(shape: Shape) -> int:
    return max(1, math.prod(shape[1:]))
