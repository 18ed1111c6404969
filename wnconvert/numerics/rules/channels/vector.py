"""γ/√(v + ε) of each channel of a norm: in float64 with a bound on the error, and its square exactly.

ε is a float64 number, and so are v and γ: v + ε is rounded once, its root and the quotient once more.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.rules import AffineBefore, Neighbour
from wnconvert.numerics.rounding import ieee
from wnconvert.numerics.rules.parts import RuleParts
from wnconvert.tensors.blocks import Floats
from wnconvert.tensors.tree import Shape

__all__ = ["FACTOR_STEPS", "NormChannels", "channels_of"]


#: The error of a factor, in units of relative size 2⁻⁵³.
FACTOR_STEPS = 4
#: Factors between these, and 0, multiply any narrow value to a float64 that has all its bits.
_LEAST, _MOST = 2.0**-300, 2.0**300


@dataclass(frozen=True, slots=True)
class NormChannels:
    """The factors mantissa·2^exponent of channels, each within ``FACTOR_STEPS`` units of relative size 2⁻⁵³.

    Those of ``odd`` channels are infinite, NaN, or 0 for an infinite v. ``variance`` is None of an affine.
    """

    gamma: Floats
    variance: Floats | None
    eps: float
    mantissa: Floats
    exponent: NDArray[np.int32]
    odd: NDArray[np.bool_]

    @property
    def count(self) -> int:
        """The number of channels."""
        return len(self.mantissa)

    @property
    def values(self) -> Floats:
        """The factors as float64, perhaps out of its range."""
        values: Floats = np.ldexp(self.mantissa, self.exponent)
        return values

    @property
    def not_narrow(self) -> NDArray[np.bool_]:
        """The channels whose factor ``NarrowFactors`` cannot have."""
        size = np.abs(self.values)
        flags: NDArray[np.bool_] = self.odd | ~((size == 0) | ((size > _LEAST) & (size < _MOST)))
        return flags

    @property
    def negative(self) -> NDArray[np.bool_]:
        """The channels whose variance is negative, or not positive with ε."""
        if self.variance is None:
            return np.zeros(self.count, bool)
        flags: NDArray[np.bool_] = (self.variance < 0) | (self.variance + self.eps <= 0)
        return flags

    @property
    def nonfinite(self) -> NDArray[np.bool_]:
        """The channels with NaN or infinity in v or γ."""
        flags = ~np.isfinite(self.gamma)
        if self.variance is not None:
            flags |= ~np.isfinite(self.variance)
        return flags

    def divisor(self, channel: int) -> Fraction:
        """v + ε of a channel, exactly; 1 of an affine."""
        if self.variance is None:
            return Fraction(1)
        return Fraction(float(self.variance[channel])) + Fraction(self.eps)

    def square(self, channel: int) -> Fraction:
        """The square of a factor, exactly."""
        return Fraction(float(self.gamma[channel])) ** 2 / self.divisor(channel)

    def short(self) -> Floats:
        """The factors that are exact, and numbers of at most 24 bits; NaN for all others.

        >>> channels_from(np.array([1.0, 1.0]), np.array([4.0, 2.0]), 0.0).short()
        array([0.5, nan])
        """
        found = self.values
        found[self.odd | (found.astype(np.float32) != found)] = np.nan
        if self.variance is None:
            return found
        for channel in np.flatnonzero(~np.isnan(found)).tolist():
            if Fraction(float(found[channel])) ** 2 != self.square(channel):
                found[channel] = np.nan
        return found


def channels_of(operation: Neighbour, parts: RuleParts, shape: Shape) -> NormChannels:
    """The channels of a norm beside a weight of that shape. Raises ``LayerError`` if sizes do not fit."""
    if operation.dim >= len(shape) or (operation.dim == 0 and operation.groups != 1):
        raise LayerError(
            f"a weight {shape} has no channels along dim {operation.dim} in {operation.groups} groups"
        )
    count = operation.norms(shape)
    for role in operation.roles:
        if parts[role].count != count:
            raise LayerError(
                f"{role} {parts[role].shape} does not fit the {count} channels of a weight {shape}"
            )
    if operation.groups < 1 or shape[0] % operation.groups:
        raise LayerError(f"a weight {shape} has no {operation.groups} groups")
    gamma = parts["gamma"].whole() if "gamma" in operation.roles else np.ones(count)
    if isinstance(operation, AffineBefore):
        return channels_from(gamma, None, 0.0)
    return channels_from(gamma, parts["variance"].whole(), operation.eps)


def channels_from(gamma: Floats, variance: Floats | None, eps: float) -> NormChannels:
    """The channels with these γ and v."""
    with ieee():
        sums = np.ones(len(gamma)) if variance is None else variance + eps
        odd = ~(np.isfinite(gamma) & np.isfinite(sums) & (sums > 0))
        mantissa, exponent = np.frexp(gamma)
        inner, power = np.frexp(sums)
        is_uneven = power % 2 != 0
        root = np.sqrt(np.where(is_uneven, inner * 2, inner))
        mantissa, exponent = mantissa / root, exponent - (power - is_uneven) // 2
        mantissa[odd] = (gamma / np.sqrt(sums))[odd]
        exponent[odd] = 0
    return NormChannels(gamma, variance, eps, mantissa, exponent.astype(np.int32), odd)
