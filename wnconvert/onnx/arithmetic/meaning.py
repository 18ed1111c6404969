"""What a value means: the rule by which it is a weight, told by comparing it with what such a weight is.

Which tensor could have which role is read off their sizes, and each rule is carried out on them, as
monomials. The rule that makes the value's own monomial is what the value is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import combinations, permutations, product
from typing import Literal, TypeAlias

from wnconvert.layers.rules import (
    DIVISOR,
    ORIGINAL,
    G,
    Guard,
    GuardAt,
    Mask,
    Norm,
    Operation,
    Over,
    Rule,
    Spectral,
    Unit,
)
from wnconvert.onnx.arithmetic.products.monomials import (
    ADDED,
    LARGER,
    VALUE,
    Factor,
    Monomial,
    in_one_piece,
    laid_out,
    leaf,
    multiplied,
    ones,
    regrouped,
    retold,
    tensor_numbers,
    transposed,
)
from wnconvert.onnx.arithmetic.products.powers import guarded, numbers_in, power, with_numbers
from wnconvert.onnx.arithmetic.products.sums import matrix_product, summed
from wnconvert.tensors.tree import Dim, Shape

__all__ = ["Meaning", "meaning_of", "quotient_of"]


#: Which tensor (by number) has each role of a rule.
_Roles: TypeAlias = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Meaning:
    """A rule, and which tensor (by number) has each of its roles; equal for equal weights."""

    rule: Rule
    tensors: _Roles

    @property
    def numbers(self) -> frozenset[int]:
        """All its tensors."""
        return frozenset(number for _, number in self.tensors)

    @property
    def original(self) -> int:
        """The tensor that the rule starts from."""
        return dict(self.tensors)[ORIGINAL]


#: The shapes of tensors, by their numbers.
_Shapes: TypeAlias = Sequence[Shape]
_ShapeOf: TypeAlias = Callable[[int], Shape]


def meaning_of(
    monomial: Monomial,
    shapes: _Shapes,
    is_original: Callable[[int, Rule], bool],
) -> tuple[Meaning, Factor] | None:
    """The rule by which a value is a weight, and the factor in it that is the original; None if it is none.

    Of tensors that are one number, ones count for nothing, unless the rule needs them; others are tensors of
    the rule, or else numbers in it. Of w·m either may be the mask: ``is_original`` says which tensors have
    names of an original by a rule.
    """
    found = _told(monomial, shapes.__getitem__, _STACKS)
    named = (one for one in found if is_original(one[1].tensor, one[0].rule))
    return next(named, found[0]) if found else None


def quotient_of(monomial: Monomial, shape_of: _ShapeOf) -> tuple[Meaning, Factor] | None:
    """The same of a tensor over the norms of another, which is a weight of no kind, or of any."""
    return next(iter(_told(monomial, shape_of, _QUOTIENTS)), None)


def _told(monomial: Monomial, shape_of: _ShapeOf, tiers: _Tiers) -> Sequence[tuple[Meaning, Factor]]:
    """What ``_found`` finds, of the tensors by their own numbers."""
    own = sorted(tensor_numbers(monomial.factors))
    places = {number: place for place, number in enumerate(own)}
    told = replace(monomial, factors=retold(monomial.factors, places))
    return [
        (
            Meaning(rule, tuple((role, own[place]) for role, place in tensors)),
            replace(original, tensor=own[original.tensor]),
        )
        for rule, tensors, original in _found(told, tuple(map(shape_of, own)), tiers)
    ]


@lru_cache(maxsize=256)
def _found(monomial: Monomial, shapes: _Shapes, tiers: _Tiers) -> Sequence[tuple[Rule, _Roles, Factor]]:
    """The rules that make a value, with their tensors and originals, of the first reading that has any.

    Of many layers most are alike but for the tensors, so tensors have the numbers of their places here.
    """
    for stacks in tiers:
        for bare in _readings(monomial):
            found = [
                (rule, tensors, original)
                for original in _originals(bare)
                for rule, tensors in _carried_out(
                    in_one_piece(laid_out(bare, original.axes)), original.tensor, shapes, stacks
                )
            ]
            if found:
                return found
    return ()


def _readings(monomial: Monomial) -> Iterator[Monomial]:
    """A value with some of its tensors that are one number taken for that: sooner ones than others."""
    numbers = numbers_in(monomial.factors)
    ones_of = sorted(tensor for tensor, number in numbers.items() if number == 1)[:_MOST_HELD]
    others = sorted(tensor for tensor, number in numbers.items() if number != 1)[:_MOST_HELD]
    for taken in _some_of(others):
        for kept in _some_of(ones_of):
            made = with_numbers(monomial, {*taken, *ones_of}.difference(kept))
            if made is not None:
                yield made


#: The most tensors of one number in a value that are read in both ways.
_MOST_HELD = 6


def _some_of(tensors: Sequence[int]) -> Iterator[Collection[int]]:
    """Some of the tensors, from none to all."""
    for count in range(len(tensors) + 1):
        yield from combinations(tensors, count)


def _originals(monomial: Monomial) -> Iterator[Factor]:
    """The factors that may be the original: those with an axis along each atom."""
    every = range(sum(map(len, monomial.dims)))
    for factor, exponent in monomial.factors:
        if exponent == 1 and factor.kind == VALUE and sorted(factor.atoms) == list(every):
            yield factor


def _carried_out(
    value: Monomial, original: int, shapes: _Shapes, stacks: Sequence[_Stack]
) -> Iterator[tuple[Rule, _Roles]]:
    """The rules of some stacks that make a value of the tensor ``original``, whose axes are its dims."""
    others, numbers = tensor_numbers(value.factors) - {original}, numbers_in(value.factors)
    for stack in stacks:
        names = [role for kind in stack for role in _ROLES[kind]]
        if len(names) != len(others):
            continue
        for order in permutations(sorted(others)):
            tensors = dict(zip(names, order, strict=True))
            choices = (
                _CHOICES[kind](shapes[original], [shapes[tensors[role]] for role in _ROLES[kind]], value)
                for kind in stack
            )
            for chosen in product(*choices):
                rule = Rule(chosen)
                if _made(rule, {ORIGINAL: original, **tensors}, shapes, numbers) == value:
                    yield rule, ((ORIGINAL, original), *tensors.items())


def _made(
    rule: Rule, tensors: Mapping[str, int], shapes: _Shapes, numbers: Mapping[int, Fraction]
) -> Monomial | None:
    """The value of a rule; ``numbers`` are the tensors that are one number."""

    def part(role: str) -> Monomial | None:
        tensor = tensors[role]
        return leaf(tensor, shapes[tensor], numbers.get(tensor))

    value = part(ORIGINAL)
    for operation in rule.operations:
        parts = [part(role) for role in operation.roles]
        if value is None or None in parts:
            return None
        value = _APPLIED[type(operation)](operation, value, *parts)
    return value


# -- each operation: where it may run, as the sizes of its tensors say, and what it does


def _masks(original: Shape, shapes: Sequence[Shape], _: Monomial) -> Sequence[Mask]:
    return [Mask()] if shapes[0] == original and math.prod(original) > 1 else []


def _norms(original: Shape, shapes: Sequence[Shape], value: Monomial) -> Sequence[Norm]:
    """Along each axis that g fits; a single g is read as ``wnconvert.layers.dims`` reads it."""
    (g,) = shapes
    dims: Sequence[Dim] = [axis for axis, size in enumerate(original) if size == math.prod(g)]
    if math.prod(g) == 1:
        dims = [0 if original[:1] == (1,) and len(g) == len(original) else None]
    return [Norm(dim, guard) for guard in (None, *_guards(value)) for dim in dims]


def _units(original: Shape, _: Sequence[Shape], value: Monomial) -> Sequence[Unit]:
    """Over all axes, or all but one; what it is multiplied by is the number of the value."""
    if not any(exponent < 0 for _, exponent in value.factors):
        return []
    dims: Sequence[Dim] = [None, *(axis for axis, size in enumerate(original) if size > 1)]
    guards = (None, *_guards(value))
    return [Unit(dim, guard, value.number) for guard in guards for dim in dims]


def _overs(original: Shape, shapes: Sequence[Shape], value: Monomial) -> Sequence[Over]:
    """Over all axes, or all but one, of a tensor of that shape; with a g, along each axis that it fits."""
    divisor, *g = shapes
    if divisor != original or not any(exponent < 0 for _, exponent in value.factors):
        return []
    if g:
        dims, scale = [norm.dim for norm in _norms(original, g, value) if norm.guard is None], Fraction(1)
    else:
        dims, scale = [None, *(axis for axis, size in enumerate(original) if size > 1)], value.number
    return [
        Over(dim, guard, squares, bool(g), scale)
        for guard in (None, *_guards(value))
        for dim in dims
        for squares in (False, True)
    ]


def _guards(value: Monomial) -> Iterator[Guard]:
    """The guards of the norms that a value is divided by."""
    for factor, exponent in value.factors:
        at = _GUARDED.get((factor.kind, exponent))
        if at is not None:
            eps = float(factor.eps)
            if eps == factor.eps:
                yield Guard(eps, at, factor.number)


#: Where eps stands in the guarded factors of a weight: in a norm, or among its squares.
_GUARDED: Mapping[tuple[str, Fraction], GuardAt] = {
    (LARGER, Fraction(-1)): "max",
    (LARGER, Fraction(-1, 2)): "max of squares",
    (ADDED, Fraction(-1)): "norm",
    (ADDED, Fraction(-1, 2)): "squares",
}


def _spectrals(original: Shape, shapes: Sequence[Shape], _: Monomial) -> Sequence[Spectral]:
    """Along each axis that u fits, where v fits all others; both are vectors."""
    u, v = map(math.prod, shapes)
    if u * v != math.prod(original) or any(sum(size > 1 for size in shape) > 1 for shape in shapes):
        return []
    return [Spectral(axis) for axis, size in enumerate(original) if size == u]


def _masked(_: Mask, value: Monomial, mask: Monomial) -> Monomial | None:
    return multiplied(value, mask)


def _normed(norm: Norm, value: Monomial, g: Monomial) -> Monomial | None:
    direction = _direction(value, norm.dim, norm.guard)
    kept = [size if axis == norm.dim else 1 for axis, size in enumerate(value.shape)]
    rows = regrouped(g, kept)
    return multiplied(direction, rows) if direction is not None and rows is not None else None


def _unit(unit: Unit, value: Monomial) -> Monomial | None:
    made, scale = _direction(value, unit.dim, unit.guard), ones((), unit.scale)
    return multiplied(made, scale) if made is not None and scale is not None else None


def _over(over: Over, value: Monomial, divisor: Monomial, g: Monomial | None = None) -> Monomial | None:
    squares = divisor if over.squares else power(divisor, Fraction(2))
    made = _divided_by_root(value, squares, over.dim, over.guard)
    kept = [size if axis == over.dim else 1 for axis, size in enumerate(value.shape)]
    factor = regrouped(g, kept) if g is not None else ones((), over.scale)
    return multiplied(made, factor) if made is not None and factor is not None else None


def _direction(value: Monomial, dim: Dim, guard: Guard | None) -> Monomial | None:
    """A value divided by its norm, with a guard or without."""
    return _divided_by_root(value, power(value, Fraction(2)), dim, guard)


def _divided_by_root(
    value: Monomial, squares: Monomial | None, dim: Dim, guard: Guard | None
) -> Monomial | None:
    """A value divided by the root of a sum by rows, with a guard or without."""
    others = [axis for axis in range(len(value.dims)) if axis != dim]
    total = summed(squares, others, keepdims=True) if squares is not None else None
    if total is not None and guard is not None:
        by_squares = "squares" in guard.at
        share = ones((), guard.share)
        inside = total if by_squares else power(total, Fraction(1, 2))
        inside = multiplied(inside, share) if inside is not None and share is not None else None
        kind = LARGER if guard.is_least else ADDED
        total = guarded(inside, kind, Fraction(guard.eps)) if inside is not None else None
        inverse = power(total, Fraction(-1, 2) if by_squares else Fraction(-1)) if total else None
    else:
        inverse = power(total, Fraction(-1, 2)) if total is not None else None
    return multiplied(value, inverse) if inverse is not None else None


def _divided_by_sigma(spectral: Spectral, value: Monomial, u: Monomial, v: Monomial) -> Monomial | None:
    dim = spectral.dim or 0
    moved = transposed(value, (dim, *(axis for axis in range(len(value.dims)) if axis != dim)))
    rows = value.shape[dim]
    columns = math.prod(value.shape) // rows
    matrix = regrouped(moved, (rows, columns)) if moved is not None else None
    row, column = regrouped(u, (rows,)), regrouped(v, (columns,))
    if matrix is None or row is None or column is None:
        return None
    image = matrix_product(matrix, column)
    sigma = matrix_product(row, image) if image is not None else None
    inverse = power(sigma, Fraction(-1)) if sigma is not None else None
    return multiplied(value, inverse) if inverse is not None else None


_APPLIED: dict[type[Operation], Callable[..., Monomial | None]] = {
    Mask: _masked,
    Norm: _normed,
    Spectral: _divided_by_sigma,
    Over: _over,
    Unit: _unit,
}


#: The kinds of operations that are looked for: a quotient without g, and one with it, are two.
_Kind: TypeAlias = Literal["mask", "norm", "spectral", "unit", "over", "g over"]
_Stack: TypeAlias = tuple[_Kind, ...]
_Tiers: TypeAlias = tuple[tuple[_Stack, ...], ...]

_CHOICES: Mapping[_Kind, Callable[[Shape, Sequence[Shape], Monomial], Sequence[Operation]]] = {
    "mask": _masks,
    "norm": _norms,
    "spectral": _spectrals,
    "unit": _units,
    "over": _overs,
    "g over": _overs,
}
#: The tensors that each needs beside the original, by their roles.
_ROLES: Mapping[_Kind, tuple[str, ...]] = {
    "mask": Mask.roles,
    "norm": Norm.roles,
    "spectral": Spectral.roles,
    "unit": Unit.roles,
    "over": (DIVISOR,),
    "g over": (DIVISOR, G),
}

#: The operations that are looked for together, innermost first; unit rows only where it is nothing else.
_STACKS: _Tiers = (
    (
        ("norm",),
        ("mask",),
        ("spectral",),
        ("mask", "norm"),
        ("mask", "spectral"),
        ("norm", "spectral"),
        ("mask", "norm", "spectral"),
    ),
    (("unit",), ("mask", "unit")),
)
_QUOTIENTS: _Tiers = ((("over",), ("g over",)),)
