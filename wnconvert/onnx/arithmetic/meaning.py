"""What a value means: the rule by which it is a weight, told by comparing it with what such a weight is.

Which tensor could have which role is read off their sizes, and each rule is carried out on them, as
monomials. The rule that makes the value's own monomial is what the value is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, permutations, product
from typing import TypeAlias

from wnconvert.layers.rules import ORIGINAL, Mask, Norm, Operation, Rule, Spectral
from wnconvert.onnx.arithmetic.monomials import (
    VALUE,
    Factor,
    Monomial,
    laid_out,
    leaf,
    multiplied,
    power,
    regrouped,
    tensor_numbers,
    transposed,
)
from wnconvert.onnx.arithmetic.sums import matrix_product, summed
from wnconvert.tensors.tree import Shape

__all__ = ["Meaning", "meaning_of"]


@dataclass(frozen=True, slots=True)
class Meaning:
    """A rule, and which tensor (by number) has each of its roles; equal for equal weights."""

    rule: Rule
    tensors: tuple[tuple[str, int], ...]

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


def meaning_of(
    monomial: Monomial, shapes: _Shapes, units: Collection[int], is_original: Callable[[int, Rule], bool]
) -> tuple[Meaning, Factor] | None:
    """The rule by which a value is a weight, and the factor in it that is the original; None if it is none.

    ``units`` are the tensors of ones: they count for nothing, unless the rule needs them. Of w·m either may
    be the mask: ``is_original`` says which tensors have names of an original by a rule.
    """
    ones = [factor for factor, _ in monomial.factors if factor.kind == VALUE and factor.tensor in units]
    ones.sort(key=lambda factor: -len(factor.axes))
    for kept in _some_of(ones):
        factors = tuple(part for part in monomial.factors if part[0] in kept or part[0] not in ones)
        bare = replace(monomial, factors=factors)
        found = [
            (Meaning(rule, tensors), original)
            for original in _originals(bare)
            for rule, tensors in _carried_out(laid_out(bare, original.axes), original.tensor, shapes)
        ]
        named = (one for one in found if is_original(one[1].tensor, one[0].rule))
        if found:
            return next(named, found[0])
    return None


def _some_of(factors: Sequence[Factor]) -> Iterator[Collection[Factor]]:
    """Some of the factors, from none to all."""
    for count in range(len(factors) + 1):
        yield from combinations(factors, count)


def _originals(monomial: Monomial) -> Iterator[Factor]:
    """The factors that may be the original: those with an axis along each atom."""
    every = range(sum(map(len, monomial.dims)))
    for factor, exponent in monomial.factors:
        whole = exponent == 1 and factor.kind == VALUE and all(len(axis) < 2 for axis in factor.axes)
        if whole and sorted(factor.atoms) == list(every):
            yield factor


def _carried_out(
    value: Monomial, original: int, shapes: _Shapes
) -> Iterator[tuple[Rule, tuple[tuple[str, int], ...]]]:
    """The rules that make a value of the tensor ``original``, whose axes are the value's dims."""
    others = tensor_numbers(value.factors) - {original}
    for operations in _STACKS:
        names = [role for operation in operations for role in operation.roles]
        if len(names) != len(others):
            continue
        for order in permutations(sorted(others)):
            tensors = dict(zip(names, order, strict=True))
            choices = (
                _CHOICES[kind](shapes[original], [shapes[tensors[role]] for role in kind.roles])
                for kind in operations
            )
            for chosen in product(*choices):
                rule = Rule(chosen)
                if _made(rule, original, tensors, shapes) == value:
                    yield rule, ((ORIGINAL, original), *tensors.items())


def _made(rule: Rule, original: int, tensors: Mapping[str, int], shapes: _Shapes) -> Monomial | None:
    """The value of a rule."""
    value = leaf(original, shapes[original])
    for operation in rule.operations:
        parts = [leaf(tensors[role], shapes[tensors[role]]) for role in operation.roles]
        if value is None or None in parts:
            return None
        value = _APPLIED[type(operation)](operation, value, *parts)
    return value


# -- each operation: where it may run, as the sizes of its tensors say, and what it does


def _masks(original: Shape, shapes: Sequence[Shape]) -> Sequence[Mask]:
    return [Mask()] if shapes[0] == original and math.prod(original) > 1 else []


def _norms(original: Shape, shapes: Sequence[Shape]) -> Sequence[Norm]:
    """Along each axis that g fits; a single g is read as ``wnconvert.layers.dims`` reads it."""
    (g,) = shapes
    if math.prod(g) == 1:
        return [Norm(0 if original[:1] == (1,) and len(g) == len(original) else None)]
    return [Norm(axis) for axis, size in enumerate(original) if size == math.prod(g)]


def _spectrals(original: Shape, shapes: Sequence[Shape]) -> Sequence[Spectral]:
    """Along each axis that u fits, where v fits all others; both are vectors."""
    u, v = map(math.prod, shapes)
    if u * v != math.prod(original) or any(sum(size > 1 for size in shape) > 1 for shape in shapes):
        return []
    return [Spectral(axis) for axis, size in enumerate(original) if size == u]


def _masked(_: Mask, value: Monomial, mask: Monomial) -> Monomial | None:
    return multiplied(value, mask)


def _normed(norm: Norm, value: Monomial, g: Monomial) -> Monomial | None:
    squares = power(value, Fraction(2))
    others = [axis for axis in range(len(value.dims)) if axis != norm.dim]
    total = summed(squares, others, keepdims=True) if squares is not None else None
    inverse = power(total, Fraction(-1, 2)) if total is not None else None
    kept = [size if axis == norm.dim else 1 for axis, size in enumerate(value.shape)]
    rows = regrouped(g, kept)
    direction = multiplied(value, inverse) if inverse is not None else None
    return multiplied(direction, rows) if direction is not None and rows is not None else None


def _divided(spectral: Spectral, value: Monomial, u: Monomial, v: Monomial) -> Monomial | None:
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


_Found: TypeAlias = type[Mask] | type[Norm] | type[Spectral]
_CHOICES: dict[_Found, Callable[[Shape, Sequence[Shape]], Sequence[Operation]]] = {
    Mask: _masks,
    Norm: _norms,
    Spectral: _spectrals,
}
_APPLIED: dict[type[Operation], Callable[..., Monomial | None]] = {
    Mask: _masked,
    Norm: _normed,
    Spectral: _divided,
}

#: The operations that are looked for together, innermost first.
_STACKS: tuple[tuple[_Found, ...], ...] = (
    (Norm,),
    (Mask,),
    (Spectral,),
    (Mask, Norm),
    (Mask, Spectral),
    (Norm, Spectral),
    (Mask, Norm, Spectral),
)
