"""Sums of products of one tensor's elements and of means over its rows: what standardization is made of.

A value is a polynomial, with exact numbers, in *atoms*: w itself, means of its powers over some axes, stored
vectors, powers of other such sums, and the larger of such a sum and a number. Equal values have equal terms,
however a graph computes them, since a mean of a sum is taken apart: the mean of (w - mean w)² is the mean of
w² less that of w, squared. A number that is a rounding of n, n - 1, or a quotient of these (n elements in a
row) is taken for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TypeAlias

from wnconvert.frozen import dataclass

__all__ = [
    "Atom",
    "Label",
    "RowValue",
    "Terms",
    "added",
    "larger",
    "leaf_rows",
    "mean",
    "number",
    "raised",
    "regrouped_rows",
    "times",
    "transposed_rows",
]


#: An axis of a stored tensor that is longer than 1: the tensor (-1: of equal numbers), the axis, its size.
Label: TypeAlias = tuple[int, int, int]
#: Powers of atoms, which are multiplied.
Product: TypeAlias = "frozenset[tuple[Atom, Fraction]]"
#: Products, each with a factor; they are added.
Terms: TypeAlias = "frozenset[tuple[Product, Fraction]]"

_MOST_TERMS, _MOST_NESTED, _MOST_POWER = 12, 3, 4
_ONE: Product = frozenset()


@dataclass(frozen=True, slots=True)
class Atom:
    """A factor of a term: the mean over ``over`` of w to the ``power``; w itself, if ``over`` is empty.

    A stored vector has its ``tensor``, and ``along`` which axis it runs. Else it is the sum ``of`` terms, or
    the larger of it and of ``least``, if that is a number.
    """

    power: int = 0
    over: frozenset[Label] = frozenset()
    tensor: int = -1
    along: Label | None = None
    of: Terms = frozenset()
    least: Fraction | None = None

    @property
    def nested(self) -> int:
        """How deep sums are nested in it."""
        inner = (atom.nested for product, _ in self.of for atom, _ in product)
        return 1 + max(inner, default=0) if self.of else 0

    def varies(self, along: frozenset[Label]) -> bool:
        """Whether it differs along some of these axes of w or of vectors."""
        if self.power:
            return not along <= self.over
        if self.of:
            return any(atom.varies(along) for product, _ in self.of for atom, _ in product)
        return self.along in along


@dataclass(frozen=True, slots=True)
class RowValue:
    """A value: what runs along each dim, and its terms; ``whole`` is the tensor that is w, -1 without one."""

    dims: tuple[tuple[Label, ...], ...]
    terms: Terms
    whole: int = -1

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every dim."""
        return tuple(math.prod(size for _, _, size in dim) for dim in self.dims)


def leaf_rows(tensor: int, shape: Sequence[int]) -> RowValue | None:
    """A stored tensor: w if it has more than one long axis, else a vector; None without elements."""
    if 0 in shape:
        return None
    dims = tuple(((tensor, axis, size),) if size != 1 else () for axis, size in enumerate(shape))
    long = [dim[0] for dim in dims if dim]
    if len(long) > 1:
        return RowValue(dims, _terms([(frozenset({(Atom(power=1), Fraction(1))}), Fraction(1))]), tensor)
    atom = Atom(tensor=tensor, along=long[0] if long else None)
    return RowValue(dims, _terms([(frozenset({(atom, Fraction(1))}), Fraction(1))]))


def number(value: float, shape: Sequence[int]) -> RowValue | None:
    """A tensor of equal numbers; None if they are not finite."""
    if not math.isfinite(value):
        return None
    dims = tuple(((-1, axis, size),) if size != 1 else () for axis, size in enumerate(shape))
    return RowValue(dims, _terms([(_ONE, Fraction(value))]))


def _terms(parts: Iterable[tuple[Product, Fraction]]) -> Terms:
    """Terms with those of equal products put together."""
    factors: dict[Product, Fraction] = {}
    for product, factor in parts:
        factors[product] = factors.get(product, Fraction(0)) + factor
    return frozenset((product, factor) for product, factor in factors.items() if factor)


def _limited(value: RowValue) -> RowValue | None:
    atoms = (atom for product, _ in value.terms for atom, _ in product)
    deep = any(atom.nested > _MOST_NESTED for atom in atoms)
    return None if deep or len(value.terms) > _MOST_TERMS else value


# -- of two values


def added(a: RowValue, b: RowValue, sign: int = 1) -> RowValue | None:
    """The sum, or with ``sign`` -1 the difference; None if it is not known."""
    both = _aligned(a, b)
    if both is None:
        return None
    a, b = both
    return _limited(_with(a, b, [*a.terms, *((product, sign * factor) for product, factor in b.terms)]))


def times(a: RowValue, b: RowValue) -> RowValue | None:
    """The product; None if it is not known."""
    both = _aligned(a, b)
    if both is None:
        return None
    a, b = both
    rows = _row_counts(a) | _row_counts(b)
    parts = [
        part
        for one, factor in a.terms
        for other, also in b.terms
        for part in _opened(_multiplied(one, other), _settled(factor * also, rows))
    ]
    return _limited(_with(a, b, parts))


def _with(a: RowValue, b: RowValue, parts: Iterable[tuple[Product, Fraction]]) -> RowValue:
    rank = max(len(a.dims), len(b.dims))
    dims = tuple(one or other for one, other in zip(_padded(a, rank), _padded(b, rank), strict=True))
    return RowValue(dims, _terms(parts), max(a.whole, b.whole))


def _padded(value: RowValue, rank: int) -> tuple[tuple[Label, ...], ...]:
    return ((),) * (rank - len(value.dims)) + value.dims


def _aligned(a: RowValue, b: RowValue) -> tuple[RowValue, RowValue] | None:
    """Both with the same names for the axes that meet; None if they do not fit, or both have a w."""
    if a.whole >= 0 and b.whole >= 0 and a.whole != b.whole:
        return None
    rank = max(len(a.dims), len(b.dims))
    for one, other in zip(_padded(a, rank), _padded(b, rank), strict=True):
        if not one or not other or one == other:
            continue
        if [size for *_, size in one] != [size for *_, size in other]:
            return None
        for mine, its in zip(one, other, strict=True):
            if its[0] != b.whole or b.whole < 0:
                b = _renamed(b, its, mine)
            elif mine[0] != a.whole or a.whole < 0:
                a = _renamed(a, mine, its)
            elif mine != its:
                return None
    return a, b


def _renamed(value: RowValue, old: Label, new: Label) -> RowValue:
    """The value with another name for an axis of a vector."""
    dims = tuple(tuple(new if label == old else label for label in dim) for dim in value.dims)
    return replace(value, dims=dims, terms=_renamed_terms(value.terms, old, new))


def _renamed_terms(terms: Terms, old: Label, new: Label) -> Terms:
    return frozenset(
        (
            frozenset(
                (
                    replace(
                        atom,
                        along=new if atom.along == old else atom.along,
                        of=_renamed_terms(atom.of, old, new),
                    ),
                    exponent,
                )
                for atom, exponent in product
            ),
            factor,
        )
        for product, factor in terms
    )


def _row_counts(value: RowValue) -> set[int]:
    """How many elements of w a row may have: those along all axes but one, and those of a mean."""
    sizes = [size for dim in value.dims for tensor, _, size in dim if tensor == value.whole >= 0]
    means = (atom.over for product, _ in value.terms for atom, _ in product)
    of_means = {math.prod(size for *_, size in over) for over in means if over}
    return {math.prod(sizes) // size for size in sizes} | of_means


def _settled(factor: Fraction, rows: Collection[int]) -> Fraction:
    """A factor, or the quotient of numbers of elements that it is a rounding of."""
    for n in rows:
        for size in (Fraction(n), Fraction(1, n), *_less_one(n)):
            exact = size if factor > 0 else -size
            if abs(factor / exact - 1) * (1 << 23) < 1:
                return exact
    return factor


def _less_one(n: int) -> Sequence[Fraction]:
    if n < 2:
        return ()
    return Fraction(n - 1), Fraction(1, n - 1), Fraction(n, n - 1), Fraction(n - 1, n)


def _multiplied(a: Product, b: Product) -> Product:
    powers: dict[Atom, Fraction] = dict(a)
    for atom, exponent in b:
        powers[atom] = powers.get(atom, Fraction(0)) + exponent
    return frozenset((atom, exponent) for atom, exponent in powers.items() if exponent)


def _opened(product: Product, factor: Fraction) -> Iterable[tuple[Product, Fraction]]:
    """A term, with a sum in it that is a factor multiplied out."""
    for atom, exponent in product:
        if atom.of and atom.least is None and exponent == 1:
            rest = product - {(atom, exponent)}
            return [
                part for inner, also in atom.of for part in _opened(_multiplied(rest, inner), factor * also)
            ]
    return [(product, factor)]


# -- of one value


def raised(value: RowValue, exponent: Fraction) -> RowValue | None:
    """A power, of roots the positive one; None if it is not known."""
    if exponent.denominator == 1 and 0 < exponent <= _MOST_POWER:
        made: RowValue | None = value
        for _ in range(int(exponent) - 1):
            made = times(made, value) if made is not None else None
        return made
    if exponent.denominator > 2 or abs(exponent) > _MOST_POWER or not value.terms:
        return None
    ((product, factor), *more) = value.terms
    if not more and not product:  # a number
        whole = exponent.denominator == 1
        return replace(value, terms=_terms([(_ONE, factor**exponent.numerator)])) if whole else None
    if not more and factor == 1 and all(atom.of for atom, _ in product):
        powers = frozenset((atom, power * exponent) for atom, power in product)
        return replace(value, terms=_terms(_opened(powers, Fraction(1))))
    atom = Atom(of=value.terms)
    return _limited(replace(value, terms=_terms([(frozenset({(atom, exponent)}), Fraction(1))])))


def larger(a: RowValue, b: RowValue) -> RowValue | None:
    """The larger of a value and of a number above 0; None if neither is such a number."""
    for value, other in ((a, b), (b, a)):
        numbers = [factor for product, factor in other.terms if not product]
        if len(other.terms) == len(numbers) == 1 and numbers[0] > 0 and not any(other.dims):
            atom = Atom(of=value.terms, least=numbers[0])
            rank = max(len(a.dims), len(b.dims))
            made = RowValue(
                _padded(value, rank), _terms([(frozenset({(atom, Fraction(1))}), Fraction(1))]), value.whole
            )
            return _limited(made)
    return None


def mean(value: RowValue, axes: Collection[int], *, keepdims: bool, total: bool = False) -> RowValue | None:
    """The mean over some dims, or with ``total`` the sum; None if it is not known."""
    gone = {axis % len(value.dims) for axis in axes}
    labels = frozenset(label for axis in gone for label in value.dims[axis])
    count = Fraction(math.prod(size for *_, size in labels) if total else 1)
    parts: list[tuple[Product, Fraction]] = []
    for product, factor in value.terms:
        made = _mean_of(product, labels, value.whole)
        if made is None:
            return None
        parts.append((made, factor * count))
    dims = tuple(
        () if axis in gone else dim for axis, dim in enumerate(value.dims) if keepdims or axis not in gone
    )
    return RowValue(dims, _terms(parts), value.whole)


def _mean_of(product: Product, labels: frozenset[Label], whole: int) -> Product | None:
    """The mean of a product: of one power of w beside what is the same along these axes."""
    varying = [(atom, exponent) for atom, exponent in product if labels and atom.varies(labels)]
    if not varying:
        return product
    (atom, exponent), *more = varying
    of_w = atom.power and all(tensor == whole for tensor, *_ in labels) and not labels & atom.over
    if not of_w or more or exponent.denominator != 1 or exponent < 1 or (atom.over and exponent != 1):
        return None
    power = atom.power * int(exponent)
    made = Atom(power=power, over=atom.over | labels)
    return _multiplied(product - {(atom, exponent)}, frozenset({(made, Fraction(1))}))


# -- views


def transposed_rows(value: RowValue, order: Sequence[int]) -> RowValue | None:
    """The dims in another order; None if that is not an order."""
    if sorted(order) != list(range(len(value.dims))):
        return None
    return replace(value, dims=tuple(value.dims[axis] for axis in order))


def regrouped_rows(value: RowValue, shape: Sequence[int]) -> RowValue | None:
    """The same elements in another shape; None if that would cut an axis."""
    left = [label for dim in value.dims for label in dim]
    if math.prod(size for *_, size in left) != math.prod(shape):
        return None
    left.reverse()
    dims: list[tuple[Label, ...]] = []
    for size in shape:
        dim: list[Label] = []
        while math.prod(each for *_, each in dim) < size:
            dim.append(left.pop())
        if math.prod(each for *_, each in dim) != size:
            return None
        dims.append(tuple(dim))
    return replace(value, dims=tuple(dims))
