"""Norms beside a layer: the factor of each channel, and the bias."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wnconvert.errors import LayerError
from wnconvert.layers.rules import BIAS, ORIGINAL, AffineBefore, Neighbour, NormBehind, Rule
from wnconvert.numerics.rounding import DTypeLike, cast, name_of
from wnconvert.numerics.rows import RowReport
from wnconvert.numerics.rules.parts import RuleParts
from wnconvert.tensors.blocks import Array, Block, Floats, Read

__all__ = ["fold_bias", "scaled_by_channel"]


def scaled_by_channel(operation: Neighbour, read: Read, shape: tuple[int, ...], parts: RuleParts) -> Read:
    """The blocks of a weight times the factors of its channels, in float64."""
    factors = _factors(operation, parts)
    if len(factors) != operation.norms(shape):
        raise LayerError(f"a norm of {len(factors)} channels does not fit a weight {shape}")

    def read_scaled(block: Block) -> Array:
        scaled: Floats = read(block).astype(np.float64) * factors[_channels(operation, shape, block)]
        return scaled

    return read_scaled


def _factors(operation: Neighbour, parts: RuleParts) -> Floats:
    gain = parts["gamma"].whole() if "gamma" in operation.roles else np.ones(1)
    if isinstance(operation, AffineBefore):
        return gain
    factors: Floats = gain / np.sqrt(parts["variance"].whole() + operation.eps)
    return factors


def _channels(operation: Neighbour, shape: tuple[int, ...], block: Block) -> NDArray[np.intp]:
    """The channel of each element of a block."""
    places = np.arange(block.start, block.stop)
    if operation.dim == 0:
        return (places // math.prod(shape[1:])).reshape(block.shape)
    i, j = places // math.prod(shape[1:]), places // math.prod(shape[2:]) % shape[1]
    return (i // (shape[0] // operation.groups) * shape[1] + j).reshape(block.shape)


def fold_bias(rule: Rule, parts: RuleParts, out_dtype: DTypeLike) -> tuple[Array, RowReport]:
    """The bias of a layer into which ``rule`` folds a norm, as ``out_dtype``, and its odd channels."""
    operation = rule.neighbour
    assert operation is not None  # noqa: S101 - only such rules have one
    bias = parts[BIAS].whole() if BIAS in parts else np.zeros(1)
    beta = parts["beta"].whole() if operation.offsets[-1:] == ("beta",) else np.zeros(1)
    factors = _factors(operation, parts)
    if isinstance(operation, NormBehind):
        made = (bias - parts["mean"].whole()) * factors + beta
    else:
        shift = beta if isinstance(operation, AffineBefore) else beta - parts["mean"].whole() * factors
        original = parts[ORIGINAL]
        w = parts[ORIGINAL].whole()
        block = Block(0, (1, 1, w.size), 0)
        terms = w * shift[_channels(operation, original.shape, block).reshape(-1)]
        made = bias + terms.reshape(original.shape[0], -1).sum(axis=1)
    return cast(made, name_of(out_dtype)), RowReport()
