"""Products of powers of stored tensors, of sums of such products and of guarded ones, by shapes alone.

A *monomial* is a value such as g·v·(Σv²)^(-1/2) or w·(Σu·w·v)^(-1), times a number. Its shape is a tuple of
*dims*, each made of *atoms*: an atom is an axis of size > 1 of some tensor, or a part of one, and a dim is
the product of its atoms in C order (``()`` is a dim of size 1). Atoms are numbered in order, and each factor
names the atoms along which each axis of its tensor runs. What a sum does not run over is taken out of it, and
a sum within a sum is one sum, so values are equal if their monomials are, and mostly the other way round,
however the graph computes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from fractions import Fraction
from itertools import pairwise
from typing import TypeAlias

from wnconvert.frozen import dataclass

__all__ = [
    "ADDED",
    "LARGER",
    "MAGNITUDE",
    "SUM",
    "VALUE",
    "Dims",
    "Factor",
    "Monomial",
    "Powers",
    "atoms_of",
    "expanded",
    "in_any_order",
    "in_one_piece",
    "laid_out",
    "leaf",
    "limited",
    "multiplied",
    "ones",
    "product_of",
    "regrouped",
    "renumbered",
    "retold",
    "tensor_numbers",
    "transposed",
    "unsqueezed",
]


Dims: TypeAlias = tuple[tuple[int, ...], ...]

#: The kinds of factors: a tensor itself, its absolute value, or a sum.
VALUE, MAGNITUDE, SUM = "value", "magnitude", "sum"
#: Factors with a guard: the larger of a product and a number, or the sum of both; all are positive.
LARGER, ADDED = "larger", "added"

_MOST_TENSORS = 32  # weight norm, masked, within spectral norm has 13
_MOST_BITS = 4096  # of a number: a quotient of two float64 has at most 2,100


@dataclass(frozen=True, slots=True, order=True)
class Factor:
    """A stored tensor (by number), its magnitude, or a sum of the product ``of``, whose atoms have ``sizes``.

    ``axes`` has the atoms along which each axis of the tensor runs; of a sum (tensor -1), those along which
    each atom of its product runs. ``()`` is an axis of size 1, or an atom that is summed over. A guarded
    factor (tensor -1) is like a sum over nothing: of ``number`` times ``of``, and ``eps``. ``all`` is the
    number that all elements of a tensor are, if they are known to be one. Fractions are not hashed, since
    that takes longer than all the rest.
    """

    tensor: int
    kind: str
    axes: tuple[tuple[int, ...], ...]
    of: Powers = ()
    sizes: tuple[int, ...] = ()
    number: Fraction = field(default=Fraction(1), hash=False)
    eps: Fraction = field(default=Fraction(0), hash=False)
    all: Fraction | None = field(default=None, hash=False)

    @property
    def atoms(self) -> tuple[int, ...]:
        """The atoms along which it runs."""
        return tuple(atom for axis in self.axes for atom in axis)


#: A product of powers of factors, in order.
Powers: TypeAlias = tuple[tuple[Factor, Fraction], ...]


@dataclass(frozen=True, slots=True)
class Monomial:
    """A number times a product of powers of factors; ``dims`` holds the sizes of its atoms."""

    dims: Dims
    factors: Powers
    number: Fraction = Fraction(1)

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every dim."""
        return tuple(math.prod(dim) for dim in self.dims)


def tensor_numbers(powers: Powers) -> frozenset[int]:
    """The numbers of all tensors in a product, those in its sums among them."""
    own = {factor.tensor for factor, _ in powers if factor.tensor >= 0}
    return frozenset(own.union(*(tensor_numbers(factor.of) for factor, _ in powers)))


def retold(powers: Powers, numbers: Mapping[int, int]) -> Powers:
    """A product of other tensors: for tensor i the tensor ``numbers[i]``, in the same order.

    >>> [factor.tensor for factor, _ in retold(leaf(0, (8,)).factors, {0: 4})]
    [4]
    """
    return tuple((_retold(factor, numbers), exponent) for factor, exponent in powers)


def _retold(factor: Factor, numbers: Mapping[int, int]) -> Factor:
    if factor.tensor >= 0:
        return replace(factor, tensor=numbers[factor.tensor])
    return replace(factor, of=retold(factor.of, numbers))


def leaf(number: int, shape: Sequence[int], all_of_it: Fraction | None = None) -> Monomial | None:
    """The monomial of a stored tensor, all of whose elements may be one number; None if it has none.

    >>> leaf(0, (8, 1, 3)).dims, leaf(0, (8, 1, 3)).factors[0][0].axes
    (((8,), (), (3,)), ((0,), (), (1,)))
    """
    if 0 in shape:
        return None
    long = [axis for axis, size in enumerate(shape) if size != 1]
    axes = tuple((long.index(axis),) if size != 1 else () for axis, size in enumerate(shape))
    return Monomial(_dims_of(shape), ((Factor(number, VALUE, axes, all=all_of_it), Fraction(1)),))


def ones(shape: Sequence[int], number: Fraction = Fraction(1)) -> Monomial | None:
    """The monomial of a tensor of ones, or of another number; None without elements, or if that is 0."""
    return None if 0 in shape or not number else Monomial(_dims_of(shape), (), number)


def _dims_of(shape: Iterable[int]) -> Dims:
    return tuple((size,) if size != 1 else () for size in shape)


def atoms_of(dims: Dims) -> tuple[tuple[int, ...], ...]:
    """The numbers of the atoms of each dim."""
    numbered: list[tuple[int, ...]] = []
    at = 0
    for dim in dims:
        numbered.append(tuple(range(at, at + len(dim))))
        at += len(dim)
    return tuple(numbered)


def product_of(parts: Iterable[tuple[Factor, Fraction]]) -> Powers:
    """A product with equal factors merged; |x|² becomes x², so that both spellings are equal."""
    powers: dict[Factor, Fraction] = {}
    for factor, exponent in parts:
        powers[factor] = powers[factor] + exponent if factor in powers else exponent
    for factor in [factor for factor in powers if factor.kind == MAGNITUDE]:
        if powers[factor] % 2 == 0:
            plain, exponent = replace(factor, kind=VALUE), powers.pop(factor)
            powers[plain] = powers.get(plain, Fraction(0)) + exponent
    return tuple(sorted((factor, exponent) for factor, exponent in powers.items() if exponent))


def renumbered(powers: Powers, places: Mapping[int, Sequence[int]]) -> Powers:
    """A product with its atoms renumbered, or each cut in several."""
    return tuple(sorted((_renumbered(factor, places), exponent) for factor, exponent in powers))


def _renumbered(factor: Factor, places: Mapping[int, Sequence[int]]) -> Factor:
    axes = tuple(_placed(axis, places) for axis in factor.axes)
    return factor if axes == factor.axes else replace(factor, axes=axes)


def _placed(axis: Sequence[int], places: Mapping[int, Sequence[int]]) -> tuple[int, ...]:
    return tuple(place for atom in axis for place in places[atom])


def transposed(monomial: Monomial, order: Sequence[int]) -> Monomial | None:
    """The monomial with its dims in another order; None if that is not an order.

    >>> transposed(leaf(0, (8, 3)), (1, 0)).factors[0][0].axes
    ((1,), (0,))
    """
    if sorted(order) != list(range(len(monomial.dims))):
        return None
    atoms = atoms_of(monomial.dims)
    moved = [atom for axis in order for atom in atoms[axis]]
    places = {atom: (place,) for place, atom in enumerate(moved)}
    dims = tuple(monomial.dims[axis] for axis in order)
    return Monomial(dims, renumbered(monomial.factors, places), monomial.number)


def laid_out(monomial: Monomial, axes: Sequence[Sequence[int]]) -> Monomial:
    """The monomial with its atoms in the order of ``axes``, each a dim."""
    sizes = [size for dim in monomial.dims for size in dim]
    moved = [atom for axis in axes for atom in axis]
    places = {atom: (place,) for place, atom in enumerate(moved)}
    dims = tuple(tuple(sizes[atom] for atom in axis) for axis in axes)
    return Monomial(dims, renumbered(monomial.factors, places), monomial.number)


def regrouped(monomial: Monomial, shape: Sequence[int]) -> Monomial | None:
    """The same elements in another shape, atoms cut where that cuts them; None if it cuts across one.

    >>> regrouped(leaf(0, (8, 4, 3)), (8, 12)).dims, regrouped(leaf(0, (8, 12)), (8, 4, 3)).dims
    (((8,), (4, 3)), ((8,), (4,), (3,)))
    >>> regrouped(leaf(0, (8, 12)), (8, 4, 3)).factors[0][0].axes, regrouped(leaf(0, (4, 3)), (6, 2))
    (((0,), (1, 2)), None)
    """
    sizes = [size for dim in monomial.dims for size in dim]
    if math.prod(sizes) != math.prod(shape):
        return None
    left = list(enumerate(sizes))[::-1]
    places: dict[int, tuple[int, ...]] = {}
    dims: list[tuple[int, ...]] = []
    for size in shape:
        dim: list[int] = []
        while math.prod(dim) < size:
            need, rest = divmod(size, math.prod(dim))
            atom, whole = left.pop()
            part = min(whole, need)
            if rest or whole % part:
                return None
            places[atom] = (*places.get(atom, ()), sum(map(len, dims)) + len(dim))
            dim.append(part)
            if part < whole:
                left.append((atom, whole // part))
        dims.append(tuple(dim))
    return replace(monomial, dims=tuple(dims), factors=renumbered(monomial.factors, places))


def in_one_piece(monomial: Monomial) -> Monomial:
    """The monomial with the atoms of each dim as one, where every tensor runs along all of them or none.

    >>> in_one_piece(laid_out(regrouped(leaf(0, (8, 12)), (8, 4, 3)), ((0,), (1, 2)))) == leaf(0, (8, 12))
    True
    """
    places: dict[int, tuple[int, ...]] = {}
    dims: list[tuple[int, ...]] = []
    for run, sizes in zip(atoms_of(monomial.dims), monomial.dims, strict=True):
        first = sum(map(len, dims))
        if len(run) > 1 and all(_is_whole(run, factor) for factor, _ in monomial.factors):
            dims.append((math.prod(sizes),))
            places |= {run[0]: (first,), **dict.fromkeys(run[1:], ())}
        else:
            dims.append(sizes)
            places |= {atom: (first + at,) for at, atom in enumerate(run)}
    return replace(monomial, dims=tuple(dims), factors=renumbered(monomial.factors, places))


def _is_whole(run: tuple[int, ...], factor: Factor) -> bool:
    """Whether a factor runs along all of some atoms, which it has in a row on one axis, or along none."""
    if set(run).isdisjoint(factor.atoms):
        return True
    ends = {axis[at : at + len(run)] for axis in factor.axes for at in range(len(axis))}
    return run in ends and sum(atom in run for atom in factor.atoms) == len(run)


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
    """The product of two monomials, broadcast; None if their dims do not fit.

    Where a dim is cut into atoms in two ways, it is cut in both.

    >>> g, v = leaf(0, (8, 1)), leaf(1, (8, 3))
    >>> [factor.axes for factor, _ in multiplied(g, v).factors]
    [((0,), ()), ((0,), (1,))]
    >>> flat = regrouped(leaf(2, (8, 3, 5)), (8, 15))
    >>> [factor.axes for factor, _ in multiplied(leaf(1, (15,)), flat).factors]
    [((1, 2),), ((0,), (1,), (2,))]
    """
    rank = max(len(a.dims), len(b.dims))
    pad_a: Dims = ((),) * (rank - len(a.dims)) + a.dims
    pad_b: Dims = ((),) * (rank - len(b.dims)) + b.dims
    dims: list[tuple[int, ...]] = []
    places_a: list[tuple[int, ...]] = []
    places_b: list[tuple[int, ...]] = []
    at = 0
    for dim_a, dim_b in zip(pad_a, pad_b, strict=True):
        dim = _cut_both(dim_a, dim_b) if dim_a and dim_b else dim_a or dim_b
        if dim is None:
            return None
        places_a += _parts_of(dim_a, dim, at)
        places_b += _parts_of(dim_b, dim, at)
        dims.append(dim)
        at += len(dim)
    factors = (
        *renumbered(a.factors, dict(enumerate(places_a))),
        *renumbered(b.factors, dict(enumerate(places_b))),
    )
    return limited(tuple(dims), product_of(factors), a.number * b.number)


def limited(dims: Dims, factors: Powers, number: Fraction = Fraction(1)) -> Monomial | None:
    """A monomial, if it is not too large."""
    is_small = _count(factors) <= _MOST_TENSORS and number.denominator.bit_length() <= _MOST_BITS
    return (
        Monomial(dims, factors, number) if is_small and number.numerator.bit_length() <= _MOST_BITS else None
    )


def _count(powers: Powers) -> int:
    return sum(1 if factor.tensor >= 0 else _count(factor.of) for factor, _ in powers)


def _cut_both(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    """The atoms of a dim that is cut in two ways; None if a cut of one lies across an atom of the other.

    >>> _cut_both((36,), (4, 3, 3)), _cut_both((4, 9), (6, 6)), _cut_both((4,), (3,))
    ((4, 3, 3), None, None)
    """
    cuts = sorted(_steps(a) | _steps(b), reverse=True)
    if math.prod(a) != math.prod(b) or any(outer % inner for outer, inner in pairwise(cuts)):
        return None
    return tuple(outer // inner for outer, inner in pairwise(cuts))


def _steps(dim: Sequence[int]) -> set[int]:
    """How many elements lie behind each atom of a dim, and in all of it."""
    return {math.prod(dim[at:]) for at in range(len(dim) + 1)}


def _parts_of(coarse: Sequence[int], fine: Sequence[int], at: int) -> Iterable[tuple[int, ...]]:
    """The numbers, from ``at`` on, of the atoms of ``fine`` that make each atom of ``coarse``."""
    left = list(enumerate(fine, at))
    for size in coarse:
        part: list[int] = []
        made = 1
        while made < size:
            place, more = left.pop(0)
            part.append(place)
            made *= more
        yield tuple(part)


def in_any_order(part: tuple[Factor, Fraction]) -> tuple[Factor, Fraction, Factor]:
    """A key for sorting that looks at the numbers of atoms last: these are not the same everywhere."""
    factor, exponent = part
    return replace(factor, axes=tuple((0,) * len(axis) for axis in factor.axes)), exponent, factor
