"""Powers of monomials, magnitudes, guarded values, and tensors that are one number taken for that."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from fractions import Fraction

from wnconvert.onnx.arithmetic.products.monomials import (
    ADDED,
    LARGER,
    MAGNITUDE,
    SUM,
    VALUE,
    Factor,
    Monomial,
    Powers,
    in_any_order,
    limited,
    product_of,
    renumbered,
)

__all__ = ["guarded", "magnitude", "numbers_in", "power", "with_numbers"]


def power(monomial: Monomial, exponent: Fraction) -> Monomial | None:
    """A power: any whole one, or a half of a monomial that is known not to be negative; else None.

    >>> from wnconvert.onnx.arithmetic.products.monomials import leaf
    >>> square = power(leaf(0, (8,)), Fraction(2))
    >>> power(square, Fraction(1, 2)) == magnitude(leaf(0, (8,))), power(leaf(0, (8,)), Fraction(1, 2))
    (True, None)
    """
    if exponent.denominator not in {1, 2} or abs(exponent) > 4:
        return None
    parts: list[tuple[Factor, Fraction]] = []
    for factor, old in monomial.factors:
        if exponent.denominator == 1 or _is_positive(factor):
            parts.append((factor, old * exponent))
        elif factor.kind == VALUE and old % 2 == 0:  # √(x²) is |x|
            parts.append((replace(factor, kind=MAGNITUDE), old * exponent))
        elif _may_hold_squares(factor) and old == 1:
            parts.append((factor, exponent))
        else:
            return None
    if any(abs(new) > 8 or new.denominator > 2 for _, new in parts):
        return None
    if any(new.denominator != 1 for factor, new in parts if factor.kind == VALUE):
        return None
    number = _number_to(monomial.number, exponent)
    if number is None:
        inside = guarded(monomial, ADDED, Fraction(0))
        return power(inside, exponent) if inside is not None else None
    return limited(monomial.dims, product_of(parts), number)


def _number_to(number: Fraction, exponent: Fraction) -> Fraction | None:
    """A power of a number; None if it is not rational."""
    if exponent.denominator == 1:
        return number**exponent.numerator
    up, down = (math.isqrt(max(part, 0)) for part in (number.numerator, number.denominator))
    is_square = (up**2, down**2) == (number.numerator, number.denominator)
    return Fraction(up, down) ** exponent.numerator if is_square else None


def guarded(monomial: Monomial, kind: str, eps: Fraction) -> Monomial | None:
    """The larger of a value and of a number, or their sum; None if the value may be negative.

    >>> from wnconvert.onnx.arithmetic.products.monomials import leaf
    >>> squares = power(leaf(0, (8,)), Fraction(2))
    >>> guarded(squares, LARGER, Fraction(1)).factors[0][0].kind, guarded(leaf(0, (8,)), LARGER, Fraction(1))
    ('larger', None)
    """
    unknown = tuple(
        (factor, exponent)
        for factor, exponent in monomial.factors
        if (not factor.all or factor.all < 0) and not (_may_hold_squares(factor) and exponent == 1)
    )
    if monomial.number <= 0 or eps < 0 or not _is_product_positive(unknown):
        return None
    sizes = [size for dim in monomial.dims for size in dim]
    product = sorted(monomial.factors, key=in_any_order)
    atoms = list(dict.fromkeys(atom for factor, _ in product for atom in factor.atoms))
    of = renumbered(tuple(product), {atom: (place,) for place, atom in enumerate(atoms)})
    axes = tuple((atom,) for atom in atoms)
    made = Factor(-1, kind, axes, of, tuple(sizes[atom] for atom in atoms), monomial.number, eps)
    return limited(monomial.dims, ((made, Fraction(1)),))


def _is_product_positive(factors: Powers) -> bool:
    return all(exponent % 2 == 0 or _is_positive(factor) for factor, exponent in factors)


def _may_hold_squares(factor: Factor) -> bool:
    """Whether it is the sum of a stored tensor alone, of which the numbers decide whether it has a root.

    Only the rule ``Over`` has such a root, and it refuses negative numbers.
    """
    return factor.kind == SUM and [(part.kind, power) for part, power in factor.of] == [(VALUE, Fraction(1))]


def _is_positive(factor: Factor) -> bool:
    """Whether a factor is known not to be negative."""
    if factor.kind == SUM:
        return _is_product_positive(factor.of)
    return factor.kind in (MAGNITUDE, LARGER, ADDED)


def numbers_in(powers: Powers) -> dict[int, Fraction]:
    """The tensors in a product that are one number, and which."""
    found = {factor.tensor: factor.all for factor, _ in powers if factor.all is not None}
    for factor, _ in powers:
        found |= numbers_in(factor.of)
    return found


def with_numbers(monomial: Monomial, tensors: Collection[int]) -> Monomial | None:
    """The value with some tensors as the one number that each holds; None if that is not rational.

    >>> from wnconvert.onnx.arithmetic.products.monomials import leaf, multiplied
    >>> with_numbers(multiplied(leaf(0, (8,)), leaf(1, (), Fraction(3))), {1}).number
    Fraction(3, 1)
    """
    if not tensors:
        return monomial
    found = _without(monomial.factors, tensors)
    return limited(monomial.dims, found[0], monomial.number * found[1]) if found is not None else None


def _without(factors: Powers, tensors: Collection[int]) -> tuple[Powers, Fraction] | None:
    """A product without some tensors, and what they make of it."""
    left: list[tuple[Factor, Fraction]] = []
    made = Fraction(1)
    for factor, exponent in factors:
        if factor.tensor in tensors:
            number = factor.all or Fraction(0)
            by = _number_to(abs(number) if factor.kind == MAGNITUDE else number, exponent) if number else None
            if by is None:
                return None
            made *= by
        elif factor.kind in (LARGER, ADDED):
            inside = _without(factor.of, tensors)
            if inside is None:
                return None
            left.append((_reopened(factor, *inside), exponent))
        else:
            left.append((factor, exponent))
    return product_of(left), made


def _reopened(factor: Factor, of: Powers, number: Fraction) -> Factor:
    """A guarded factor with another product in it, which runs along some of its atoms."""
    used = sorted({atom for part, _ in of for atom in part.atoms})
    places = {atom: (place,) for place, atom in enumerate(used)}
    return replace(
        factor,
        of=renumbered(of, places),
        axes=tuple(factor.axes[atom] for atom in used),
        sizes=tuple(factor.sizes[atom] for atom in used),
        number=factor.number * number,
    )


def magnitude(monomial: Monomial) -> Monomial | None:
    """The absolute value of a monomial; None if a sum may be negative."""
    if any(factor.kind == SUM and not _is_positive(factor) for factor, _ in monomial.factors):
        return None
    parts = [
        (replace(factor, kind=MAGNITUDE) if factor.kind == VALUE else factor, exponent)
        for factor, exponent in monomial.factors
    ]
    return Monomial(monomial.dims, product_of(parts), abs(monomial.number))
