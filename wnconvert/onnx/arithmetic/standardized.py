"""Weight standardization among values of rows: the formula that a value is, with its numbers."""

from __future__ import annotations

import math
from fractions import Fraction

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import ORIGINAL, EpsAt, Rule, Standardize, Std
from wnconvert.onnx.arithmetic.meaning import Meaning
from wnconvert.onnx.arithmetic.rowwise import Atom, Label, Product, RowValue, Terms

__all__ = ["standardization_of"]


@dataclass(frozen=True, slots=True)
class _Deviation:
    """What the rows are divided by."""

    std: Std
    eps_at: EpsAt
    eps: Fraction
    fan: int = 1


def standardization_of(value: RowValue) -> Meaning | None:
    """The standardization that a value is; None if it is none.

    The value is (w - mean)·c·γ/d + β by rows, as ``Standardize`` has it: of both terms with w and with its
    mean the rest is the same, and of the rest the divisor is one of the deviations that there are.
    """
    every = [label for dim in value.dims for label in dim]
    labels = frozenset(every)
    if value.whole < 0 or len(every) != len(labels) or any(tensor != value.whole for tensor, *_ in labels):
        return None
    shift, scaled = _parted(value.terms)
    for dim in labels:
        found = _scaled(scaled, labels - {dim}, dim)
        if found is not None and (shift is None or shift.along == dim):
            deviation, scale, gain = found
            operation = Standardize(
                dim[1],
                deviation.std,
                deviation.eps_at,
                float(deviation.eps),
                scale,
                deviation.fan,
                gain is not None,
                shift is not None,
            )
            roles = ((role, atom.tensor) for role, atom in (("gain", gain), ("shift", shift)) if atom)
            return Meaning(Rule((operation,)), ((ORIGINAL, value.whole), *roles))
    return None


def _parted(terms: Terms) -> tuple[Atom | None, list[tuple[Product, Fraction]]]:
    """The vector that is added, if there is one, and the other terms."""
    vectors = [
        atom
        for product, factor in terms
        if factor == 1 and len(product) == 1
        for atom, exponent in product
        if exponent == 1 and not atom.power and not atom.of
    ]
    if len(vectors) != 1:
        return None, list(terms)
    shift = vectors[0]
    return shift, [term for term in terms if term[0] != {(shift, Fraction(1))}]


def _scaled(
    terms: list[tuple[Product, Fraction]], over: frozenset[Label], dim: Label
) -> tuple[_Deviation, float, Atom | None] | None:
    """What (w - mean) is multiplied by, the mean being that over these axes."""
    w, mean = ((Atom(power=1), Fraction(1)), (Atom(power=1, over=over), Fraction(1)))
    rests = {product - {w}: factor for product, factor in terms if w in product}
    means = {product - {mean}: -factor for product, factor in terms if mean in product}
    if len(terms) != 2 or len(rests) != 1 or rests != means:
        return None
    ((rest, factor),) = rests.items()
    gains = [atom for atom, exponent in rest if exponent == 1 and atom.along == dim and not atom.of]
    roots = [(atom, exponent) for atom, exponent in rest if atom.of]
    if len(roots) != 1 or len(gains) + 1 != len(rest) or len(gains) > 1:
        return None
    deviation = _deviation(*roots[0], over)
    return (deviation, float(factor), gains[0] if gains else None) if deviation else None


def _deviation(root: Atom, exponent: Fraction, over: frozenset[Label]) -> _Deviation | None:
    """The deviation whose inverse is a power of a sum: √(V + eps), √V + eps, or √max(V·fan, eps)."""
    count = math.prod(size for *_, size in over)
    if exponent == Fraction(-1, 2) and root.least is not None:
        factor = _variances(root.of, over)
        return _largest(factor, root.least, count) if factor else None
    constant, rest = _without_number(root.of)
    if constant is None or constant <= 0:
        return None
    if exponent == Fraction(-1, 2):
        std = _std_of(_variances(rest, over), count)
        return _Deviation(std, "var", constant) if std else None
    if exponent == -1 and len(rest) == 1:
        ((product, factor),) = rest
        inner = [
            atom for atom, power in product if power == Fraction(1, 2) and atom.of and atom.least is None
        ]
        if factor == 1 and len(product) == len(inner) == 1:
            std = _std_of(_variances(inner[0].of, over), count)
            return _Deviation(std, "std", constant) if std else None
    return None


def _largest(factor: Fraction, least: Fraction, count: int) -> _Deviation | None:
    """√max(V·fan, eps) of a multiple of the biased variance."""
    unbiased = factor * Fraction(count - 1, count)
    if factor.denominator == 1:
        return _Deviation("biased", "max", least, int(factor))
    return _Deviation("unbiased", "max", least, int(unbiased)) if unbiased.denominator == 1 else None


def _std_of(factor: Fraction | None, count: int) -> Std | None:
    """Which variance a multiple of the biased one is."""
    if factor == 1:
        return "biased"
    return "unbiased" if count > 1 and factor == Fraction(count, count - 1) else None


def _variances(terms: Terms, over: frozenset[Label]) -> Fraction | None:
    """How many times the biased variance a sum is: the mean of the squares less the squared mean."""
    squares: Product = frozenset({(Atom(power=2, over=over), Fraction(1))})
    squared: Product = frozenset({(Atom(power=1, over=over), Fraction(2))})
    factors = dict(terms)
    factor = factors.get(squares)
    if factor is None or factor <= 0 or factors != {squares: factor, squared: -factor}:
        return None
    return factor


def _without_number(terms: Terms) -> tuple[Fraction | None, Terms]:
    """The number in a sum, if there is one, and the rest of the sum."""
    numbers = [factor for product, factor in terms if not product]
    return next(iter(numbers), None), frozenset(term for term in terms if term[0])
