"""What a user asks for instead of a recipe, as data: norms by names, pairs that are said, a formula.

It becomes a recipe once a state dict is at hand, in ``resolved``.
"""

from __future__ import annotations

from typing import TypeAlias

from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import Op
from wnconvert.layers.rules import EpsAt, Std

__all__ = ["Asked", "ByNames", "SaidNorms", "SaidPair", "SaidStandardize"]


@dataclass(frozen=True, slots=True)
class ByNames:
    """The norms whose layers names, keys and modules tell: ``--norm by-names``."""

    eps: float


@dataclass(frozen=True, slots=True)
class SaidPair:
    """The module of a norm and that of the layer before it; ``op`` is None where shapes are to tell it."""

    norm: str
    layer: str
    op: Op | None = None
    groups: int = 1


@dataclass(frozen=True, slots=True)
class SaidNorms:
    """Norms that the user gives to layers: ``--norm A=B``."""

    pairs: tuple[SaidPair, ...]
    eps: float


@dataclass(frozen=True, slots=True)
class SaidStandardize:
    """Weights that their classes standardize, by globs: ``--standardize``.

    ``scale`` is a constant factor, over √fan_in of each weight where ``over_fan`` says so. ``gain`` is the
    name of γ beside a weight, or nothing.
    """

    globs: tuple[str, ...]
    std: Std
    eps_at: EpsAt
    eps: float
    gain: str = ""
    scale: float = 1.0
    over_fan: bool = False


Asked: TypeAlias = ByNames | SaidNorms | SaidStandardize
