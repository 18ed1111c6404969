"""Magnitudes per layer: what g alone tells, and what only v tells.

A layer's magnitudes are |g|, one a row. Of a plain weight they are the norms of its rows, which are the same
numbers: a folded file shows what the unfolded one shows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from wnconvert.layers.schemes import Layer
from wnconvert.numerics.norms import norm_blocks
from wnconvert.tensors.blocks import Array, Block, Elements, Floats
from wnconvert.tensors.tree import StoredTensor

__all__ = ["LayerStats", "Spread", "layer_stats", "plain_stats"]


#: A layer is untouched where |g - ‖v‖| is at most this part of ‖v‖ in every row.
UNTOUCHED = 1e-5
_FLOAT16_BEYOND = 65520.0  # the first value that float16 rounds to infinity


@dataclass(frozen=True, slots=True)
class Spread:
    """The finite values over a layer's rows: least, quartiles, greatest, and the mean."""

    min: float
    q1: float
    median: float
    mean: float
    q3: float
    max: float


@dataclass(frozen=True, slots=True)
class LayerStats:
    """A layer's magnitudes and flags.

    ``form`` is ``"legacy"``, ``"parametrize"``, ``"folded"`` (by the record of a fold), ``"plain"`` or
    ``"refused"``. ``g`` is the spread of |g|, None where it was not read or has no finite value. ``norm``
    (‖v‖), ``ratio`` (|g|/‖v‖) and ``zero_rows`` are there where v was read.
    """

    state_dict: str
    name: str
    form: str
    dim: int | None
    shape: tuple[int, ...]
    dtype: str
    rows: int
    g: Spread | None = None
    norm: Spread | None = None
    ratio: Spread | None = None
    zero_rows: int | None = None
    flags: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data; README documents it."""
        return {**asdict(self), "shape": list(self.shape), "flags": list(self.flags)}


def layer_stats(
    elements: Elements, path: str, layer: Layer, g: StoredTensor, v: StoredTensor, *, full: bool
) -> LayerStats:
    """What g tells of a layer and, where ``full``, what v tells (it is read once, block by block)."""
    info = v.info
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN here
        values = elements.whole(g).reshape(-1).astype(np.float64)
    stats = LayerStats(
        path,
        layer.name,
        layer.form,
        layer.dim,
        info.shape,
        str(info.dtype),
        layer.rows,
        g=_spread(np.abs(values)),
        flags=_flags_of_g(values),
    )
    return _with_v(elements, stats, values, v) if full else stats


def plain_stats(
    elements: Elements, path: str, tensor: StoredTensor, *, form: str, dim: int | None, read: bool
) -> LayerStats:
    """A plain weight; where ``read``, its magnitudes are the norms of its rows along ``dim``."""
    info = tensor.info
    rows = 1 if dim is None else info.shape[dim]
    stats = LayerStats(path, info.name, form, dim, info.shape, str(info.dtype), rows)
    if not read:
        return stats
    norms, report = norm_blocks(elements.reader(tensor), info.shape, dim, info.dtype, "float64")
    flags = ("NaN or inf in the weight",) if report.nonfinite.count else ()
    return replace(stats, g=_spread(norms), zero_rows=report.zero.count, flags=flags)


def _with_v(elements: Elements, stats: LayerStats, g: Floats, v: StoredTensor) -> LayerStats:
    top = np.zeros(stats.rows)
    read = elements.reader(v)

    def read_and_look(block: Block) -> Array:
        values = read(block)
        largest = np.abs(values.astype(np.float64)).max(axis=(0, 2), initial=0)
        top[block.rows] = np.maximum(top[block.rows], largest)
        return values

    with np.errstate(all="ignore"):
        norms, report = norm_blocks(read_and_look, stats.shape, stats.dim, v.info.dtype, "float64")
        ratio = np.abs(g) / norms
        largest = ratio * top
    flags = list(stats.flags)
    if report.zero.count:
        flags.append("1 zero row in v" if report.zero.count == 1 else f"{report.zero.count} zero rows in v")
    if report.nonfinite.count:
        flags.append("NaN or inf in v")
    if (largest >= _FLOAT16_BEYOND).any():
        flags.append("would overflow float16")
    if norms.any() and np.isfinite(norms).all() and (np.abs(g - norms) <= UNTOUCHED * norms).all():
        flags.append("untouched")
    return replace(
        stats, norm=_spread(norms), ratio=_spread(ratio), zero_rows=report.zero.count, flags=tuple(flags)
    )


def _spread(values: Floats) -> Spread | None:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    least, q1, median, q3, greatest = np.quantile(finite, (0, 0.25, 0.5, 0.75, 1)).tolist()
    mean = float((finite / finite.size).sum())  # the sum itself may be too large for a float64
    return Spread(least, q1, median, mean, q3, greatest)


def _flags_of_g(g: Floats) -> tuple[str, ...]:
    flags = []
    if (g < 0).any():
        flags.append("negative g")
    if (g == 0).any():
        flags.append("zero g")
    if not np.isfinite(g).all():
        flags.append("NaN or inf in g")
    return tuple(flags)
