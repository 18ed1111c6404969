"""What a rule makes of its parts, in plain floating point, with a bound on its error.

It shares nothing with ``numerics``: each operation is computed from its definition, in as many readings of
the tensor as that takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import singledispatch
from typing import Any

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import (
    ORIGINAL,
    AffineBefore,
    Equalized,
    G,
    Guard,
    Mask,
    Neighbour,
    Norm,
    NormBefore,
    NormBehind,
    Operation,
    Rule,
    Spectral,
    SpectralStep,
    Standardize,
    Unit,
    UnitVector,
)
from wnconvert.tensors.blocks import Array, Block, Elements
from wnconvert.tensors.tree import Dim, StoredTensor, rows_of
from wnconvert.verbs.conversion.verify.arithmetic import Reals
from wnconvert.verbs.conversion.verify.pieces import pieces_of

__all__ = ["RuleTensors", "Values", "channel_factors", "computed_values", "divisors_of", "weight_of"]


def _nowhere(_block: Block) -> float:
    """No error beside the relative one."""
    return 0.0


@dataclass(frozen=True, slots=True)
class Values:
    """A weight as far as some operations make it: its pieces, along ``dim``, to a relative ``error``.

    ``off`` is how much further off they may be.
    """

    tensor: StoredTensor
    dim: Dim
    read: Callable[[Block], Reals]
    error: float = 0.0
    off: Callable[[Block], Reals | float] = _nowhere

    @property
    def pieces(self) -> Iterable[Block]:
        """All pieces."""
        return (block for block, _ in pieces_of(self.tensor, self.dim))

    def times(self, factor: Callable[[Block], Any], error: float) -> Values:
        """Every value times a factor that has an error of its own."""
        read, off = self.read, self.off
        return Values(
            self.tensor,
            self.dim,
            lambda block: read(block) * factor(block),
            self.error + error,
            lambda block: off(block) * np.abs(factor(block)),
        )

    def rows(self, block: Block, dim: Dim) -> Array:
        """For each element of a block its place on an axis."""
        shape = self.tensor.info.shape
        if dim is None:
            return np.zeros(block.shape, np.intp)
        inner = math.prod(shape[dim + 1 :])
        return (np.arange(block.start, block.stop) // inner % shape[dim]).reshape(block.shape)

    def channels(self, block: Block, operation: Neighbour) -> Array:
        """For each element of a block its channel."""
        shape, found = self.tensor.info.shape, self.rows(block, operation.dim)
        if operation.groups > 1:
            found = found + self.rows(block, 0) // (shape[0] // operation.groups) * shape[1]
        return found

    def columns(self, block: Block, dim: int) -> Array:
        """For each element of a block its place on all other axes together."""
        shape = self.tensor.info.shape
        inner = math.prod(shape[dim + 1 :])
        places = np.arange(block.start, block.stop)
        found = places // (inner * shape[dim]) * inner + places % inner
        return np.asarray(found.reshape(block.shape))

    def total(self, of: Callable[[Block, Reals], Reals]) -> tuple[Any, Any]:
        """The sum of a function of all values, and that of its magnitudes."""
        sums, sizes = [], []
        for block in self.pieces:
            terms = of(block, self.read(block))
            sums.append(terms.sum())
            sizes.append(np.abs(terms).sum())
        return _added(sums), _added(sizes)


def _added(sums: list[Any]) -> Any:
    """The sum of the sums of blocks."""
    exact = sums and isinstance(sums[0], np.float64) and np.isfinite(sums).all()
    return np.float64(math.fsum(sums)) if exact else sum(sums)


#: A sum of a block is that of numpy, which adds pairwise: so many roundings at most lie behind an element.
_PAIRWISE = 64


def computed_values(
    rule: Rule, parts: Mapping[str, StoredTensor], source: Elements, real: np.dtype[Any]
) -> Values:
    """The weight that a rule makes of its parts, in numbers of the dtype ``real``."""
    return weight_of(rule, RuleTensors(parts, source, real), rule.dim)


def weight_of(rule: Rule, parts: RuleTensors, dim: Dim) -> Values:
    """The weight that a rule makes of its parts, to be read in pieces along ``dim``."""
    original, real = parts.tensors[ORIGINAL], parts.real
    elements = parts.source.reader(original)
    values = Values(original, dim, lambda block: elements(block).astype(real))
    for operation in rule.operations:
        values = made(operation, values, parts)
    return values


@dataclass(frozen=True, slots=True)
class RuleTensors:
    """The tensors of a rule, by their roles, and the dtype of the numbers made of them."""

    tensors: Mapping[str, StoredTensor]
    source: Elements
    real: np.dtype[Any]

    @property
    def eps(self) -> float:
        """Twice the relative error of one operation."""
        return float(np.finfo(self.real).eps)

    def vector(self, role: str) -> Reals:
        """All elements of a small part."""
        return self.source.whole(self.tensors[role]).astype(self.real).reshape(-1)


@singledispatch
def made(operation: Operation, values: Values, parts: RuleTensors) -> Values:
    """The weight after one more operation."""
    raise NotImplementedError(type(operation))


@made.register
def _mask(_operation: Mask, values: Values, parts: RuleTensors) -> Values:
    elements, real = parts.source.reader(parts.tensors["mask"]), parts.real
    return values.times(lambda block: elements(block).astype(real), parts.eps)


@made.register
def _norm(operation: Norm, values: Values, parts: RuleTensors) -> Values:
    g = parts.vector(G)
    sums, adds = np.zeros(g.size, parts.real), 0
    for block in values.pieces:
        x = values.read(block)
        if operation.dim is None:
            sums += np.square(x).sum()
        else:
            sums[block.rows] += np.square(x).sum(axis=(0, 2))
        adds += max(x.shape[0], 1) * _PAIRWISE
    divisors = divisors_of(operation.guard, sums)
    scale = np.where(divisors == 0, 0, g / divisors)
    dim = operation.dim
    return values.times(
        lambda block: scale[values.rows(block, dim)], (adds / 2 + 12) * parts.eps + values.error
    )


def divisors_of(guard: Guard | None, sums: Reals) -> Reals:
    """What rows are divided by, of the sums of their squares."""
    if guard is None:
        return np.asarray(np.sqrt(sums))
    share = sums.dtype.type(guard.share.numerator) / sums.dtype.type(guard.share.denominator)
    if guard.at == "max":
        return np.asarray(np.maximum(np.sqrt(sums) * share, guard.eps))
    if guard.at == "norm":
        return np.asarray(np.sqrt(sums) * share + guard.eps)
    inside = np.maximum(sums * share, guard.eps) if guard.is_least else sums * share + guard.eps
    return np.asarray(np.sqrt(inside))


@made.register
def _unit_rows(operation: Unit, values: Values, parts: RuleTensors) -> Values:
    sums, adds = _of_rows(values, operation.dim, parts.real, lambda _, x: np.square(x))
    real, dim = parts.real.type, operation.dim
    factor = real(operation.scale.numerator) / real(operation.scale.denominator)
    divisors = divisors_of(operation.guard, sums)
    scale = np.where(divisors == 0, 0, factor / np.where(divisors == 0, 1, divisors))
    error = (adds / 2 + 12) * parts.eps + values.error
    return values.times(lambda block: scale[values.rows(block, dim)], error)


@made.register
def _equalized(operation: Equalized, values: Values, parts: RuleTensors) -> Values:
    return values.times(lambda _: parts.real.type(operation.scale), parts.eps)


def _of_rows(
    values: Values, dim: Dim, real: np.dtype[Any], of: Callable[[Block, Reals], Reals]
) -> tuple[Reals, int]:
    """The sum of a function of the values of each row, and through how many additions a term goes."""
    found, adds = np.zeros(rows_of(values.tensor.info.shape, dim), real), 0
    for block in values.pieces:
        terms = of(block, values.read(block))
        np.add.at(found, values.rows(block, dim).reshape(-1), terms.reshape(-1))
        adds += max(terms.size, 1)
    return found, min(adds, values.tensor.info.numel // max(len(found), 1) + 1)


@made.register
def _standardize(operation: Standardize, values: Values, parts: RuleTensors) -> Values:
    dim, real = operation.dim, parts.real
    n = max(values.tensor.info.numel // values.tensor.info.shape[dim], 1)
    means, adds = _of_rows(values, dim, real, lambda _, x: x / n)
    sizes, _ = _of_rows(values, dim, real, lambda _, x: np.abs(x) / n)

    def left(block: Block, x: Reals) -> Reals:
        return np.asarray(x - means[values.rows(block, dim)])

    squares, _ = _of_rows(values, dim, real, lambda block, x: np.square(left(block, x)))
    # How far means, and what is left of a value, may be off, and the deviation with them.
    off = sizes * (adds * parts.eps + values.error)
    variance = squares / (n if operation.std == "biased" else n - 1)
    divisor = _divisor(operation, variance)
    gain = parts.vector("gain") if operation.gain else np.ones(len(means), real)
    shift = parts.vector("shift") if operation.shift else np.zeros(len(means), real)
    a = np.where(divisor == 0, 0, gain * operation.scale / np.where(divisor == 0, 1, divisor))
    apart = (adds + 16) * parts.eps + 4 * off / np.where(divisor == 0, 1, divisor)

    def read(block: Block) -> Reals:
        rows = values.rows(block, dim)
        return np.asarray(left(block, values.read(block)) * a[rows] + shift[rows])

    def how_far(block: Block) -> Reals:
        rows, x = values.rows(block, dim), values.read(block)
        of_left = off[rows] + np.abs(x) * (values.error + parts.eps)
        of_shift = (np.abs(read(block)) + np.abs(shift[rows])) * parts.eps
        return np.asarray(np.abs(a)[rows] * (of_left + np.abs(left(block, x)) * apart[rows]) + of_shift)

    return Values(values.tensor, values.dim, read, 0.0, how_far)


def _divisor(operation: Standardize, variance: Reals) -> Reals:
    if operation.eps_at == "var":
        return np.asarray(np.sqrt(variance + operation.eps))
    if operation.eps_at == "std":
        return np.asarray(np.sqrt(variance) + operation.eps)
    return np.asarray(np.sqrt(np.maximum(variance * operation.fan, operation.eps)))


@made.register
def _unit(operation: UnitVector, values: Values, parts: RuleTensors) -> Values:
    total, _ = values.total(lambda _, x: np.square(x))
    divisor = np.maximum(np.sqrt(total), operation.eps)
    return values.times(lambda _: 1 / divisor, (_PAIRWISE + 6) * parts.eps + values.error)


@made.register
def _spectral(operation: Spectral, values: Values, parts: RuleTensors) -> Values:
    u, v = parts.vector("u"), parts.vector("v")
    dims = (0, 1) if operation.dim is None else (operation.dim,)
    found = [_sigma(values, u, v, dim) for dim in dims]
    sigma, size = max(found, key=lambda item: float(np.abs(item[0])))  # the wrong axis gives next to nothing
    spread = float(size / np.abs(sigma)) if sigma else 0.0
    error = (_PAIRWISE * parts.eps + values.error) * spread + 4 * parts.eps
    return values.times(lambda _: 1 / sigma, error if math.isfinite(error) else 0.0)


def _sigma(values: Values, u: Reals, v: Reals, dim: int) -> tuple[Any, Any]:
    """uᵀ·mat(w)·v, and the same of all magnitudes."""
    return values.total(lambda block, x: x * u[values.rows(block, dim)] * v[values.columns(block, dim)])


@made.register
def _step(operation: SpectralStep, values: Values, parts: RuleTensors) -> Values:
    u, dim = parts.vector("u"), operation.dim
    shape = values.tensor.info.shape
    width = math.prod(shape) // shape[dim]

    def dot(
        by: Callable[[Block, int], Array], vector: Reals, on: Callable[[Block, int], Array], size: int
    ) -> Any:
        made, sizes = np.zeros(size, parts.real), np.zeros(size, parts.real)
        for block in values.pieces:
            x = values.read(block) * vector[by(block, dim)]
            at = on(block, dim).reshape(-1)
            np.add.at(made, at, x.reshape(-1))
            np.add.at(sizes, at, np.abs(x).reshape(-1))
        return made, sizes

    t, t_sizes = dot(values.rows, u, values.columns, width)
    t_error = t_sizes * (shape[dim] + 2) * parts.eps
    w, w_sizes = dot(values.columns, t, values.rows, shape[dim])
    w_error = w_sizes * (width + 2) * parts.eps + dot(values.columns, t_error, values.rows, shape[dim])[1]
    norms = [np.sqrt(np.square(each).sum()) for each in (t, w, t_error, w_error)]
    sigma = norms[1] / norms[0]
    error = float(norms[2] / norms[0] + norms[3] / norms[1]) + (width + 8) * parts.eps
    return values.times(lambda _: 1 / sigma, error if math.isfinite(error) else 0.0)


@made.register(NormBehind)
@made.register(NormBefore)
@made.register(AffineBefore)
def _neighbour(operation: Neighbour, values: Values, parts: RuleTensors) -> Values:
    factors = channel_factors(operation, parts)
    return values.times(lambda block: factors[values.channels(block, operation)], 4 * parts.eps)


def channel_factors(operation: Neighbour, parts: RuleTensors) -> Reals:
    """γ/√(v + ε) of each channel, each within three roundings."""
    factors = parts.vector("gamma") if "gamma" in operation.roles else np.ones(1, parts.real)
    if isinstance(operation, AffineBefore):
        return factors
    return np.asarray(factors / np.sqrt(parts.vector("variance") + parts.real.type(operation.eps)))
