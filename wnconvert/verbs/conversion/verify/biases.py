"""The bias of a layer into which a norm is folded, in plain floating point, with a bound on each error.

As ``rules``, it shares nothing with ``numerics``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wnconvert.layers.rules import BIAS, Neighbour, NormBehind, Rule
from wnconvert.tensors.blocks import Elements
from wnconvert.tensors.tree import StoredTensor
from wnconvert.verbs.conversion.verify.arithmetic import Reals
from wnconvert.verbs.conversion.verify.rules import RuleTensors, channel_factors, weight_of

__all__ = ["computed_bias"]


#: Roundings behind a shift, and behind a product of it; and those of a sum in a block, which is pairwise.
_ROUNDINGS, _PAIRWISE = 8, 64


def computed_bias(
    rule: Rule, parts: Mapping[str, StoredTensor], source: Elements, real: np.dtype[np.floating]
) -> tuple[Reals, Reals]:
    """The bias in numbers of the dtype ``real``, and how far each may be off."""
    operation, reading = rule.neighbour, RuleTensors(parts, source, real)
    assert operation is not None  # noqa: S101 - only such rules have a bias
    factors, zero = channel_factors(operation, reading), np.zeros(1, real)
    bias = reading.vector(BIAS) if BIAS in parts else zero
    mean, beta = (reading.vector(role) if role in operation.offsets else zero for role in ("mean", "beta"))
    if isinstance(operation, NormBehind):
        products = (bias - mean) * factors
        values = products + beta
        return values, (np.abs(products) + np.abs(values)) * (_ROUNDINGS * reading.eps)
    shifts = np.broadcast_to(beta - mean * factors, factors.shape)
    sizes = np.abs(beta) + np.abs(mean * factors)
    sums, off = _sums(rule, operation, reading, np.stack([shifts, np.broadcast_to(sizes, factors.shape)]))
    values = bias + sums
    return values, off + np.abs(values) * reading.eps


def _sums(rule: Rule, operation: Neighbour, parts: RuleTensors, shifts: Reals) -> tuple[Reals, Reals]:
    """Σ w·shift of each output channel, and how far each may be off, given shifts and their sizes."""
    out = 1 - operation.dim
    weight = weight_of(Rule(rule.operations[:-1]), parts, out)
    count = weight.tensor.info.shape[out]
    sums, sizes, blocks = np.zeros(count, parts.real), np.zeros(count, parts.real), 0
    for block in weight.pieces:
        x, channels = weight.read(block), weight.channels(block, operation)
        sums[block.rows] += (x * shifts[0][channels]).sum(axis=(0, 2))
        sizes[block.rows] += (np.abs(x) * shifts[1][channels]).sum(axis=(0, 2))
        blocks += max(block.shape[0], 1)
    return sums, sizes * ((_ROUNDINGS + _PAIRWISE + blocks) * parts.eps + weight.error)
