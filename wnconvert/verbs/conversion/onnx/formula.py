"""The weight of one layer in float64, read in blocks, by another way than that of a fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from wnconvert.layers.rules import (
    BIAS,
    ORIGINAL,
    G,
    Guard,
    Norm,
    NormBehind,
    Rule,
    Spectral,
    Standardize,
    Unit,
)
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import Array, Block, blocks
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import Dim, Shape, StoredTensor, rows_of

__all__ = ["Formula", "bias_in_full", "norms_axis"]


#: How much smaller than its terms a sum may be, in units of its dtype, before it is a matter of rounding.
_CANCELS = 64


def norms_axis(rule: Rule) -> Dim:
    """The axis that the norms of rows are not summed over; None without one."""
    norm = _norm_of(rule)
    return norm.dim if norm else None


def _norm_of(rule: Rule) -> Norm | Unit | None:
    """The operation that divides rows by their norms."""
    return next((each for each in rule.operations if isinstance(each, (Norm, Unit))), None)


@dataclass(frozen=True)
class Formula:
    """The weight that a rule makes of its ``parts``, by their roles; the rule names axes of the original.

    It has numbers wherever the weight has: each row is divided by its largest element before it is squared.
    """

    source: Source
    rule: Rule
    parts: tuple[tuple[str, StoredTensor], ...]

    def at(self, block: Block) -> Array:
        """The elements of a block, one of ``blocks`` along ``norms_axis``."""
        made = self._unscaled(block)
        if self._spectral is not None:
            with np.errstate(all="ignore"):
                made /= self._sigma
        if self._standardize is not None:
            row = self._rows_at(block)
            with np.errstate(all="ignore"):
                made = (made - self._middle[row]) * self._slope[row] + self._shift[row]
        if isinstance(norm := self.rule.neighbour, NormBehind):
            with np.errstate(all="ignore"):
                made *= self._factors[_channels_of(norm, self._shape, block)]
        return made

    def strays(self, dtype: DType) -> Array:
        """Which rows take sums, squares, products or quotients that ``dtype`` cannot hold in full."""
        form = FLOAT_FORMATS[dtype.name]
        largest, least = form.largest, float(form.value(1 << form.digits - 1))
        strays = np.zeros(rows_of(self._shape, self._dim), np.bool_)
        if self._norm is not None:
            g, top, norms = np.abs(self._magnitudes), self._tops, self._norms
            count = math.prod(self._shape) // max(norms.size, 1)
            with np.errstate(all="ignore"):
                steps = [norms**2, norms**2 / count, top**2, g * top, g / self._divisors]
                for step in steps:
                    strays |= (step > largest) | ((step < least) & (g > 0))
        if self._spectral is not None:
            sigma, most = abs(self._sigma), float(np.abs(self._image).max())
            rounding = _CANCELS * math.ldexp(1, -form.digits) * self._terms
            strays |= most > largest or not max(least, rounding) <= sigma <= largest
        return strays

    @property
    def _by_role(self) -> dict[str, StoredTensor]:
        return dict(self.parts)

    @property
    def _shape(self) -> tuple[int, ...]:
        return self._by_role[ORIGINAL].info.shape

    @property
    def _dim(self) -> Dim:
        return norms_axis(self.rule)

    @property
    def _norm(self) -> Norm | Unit | None:
        return _norm_of(self.rule)

    @property
    def _spectral(self) -> Spectral | None:
        return next((each for each in self.rule.operations if isinstance(each, Spectral)), None)

    def _read(self, block: Block) -> Array:
        """The elements of the original, masked."""
        found: Array = self.source.reader(self._by_role[ORIGINAL])(block).astype(np.float64)
        if (mask := self._by_role.get("mask")) is not None:
            found *= self.source.reader(mask)(block)
        return found

    def _unscaled(self, block: Block) -> Array:
        """The elements before they are divided by σ."""
        made = self._read(block)
        if self._norm is not None:
            top, scale = (each[block.rows].reshape(1, -1, 1) for each in (self._tops, self._scale))
            with np.errstate(all="ignore"):
                made = made / top * scale
        return made

    def _blocks(self) -> Iterator[Block]:
        return blocks(self._shape, self._dim, self._by_role[ORIGINAL].info.dtype.itemsize)

    def _vector(self, role: str) -> Array:
        return _vector_of(self.source, self._by_role[role])

    # -- standardization

    @property
    def _standardize(self) -> Standardize | None:
        return next((each for each in self.rule.operations if isinstance(each, Standardize)), None)

    def _rows_at(self, block: Block) -> Array:
        """The row of each element of a block."""
        dim = self._standardize.dim if self._standardize is not None else 0
        inner = math.prod(self._shape[dim + 1 :])
        rows: Array = np.arange(block.start, block.stop) // inner % self._shape[dim]
        return rows.reshape(block.shape)

    def _mean_of(self, terms: Callable[[Block], Array]) -> Array:
        """The mean of each row of what terms are made of a block."""
        assert self._standardize is not None  # noqa: S101 - else it is not asked for
        rows = self._shape[self._standardize.dim]
        sums = np.zeros(rows)
        for block in self._blocks():
            sums += np.bincount(self._rows_at(block).reshape(-1), terms(block).reshape(-1), rows)
        mean: Array = sums * rows / math.prod(self._shape)
        return mean

    @cached_property
    def _middle(self) -> Array:
        return self._mean_of(self._unscaled)

    @cached_property
    def _slope(self) -> Array:
        """γ·scale/d of each row."""
        how = self._standardize
        assert how is not None  # noqa: S101 - else it is not asked for
        count = math.prod(self._shape) // self._shape[how.dim]
        variance = self._mean_of(
            lambda block: (self._unscaled(block) - self._middle[self._rows_at(block)]) ** 2
        )
        with np.errstate(all="ignore"):
            variance *= count / (count - 1) if how.std == "unbiased" else 1
            if how.eps_at == "std":
                divisor = np.sqrt(variance) + how.eps
            else:
                inside = (
                    np.maximum(variance * how.fan, how.eps) if how.eps_at == "max" else variance + how.eps
                )
                divisor = np.sqrt(inside)
            gain = self._vector("gain") if how.gain else np.ones(1)
            slope: Array = gain * how.scale / divisor
        return slope

    @cached_property
    def _shift(self) -> Array:
        how = self._standardize
        return self._vector("shift") if how is not None and how.shift else np.zeros(self._slope.shape)

    @cached_property
    def _factors(self) -> Array:
        """The factor of each channel of a norm behind the layer."""
        return _factors_of(self.rule, self.source, self._by_role)

    # -- rows divided by their norms

    @cached_property
    def _magnitudes(self) -> Array:
        """What multiplies each row."""
        norm = self._norm
        if not isinstance(norm, Unit):
            return self._vector(G)
        return np.full(rows_of(self._shape, self._dim), float(norm.scale))

    @cached_property
    def _tops(self) -> Array:
        """The largest magnitude of every row; 1 of a row of zeros that a guard divides by its eps."""
        tops = np.zeros(rows_of(self._shape, self._dim))
        for block in self._blocks():
            tops[block.rows] = np.maximum(tops[block.rows], np.abs(self._read(block)).max(axis=(0, 2)))
        if self._norm is not None and self._norm.guard is not None:
            tops[tops == 0] = 1.0
        return tops

    @cached_property
    def _parts(self) -> Array:
        """The norm of every row, as a part of its largest magnitude."""
        squares = np.zeros_like(self._tops)
        for block in self._blocks():
            with np.errstate(all="ignore"):
                scaled = self._read(block) / self._tops[block.rows].reshape(1, -1, 1)
            squares[block.rows] += np.square(scaled).sum(axis=(0, 2))
        return np.sqrt(squares)

    @cached_property
    def _norms(self) -> Array:
        with np.errstate(all="ignore"):
            norms: Array = self._tops * self._parts
        return norms

    @cached_property
    def _divisors(self) -> Array:
        """What every row is divided by."""
        assert self._norm is not None  # noqa: S101 - else it is not asked for
        return _divisors_of(self._norm.guard, self._norms)

    @cached_property
    def _scale(self) -> Array:
        assert self._norm is not None  # noqa: S101 - else it is not asked for
        with np.errstate(all="ignore"):
            if self._norm.guard is None:
                scale: Array = self._magnitudes / self._parts
            else:
                scale = self._magnitudes * (self._tops / self._divisors)
        return scale

    # -- spectral norm

    @property
    def _sigma(self) -> float:
        with np.errstate(all="ignore"):
            return float(self._vector("u") @ self._image)

    @property
    def _image(self) -> Array:
        """mat(w)·v."""
        return self._products[0]

    @property
    def _terms(self) -> float:
        """The sum of the magnitudes of σ's terms."""
        return float(np.abs(self._vector("u")) @ self._products[1])

    @cached_property
    def _products(self) -> tuple[Array, Array]:
        """mat(w)·v, and the same of their magnitudes."""
        assert self._spectral is not None  # noqa: S101 - else it is not asked for
        dim = self._spectral.dim or 0
        v, rows, inner = self._vector("v"), self._shape[dim], math.prod(self._shape[dim + 1 :])
        image, terms = np.zeros(rows), np.zeros(rows)
        for block in self._blocks():
            outer, place = np.divmod(np.arange(block.start, block.stop), inner)
            slab, row = np.divmod(outer, rows)
            with np.errstate(all="ignore"):
                products = self._unscaled(block).reshape(-1) * v[slab * inner + place]
                image += np.bincount(row, products, rows)
                terms += np.bincount(row, np.abs(products), rows)
        return image, terms


def _divisors_of(guard: Guard | None, norms: Array) -> Array:
    """What rows of these norms are divided by."""
    if guard is None:
        return norms
    by_squares, share = "squares" in guard.at, float(guard.share)
    with np.errstate(all="ignore"):
        inside = share * (norms**2 if by_squares else norms)
        guarded: Array = np.maximum(inside, guard.eps) if guard.is_least else inside + guard.eps
        return np.sqrt(guarded) if by_squares else guarded


# -- a norm behind the layer


def bias_in_full(source: Source, rule: Rule, parts: Mapping[str, StoredTensor]) -> Array:
    """The bias of a layer, which has a norm behind it, of its ``parts`` by their roles."""
    zero = np.zeros(1)
    bias, mean, beta = (
        _vector_of(source, parts[role]) if role in parts else zero for role in (BIAS, "mean", "beta")
    )
    with np.errstate(all="ignore"):
        made: Array = (bias - mean) * _factors_of(rule, source, parts) + beta
    return made


def _factors_of(rule: Rule, source: Source, parts: Mapping[str, StoredTensor]) -> Array:
    """The factor of each channel of the norm."""
    norm = rule.neighbour
    assert isinstance(norm, NormBehind)  # noqa: S101 - graphs show no other
    gain = _vector_of(source, parts["gamma"]) if norm.gain else np.ones(1)
    with np.errstate(all="ignore"):
        factors: Array = gain / np.sqrt(_vector_of(source, parts["variance"]) + norm.eps)
    return factors


def _vector_of(source: Source, tensor: StoredTensor) -> Array:
    vector: Array = source.whole(tensor).astype(np.float64).reshape(-1)
    return vector


def _channels_of(norm: NormBehind, shape: Shape, block: Block) -> Array:
    """The channel of each element of a block."""
    every = np.arange(norm.norms(shape)).reshape(norm.groups, shape[norm.dim])
    channels = np.repeat(every, shape[0] // norm.groups, axis=0) if norm.dim else every.reshape(-1, 1)
    inner = math.prod(shape[2:]) if norm.dim else math.prod(shape[1:])
    found: Array = channels.reshape(-1)[np.arange(block.start, block.stop) // inner].reshape(block.shape)
    return found
