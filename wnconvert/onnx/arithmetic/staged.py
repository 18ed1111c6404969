"""Products that are rounded to whole numbers on the way, as a graph with QuantizeLinear computes them.

Such a value is g·v/‖v‖ no more: it is what the rounded steps make of it, and only they tell its numbers. So
it has no monomial, and no rule but that of ``of`` with all of its steps.
"""

from __future__ import annotations

import math
from dataclasses import replace

from wnconvert.frozen import dataclass
from wnconvert.onnx.arithmetic.products.monomials import VALUE, Monomial, multiplied
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import StoredTensor
from wnconvert.tensors.views.quantization import Dequantize, Elementwise, Quantization, Quantize, Times

__all__ = ["Roundings"]


@dataclass(frozen=True, slots=True)
class Roundings:
    """A value: ``of`` is what it would be without roundings, and ``steps`` what is done to get it.

    The steps start from ``of`` without the tensors ``factors`` (by number), by which they multiply. ``dtype``
    is that of the start.
    """

    of: Monomial
    dtype: DType
    steps: tuple[Elementwise, ...] = ()
    factors: tuple[int, ...] = ()

    @property
    def is_codes(self) -> bool:
        """Whether it has been quantized, and not dequantized since."""
        return bool(self.steps) and isinstance(self.steps[-1], Quantize)

    @property
    def is_dequantized(self) -> bool:
        """Whether it is codes as numbers, and nothing else is done with them."""
        return bool(self.steps) and isinstance(self.steps[-1], Dequantize)

    def quantized(self, how: Quantization) -> Roundings | None:
        """Its codes; None where they are unknown."""
        made = self.steps[-1].dtype if self.steps else self.dtype
        known = not self.is_codes and made == how.scale.info.dtype and how.fits(self.of.shape)
        return self.then(Quantize(how)) if known else None

    def dequantized(self, how: Quantization) -> Roundings | None:
        """The numbers of its codes; None where it has none, or has others."""
        known = self.is_codes and self.steps[-1].dtype == how.dtype and how.fits(self.of.shape)
        return self.then(Dequantize(how)) if known else None

    def times(self, number: int, factor: StoredTensor, other: Monomial) -> Roundings | None:
        """It times the tensor of a number, which is the value ``other``; None where it is not that alone."""
        made = multiplied(self.of, other)
        if made is None or made.shape != self.of.shape or self.is_codes or not self.steps:
            return None
        ((each, exponent),) = other.factors if len(other.factors) == 1 else ((None, 0),)
        shape = (*(1,) * (len(made.shape) - len(other.shape)), *other.shape)
        long = [axis for axis, size in enumerate(shape) if size > 1]
        alone = each is not None and each.kind == VALUE and exponent == 1 and len(long) < 2
        if not alone or math.prod(shape) != factor.info.numel or factor.info.dtype != self.steps[-1].dtype:
            return None
        step = Times(factor, long[0] if long else None, factor.info.dtype)
        return replace(self.then(step), of=made, factors=(*self.factors, number))

    def then(self, step: Elementwise) -> Roundings:
        """It after one more step."""
        return replace(self, steps=(*self.steps, step))
