"""Products of powers of stored tensors and of sums of their squares, by shapes alone.

A *monomial* is a value such as g·v·(Σv²)^(-1/2). Its shape is a tuple of *dims*, each made of *atoms*: an
atom is an axis of size > 1 of some tensor, and a dim is the product of its atoms in C order (``()`` is a dim
of size 1). Atoms are numbered in order, and each factor names the atom along which each axis of its tensor
runs, so equal values have equal monomials however the graph computes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias

__all__ = [
    "Dims",
    "Factor",
    "Monomial",
    "expanded",
    "leaf",
    "magnitude",
    "multiplied",
    "ones",
    "power",
    "regrouped",
    "summed",
    "transposed",
    "unsqueezed",
]


Dims: TypeAlias = tuple[tuple[int, ...], ...]

#: The kinds of factors: a tensor itself, its absolute value, or a sum of its squares.
VALUE, MAGNITUDE, SQUARES = "value", "magnitude", "squares"

_MOST_FACTORS = 16  # weight norm has three


@dataclass(frozen=True, slots=True, order=True)
class Factor:
    """A stored tensor (by number), its magnitude, or a sum of its squares.

    ``axes`` has the atom along which each axis of the tensor runs, or -1 for an axis of size 1 or one that
    is summed over.
    """

    tensor: int
    kind: str
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Monomial:
    """A product of powers of factors; ``dims`` holds the sizes of its atoms."""

    dims: Dims
    factors: tuple[tuple[Factor, Fraction], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every dim."""
        return tuple(math.prod(dim) for dim in self.dims)


def leaf(number: int, shape: Sequence[int]) -> Monomial | None:
    """The monomial of a stored tensor; None if it has no elements.

    >>> leaf(0, (8, 1, 3)).dims, leaf(0, (8, 1, 3)).factors[0][0].axes
    (((8,), (), (3,)), (0, -1, 1))
    """
    if 0 in shape:
        return None
    long = [axis for axis, size in enumerate(shape) if size != 1]
    axes = tuple(long.index(axis) if size != 1 else -1 for axis, size in enumerate(shape))
    return Monomial(_dims_of(shape), ((Factor(number, VALUE, axes), Fraction(1)),))


def ones(shape: Sequence[int]) -> Monomial | None:
    """The monomial of a tensor of ones; None if it has no elements."""
    return None if 0 in shape else Monomial(_dims_of(shape), ())


def _dims_of(shape: Iterable[int]) -> Dims:
    return tuple((size,) if size != 1 else () for size in shape)


def _atoms(dims: Dims) -> tuple[tuple[int, ...], ...]:
    """The numbers of the atoms of each dim."""
    numbered: list[tuple[int, ...]] = []
    at = 0
    for dim in dims:
        numbered.append(tuple(range(at, at + len(dim))))
        at += len(dim)
    return tuple(numbered)


def _product(parts: Iterable[tuple[Factor, Fraction]]) -> tuple[tuple[Factor, Fraction], ...]:
    """A product with equal factors merged; |x|² becomes x², so that both spellings are equal."""
    powers: dict[Factor, Fraction] = {}
    for factor, exponent in parts:
        powers[factor] = powers.get(factor, Fraction(0)) + exponent
    for factor in [factor for factor in powers if factor.kind == MAGNITUDE]:
        if powers[factor] % 2 == 0:
            plain, exponent = replace(factor, kind=VALUE), powers.pop(factor)
            powers[plain] = powers.get(plain, Fraction(0)) + exponent
    return tuple(sorted((factor, exponent) for factor, exponent in powers.items() if exponent))


def _moved(monomial: Monomial, places: Mapping[int, int]) -> Iterable[tuple[Factor, Fraction]]:
    """The factors of a monomial with their atoms renumbered."""
    for factor, exponent in monomial.factors:
        axes = tuple(places[atom] if atom >= 0 else -1 for atom in factor.axes)
        yield replace(factor, axes=axes), exponent


def transposed(monomial: Monomial, order: Sequence[int]) -> Monomial | None:
    """The monomial with its dims in another order; None if that is not an order.

    >>> transposed(leaf(0, (8, 3)), (1, 0)).factors[0][0].axes
    (1, 0)
    """
    if sorted(order) != list(range(len(monomial.dims))):
        return None
    atoms = _atoms(monomial.dims)
    moved = [atom for axis in order for atom in atoms[axis]]
    places = {atom: place for place, atom in enumerate(moved)}
    dims = tuple(monomial.dims[axis] for axis in order)
    return Monomial(dims, tuple(sorted(_moved(monomial, places))))


def regrouped(monomial: Monomial, shape: Sequence[int]) -> Monomial | None:
    """The same elements in another shape; None if that would cut an atom.

    >>> regrouped(leaf(0, (8, 4, 3)), (8, 12)).dims, regrouped(leaf(0, (8, 12)), (8, 4, 3))
    (((8,), (4, 3)), None)
    """
    left = [size for dim in monomial.dims for size in dim]
    if math.prod(left) != math.prod(shape):
        return None
    left.reverse()
    dims: list[tuple[int, ...]] = []
    for size in shape:
        dim: list[int] = []
        while math.prod(dim) < size:
            dim.append(left.pop())
        if math.prod(dim) != size:
            return None
        dims.append(tuple(dim))
    return replace(monomial, dims=tuple(dims))


def unsqueezed(monomial: Monomial, axes: Sequence[int]) -> Monomial | None:
    """The monomial with dims of size 1 at the given places of the result; None if these are invalid."""
    rank = len(monomial.dims) + len(axes)
    if not all(-rank <= axis < rank for axis in axes):
        return None
    places = {axis % rank for axis in axes}
    if len(places) != len(axes):
        return None
    dims = iter(monomial.dims)
    return replace(monomial, dims=tuple(() if axis in places else next(dims) for axis in range(rank)))


def expanded(monomial: Monomial, shape: Sequence[int]) -> Monomial | None:
    """The monomial broadcast to (and with) a shape; None if it does not fit."""
    other = ones(shape)
    return multiplied(monomial, other) if other is not None else None


def multiplied(a: Monomial, b: Monomial) -> Monomial | None:
    """The product of two monomials, broadcast; None if their dims do not fit atom by atom.

    >>> g, v = leaf(0, (8, 1)), leaf(1, (8, 3))
    >>> [factor.axes for factor, _ in multiplied(g, v).factors]
    [(0, -1), (0, 1)]
    """
    rank = max(len(a.dims), len(b.dims))
    pad_a: Dims = ((),) * (rank - len(a.dims)) + a.dims
    pad_b: Dims = ((),) * (rank - len(b.dims)) + b.dims
    dims: list[tuple[int, ...]] = []
    places_a: dict[int, int] = {}
    places_b: dict[int, int] = {}
    at = 0
    for dim_a, dim_b, atoms_a, atoms_b in zip(pad_a, pad_b, _atoms(pad_a), _atoms(pad_b), strict=True):
        if dim_a and dim_b and dim_a != dim_b:
            return None
        dims.append(dim_a or dim_b)
        places = range(at, at + len(dims[-1]))
        places_a.update(zip(atoms_a, places, strict=False))  # a dim of size 1 has no atoms
        places_b.update(zip(atoms_b, places, strict=False))
        at = places.stop
    if len(a.factors) + len(b.factors) > _MOST_FACTORS:
        return None
    return Monomial(tuple(dims), _product([*_moved(a, places_a), *_moved(b, places_b)]))


def power(monomial: Monomial, exponent: Fraction) -> Monomial | None:
    """A power: any whole one, or a half of a monomial that is known not to be negative; else None.

    >>> square = power(leaf(0, (8,)), Fraction(2))
    >>> power(square, Fraction(1, 2)) == magnitude(leaf(0, (8,))), power(leaf(0, (8,)), Fraction(1, 2))
    (True, None)
    """
    if exponent.denominator not in {1, 2} or abs(exponent) > 4:
        return None
    parts: list[tuple[Factor, Fraction]] = []
    for factor, old in monomial.factors:
        if exponent.denominator == 1 or factor.kind != VALUE:
            parts.append((factor, old * exponent))
        elif old % 2 == 0:  # √(x²) is |x|
            parts.append((replace(factor, kind=MAGNITUDE), old * exponent))
        else:
            return None
    if any(abs(new) > 8 or new.denominator > 2 for _, new in parts):
        return None
    if any(new.denominator != 1 for factor, new in parts if factor.kind == VALUE):
        return None
    return Monomial(monomial.dims, _product(parts))


def magnitude(monomial: Monomial) -> Monomial:
    """The absolute value of a monomial."""
    parts = [
        (replace(factor, kind=MAGNITUDE) if factor.kind == VALUE else factor, exponent)
        for factor, exponent in monomial.factors
    ]
    return Monomial(monomial.dims, _product(parts))


def summed(monomial: Monomial, axes: Iterable[int], *, keepdims: bool) -> Monomial | None:
    """The sum over axes, if that is a sum of squares of one tensor; else None.

    >>> total = summed(power(leaf(0, (8, 4, 3)), Fraction(2)), (1, 2), keepdims=True)
    >>> total.dims, total.factors[0][0].kind, total.factors[0][0].axes
    (((8,), (), ()), 'squares', (0, -1, -1))
    """
    gone = {axis % len(monomial.dims) for axis in axes}
    if len(monomial.factors) != 1:
        return None
    factor, exponent = monomial.factors[0]
    if exponent != {VALUE: 2, SQUARES: 1}.get(factor.kind):
        return None
    atoms = _atoms(monomial.dims)
    over = {atom for axis in gone for atom in atoms[axis]}
    if not over <= set(factor.axes):
        return None  # the sum over a repeated axis is a multiple
    kept = [atom for number in atoms for atom in number if atom not in over]
    places = {atom: place for place, atom in enumerate(kept)}
    axes_left = tuple(places.get(atom, -1) for atom in factor.axes)
    dims = tuple(
        () if axis in gone else dim for axis, dim in enumerate(monomial.dims) if keepdims or axis not in gone
    )
    return Monomial(dims, ((Factor(factor.tensor, SQUARES, axes_left), Fraction(1)),))
