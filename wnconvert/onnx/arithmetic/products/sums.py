"""Sums over axes of monomials, and the products of matrices that are such sums.

What a sum does not run over is taken out of it, and a sum within a sum is one sum; its atoms are numbered as
they come in its product. So it is the same in whatever order a graph sums and multiplies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction

from wnconvert.onnx.arithmetic.products.monomials import (
    SUM,
    Factor,
    Monomial,
    atoms_of,
    in_any_order,
    limited,
    multiplied,
    product_of,
    regrouped,
    renumbered,
    unsqueezed,
)

__all__ = ["matrix_product", "summed"]


def summed(monomial: Monomial, axes: Iterable[int], *, keepdims: bool) -> Monomial | None:
    """The sum over axes; None if it would run over an axis along which no tensor runs.

    >>> from wnconvert.onnx.arithmetic.products.monomials import leaf
    >>> from wnconvert.onnx.arithmetic.products.powers import power
    >>> total = summed(power(leaf(0, (8, 4, 3)), Fraction(2)), (1, 2), keepdims=True)
    >>> total.dims, total.factors[0][0].kind, total.factors[0][0].axes
    (((8,), (), ()), 'sum', ((0,), (), ()))
    """
    gone = {axis % len(monomial.dims) for axis in axes}
    atoms = atoms_of(monomial.dims)
    over = {atom for axis in gone for atom in atoms[axis]}
    if not over <= {atom for factor, _ in monomial.factors for atom in factor.atoms}:
        return None  # the sum over a repeated axis is a multiple
    kept = [atom for number in atoms for atom in number if atom not in over]
    inside = [part for part in monomial.factors if not over.isdisjoint(part[0].atoms)]
    factors = [part for part in monomial.factors if over.isdisjoint(part[0].atoms)]
    if inside:
        sizes = dict(enumerate(size for dim in monomial.dims for size in dim))
        factors.append((_sum(inside, over, sizes), Fraction(1)))
    dims = tuple(
        () if axis in gone else dim for axis, dim in enumerate(monomial.dims) if keepdims or axis not in gone
    )
    places = {atom: (place,) for place, atom in enumerate(kept)}
    return limited(dims, renumbered(product_of(factors), places), monomial.number)


def _sum(parts: Sequence[tuple[Factor, Fraction]], over: Collection[int], sizes: Mapping[int, int]) -> Factor:
    """The sum of a product over some atoms: sums in the product are opened, and its atoms numbered anew."""
    over, sizes = set(over), dict(sizes)
    opened: list[tuple[Factor, Fraction]] = []
    for factor, exponent in parts:
        if factor.kind != SUM or exponent != 1:
            opened.append((factor, exponent))
            continue
        places = dict(enumerate(factor.axes))
        for atom, size in enumerate(factor.sizes):
            if not factor.axes[atom]:
                new = len(sizes)
                over.add(new)
                sizes[new] = size
                places[atom] = (new,)
        opened += renumbered(factor.of, places)
    product = sorted(product_of(opened), key=in_any_order)
    atoms = list(dict.fromkeys(atom for factor, _ in product for atom in factor.atoms))
    of = renumbered(tuple(product), {atom: (place,) for place, atom in enumerate(atoms)})
    axes = tuple(() if atom in over else (atom,) for atom in atoms)
    return Factor(-1, SUM, axes, of, tuple(sizes[atom] for atom in atoms))


def matrix_product(a: Monomial, b: Monomial) -> Monomial | None:
    """The product of matrices (of stacks of them, or vectors) as numpy's ``matmul`` has it; None if unknown.

    >>> from wnconvert.onnx.arithmetic.products.monomials import leaf
    >>> u, w = leaf(0, (8,)), leaf(1, (8, 3))
    >>> matrix_product(u, w).shape, matrix_product(w, u)
    ((3,), None)
    """
    if not a.dims or not b.dims or a.shape[-1] != b.shape[max(len(b.dims) - 2, 0)]:
        return None
    left = unsqueezed(a, (-1,) if len(a.dims) > 1 else (0, -1))
    right = unsqueezed(b, (-3,) if len(b.dims) > 1 else (-3, -1))
    product = multiplied(left, right) if left is not None and right is not None else None
    total = summed(product, (-2,), keepdims=False) if product is not None else None
    if total is None:
        return None
    vectors = {at for at, one in ((-2, a), (-1, b)) if len(one.dims) == 1}
    rank = len(total.dims)
    return regrouped(total, [size for at, size in enumerate(total.shape) if at - rank not in vectors])
