"""What a user says in place of a recipe, checked: norms, a formula of weights, and the numbers they need."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import get_args

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import OPS, Op
from wnconvert.layers.rules import Std
from wnconvert.layers.telling.asked import Asked, ByNames, SaidNorms, SaidPair, SaidStandardize
from wnconvert.messages import listed, option, printable
from wnconvert.verbs.shared.selections import texts_of

__all__ = ["BY_NAMES", "EPS_AT_CHOICES", "STD_CHOICES", "Said", "asked_of", "eps_alone"]


#: The word for the norms whose layers names tell.
BY_NAMES = "by-names"
STD_CHOICES = get_args(Std)
#: Where eps can be said to stand: √(V + eps), √V + eps.
EPS_AT_CHOICES = ("var", "std")


@dataclass(frozen=True, slots=True)
class Said:
    """The options that say what a recipe would, as they are given."""

    norm: Iterable[str] = ()
    standardize: Iterable[str] = ()
    eps: float | None = None
    std: str | None = None
    eps_at: str | None = None
    gain: str | None = None
    scale: float | str | None = None

    @property
    def of_weights(self) -> dict[str, object]:
        """What ``standardize`` may need, as far as it is given."""
        each = {"std": self.std, "eps_at": self.eps_at, "gain": self.gain, "scale": self.scale}
        return {name: value for name, value in each.items() if value is not None}


def asked_of(said: Said, recipe: object = None) -> Asked | None:
    """What the options say; None where none of them is given.

    No eps is assumed; alone, it is that of pairs (``eps_alone``). Raises ``ArgumentError`` for an option
    without those that it needs, and for several that only a recipe can hold together.

    >>> asked_of(Said("by-names", eps=1e-5))
    ByNames(eps=1e-05)
    """
    norms, globs = texts_of(said.norm), texts_of(said.standardize)
    if recipe is not None and (norms or globs or said.eps is not None or said.of_weights):
        raise ArgumentError(
            f"a recipe says all, also one that a model tells: {option('norm')}, {option('standardize')} and "
            f"{option('eps')} have no place beside it",
            fix="put what they say into the recipe",
        )
    if norms and globs:
        raise ArgumentError(
            f"{option('norm')} and {option('standardize')} cannot be said together",
            fix=f"a recipe holds both, each with its eps: {option('recipe')}",
        )
    if globs:
        return _standardize(globs, said)
    if idle := next(iter(said.of_weights), ""):
        raise ArgumentError(f"{option(idle)} belongs to {option('standardize')}", fix="say that too")
    if norms:
        return _norms(norms, _eps_of(said.eps, "norm"))
    return None


def eps_alone(said: Said, recipe: object = None) -> float | None:
    """The eps that is said of pairs whose framework divides by a norm with one; None where none is.

    >>> eps_alone(Said(eps=1e-3)), eps_alone(Said("by-names", eps=1e-5))
    (0.001, None)
    """
    is_of_norms = recipe is not None or texts_of(said.norm) or texts_of(said.standardize)
    return None if said.eps is None or is_of_norms else _eps_of(said.eps, "eps")


def _eps_of(eps: object, name: str) -> float:
    """The eps that an option needs."""
    if eps is None:
        raise ArgumentError(
            f"{option(name)} needs {option('eps')}, which is not in a checkpoint",
            fix="the number that the model was built with, such as 1e-5, torch's own, or 1e-3",
        )
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not (math.isfinite(eps) and eps >= 0):
        raise ArgumentError(f"an eps of {eps!r:.80} is none", fix="a number of 0 or more")
    return float(eps)


def _norms(norms: tuple[str, ...], eps: float) -> Asked:
    if BY_NAMES not in norms:
        return SaidNorms(tuple(map(_pair_of, norms)), eps)
    if len(set(norms)) > 1:
        raise ArgumentError(
            f"{option('norm', BY_NAMES)} and pairs cannot be said together",
            fix=f"one of the two; or both in a recipe: {option('recipe')}",
        )
    return ByNames(eps)


def _pair_of(text: str) -> SaidPair:
    """The pair that ``NORM=LAYER``, ``NORM=LAYER:OP`` or ``NORM=LAYER:OP:GROUPS`` says.

    >>> _pair_of("up.1=up.0:conv_transpose:2")
    SaidPair(norm='up.1', layer='up.0', op='conv_transpose', groups=2)
    """
    norm, sign, said = text.partition("=")
    layer, *more = said.split(":")
    op: Op | None = next((each for each in get_args(Op) if more[:1] == [each]), None)
    is_number = len(more) < 2 or re.fullmatch("[0-9]{1,9}", more[1]) is not None
    if not (norm and sign and layer) or len(more) > 2 or (more and op is None) or not is_number:
        raise ArgumentError(
            f"{printable(repr(text)):.200} gives no norm to a layer",
            fix=f"{option('norm', glob='NORM=LAYER')}, with the names of two modules, as in 'bn1=conv1'; or "
            f"LAYER:OP, LAYER:OP:GROUPS, with {listed(OPS)}; or {option('norm', BY_NAMES)}",
        )
    return SaidPair(norm, layer, op, int(more[1]) if len(more) > 1 else 1)


def _standardize(globs: tuple[str, ...], said: Said) -> Asked:
    for name, word, choices in (("std", said.std, STD_CHOICES), ("eps_at", said.eps_at, EPS_AT_CHOICES)):
        if word is None:
            raise ArgumentError(
                f"{option('standardize')} needs {option(name)}, which is not in a checkpoint",
                fix=" or ".join(option(name, choice) for choice in choices),
            )
        if word not in choices:
            raise ArgumentError(f"there is no {name} {word!r:.80}", fix=f"one of {listed(choices)}")
    number, over_fan = _scale_of(said.scale)
    return SaidStandardize(
        globs,
        "biased" if said.std == "biased" else "unbiased",
        "var" if said.eps_at == "var" else "std",
        _eps_of(said.eps, "standardize"),
        said.gain or "",
        number,
        over_fan,
    )


def _scale_of(scale: float | str | None) -> tuple[float, bool]:
    """A constant factor, and whether it is over √fan_in of each weight: 1.71, "1.71", "1.71/fan".

    >>> _scale_of("1.71/fan"), _scale_of(2), _scale_of(None)
    ((1.71, True), (2.0, False), (1.0, False))
    """
    if scale is None:
        return 1.0, False
    text = str(scale)
    try:
        number = float(text.removesuffix("/fan"))
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number == 0:
        raise ArgumentError(
            f"a scale of {text!r:.80} is none",
            fix="a number such as 1.71, or 1.71/fan, which is divided by the root of each weight's fan_in",
        )
    return number, text.endswith("/fan")
