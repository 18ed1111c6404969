"""Magnitudes per layer: those that g alone gives, and those that need v.

The magnitudes of a layer are |g|, one for each row. Those of a plain weight are the norms of its rows, which
are the same numbers: a folded file shows what the unfolded one shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.layers.rows import LayerRow
from wnconvert.layers.rules import ORIGINAL, G, Mask, Norm, Spectral
from wnconvert.layers.schemes import Layer
from wnconvert.messages import counted
from wnconvert.tensors.blocks import Array, Block, Elements, Floats, RowValues, blocks
from wnconvert.tensors.tree import Dim, StoredTensor, rows_of
from wnconvert.verbs.inspection.distributions import Distribution, RowDetails, distribution_of, row_places

if TYPE_CHECKING:
    from wnconvert.numerics.rules.parts import RulePart

__all__ = [
    "Flag",
    "FlagKind",
    "LayerStats",
    "SpectralStats",
    "Spread",
    "computed_layer",
    "layer_stats",
    "other_stats",
    "plain_layer",
    "plain_stats",
    "refused_layer",
]


#: A layer is untouched if |g - ‖v‖| is at most this part of ‖v‖ in every row.
UNTOUCHED = 1e-5
#: σ of trained u and v is at least this part of the largest singular value.
_TRAINED = 0.5
_FLOAT16_BEYOND = 65520.0  # the first value that float16 rounds to infinity
_AT_ONCE = 1 << 16


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
class SpectralStats:
    """σ of the stored u and v, the largest singular value that 30 steps find, and the lengths of u and v.

    ``largest`` is None of a matrix that is too large for it, ``ratio`` is σ's part of it.
    """

    sigma: float
    largest: float | None
    ratio: float | None
    u: float
    v: float


class FlagKind(Enum):
    """The kinds of oddities of a layer, each with its text."""

    NEGATIVE_G = "negative g"
    ZERO_G = "zero g"
    NONFINITE_G = "NaN or inf in g"
    ZERO_ROWS = "zero rows in v"
    NONFINITE_V = "NaN or inf in v"
    NONFINITE_WEIGHT = "NaN or inf in the weight"
    OVERFLOWS_FLOAT16 = "would overflow float16"
    UNTOUCHED = "untouched"
    TIED = "tied to another layer"
    PLAIN_SIBLING = "plain among normalized siblings"
    REFUSED = "refused"
    COMPUTED = "computed at every run"
    UNTRAINED = "never trained"
    NO_SIGMA = "σ is 0, NaN or inf"


_NONFINITE = {FlagKind.NONFINITE_G, FlagKind.NONFINITE_V, FlagKind.NONFINITE_WEIGHT}


@dataclass(frozen=True, slots=True)
class Flag:
    """An oddity of a layer; ``count`` is a number of rows, ``other`` the name of a tied layer."""

    kind: FlagKind
    count: int = 0
    other: str = ""

    def __str__(self) -> str:
        if self.kind is FlagKind.ZERO_ROWS:
            return f"{counted(self.count, 'zero row')} in v"
        return f"tied to {self.other}" if self.kind is FlagKind.TIED else self.kind.value


@dataclass(frozen=True, slots=True)
class LayerStats(LayerRow):
    """A layer's magnitudes and flags.

    ``form`` is ``"legacy"``, ``"parametrize"``, ``"folded"`` (by the record of a fold), ``"plain"``,
    ``"refused"`` or ``"computed"`` (by a graph, at every run). ``g`` is the spread of |g|, None if it was not
    read or has no finite value. ``norm`` (‖v‖), ``ratio`` (|g|/‖v‖) and ``zero_rows`` are None unless v was
    read. ``odd`` holds the flags as data.

    ``kind`` is what computes the weight, the innermost first: ``"weight"``, ``"prune+spectral"``.
    ``spectral`` and ``zeros``, the share of the mask that is 0, are None unless all was read, and so are the
    ``details`` of its rows.
    """

    g: Spread | None = None
    norm: Spread | None = None
    ratio: Spread | None = None
    zero_rows: int | None = None
    odd: tuple[Flag, ...] = ()
    kind: str = Norm.kind
    spectral: SpectralStats | None = None
    zeros: float | None = None
    details: RowDetails | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags in words."""
        return tuple(map(str, self.odd))

    @property
    def has_nonfinite(self) -> bool:
        """Whether the values that were read have NaN or infinities."""
        return any(flag.kind in _NONFINITE for flag in self.odd)

    def flagged(self, *flags: Flag) -> LayerStats:
        """The same row with more flags."""
        return replace(self, odd=(*self.odd, *flags)) if flags else self

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data; docs/json.md documents it."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "odd"}
        parts = ("g", "norm", "ratio", "spectral", "details")
        spreads = {name: plain[name] and asdict(plain[name]) for name in parts}
        return plain | spreads | {"shape": list(self.shape), "flags": list(self.flags)}


def layer_stats(
    elements: Elements, path: str, layer: Layer, g: StoredTensor, v: StoredTensor, *, full: bool
) -> LayerStats:
    """The row of a layer: from g, and if ``full`` from v too (which is read once, block by block)."""
    info = v.info
    rows = RowValues(elements.reader(g), g.info.shape, g.info.dtype.name)
    of_g = _summary(_sizes(rows))
    stats = LayerStats(
        path,
        layer.name,
        layer.form,
        layer.dim,
        info.shape,
        str(info.dtype),
        layer.rows,
        g=of_g.spread,
        odd=tuple(_flags_of_g(rows)),
    )
    return _with_v(elements, stats, rows, v, of_g) if full else stats


def other_stats(
    elements: Elements, path: str, layer: Layer, parts: Mapping[str, StoredTensor], *, full: bool
) -> LayerStats:
    """The row of a layer of another kind than weight norm alone; its ``parts`` are read if ``full``."""
    info = layer.original
    row = LayerStats(
        path, layer.name, layer.form, layer.dim, info.shape, str(info.dtype), layer.rows, kind=layer.rule.kind
    )
    if not full:
        return row
    from wnconvert.numerics.rules.parts import RulePart  # as all arithmetic: g alone does not need it

    read = {
        role: RulePart(elements.reader(part), part.info.shape, part.info.dtype)
        for role, part in parts.items()
    }
    mask = next((read[role] for role in Mask.roles if role in read), None)
    if mask is not None:
        row = replace(row, zeros=_zeros(mask))
    if not set(Spectral.roles) <= parts.keys() or G in parts:  # a weight that is normed first is not at hand
        return row
    u, v = (read[role] for role in Spectral.roles)
    found = _spectral(_masked(read[ORIGINAL], mask), u, v, layer.dim)
    return replace(row, spectral=found, odd=tuple(_flags_of_sigma(found)))


def _zeros(mask: RulePart) -> float:
    """The share of a mask that is 0."""
    from wnconvert.numerics.rounding import FLOAT_FORMATS

    parts = blocks(mask.shape, None, FLOAT_FORMATS[mask.name].dtype.itemsize)
    kept = sum(int(np.count_nonzero(mask.read(block))) for block in parts)
    return 1 - kept / mask.count if mask.count else 0.0


def _masked(original: RulePart, mask: RulePart | None) -> RulePart:
    """What is left of an original under a mask, rounded to its dtype."""
    if mask is None:
        return original

    def read(block: Block) -> Array:
        kept: Array = mask.read(block).astype(np.float64)
        values = original.read(block)
        return (values.astype(np.float64) * kept).astype(values.dtype)

    return replace(original, read=read)


def _spectral(original: RulePart, u: RulePart, v: RulePart, dim: Dim) -> SpectralStats:
    """What spectral norm shows, along the axis where σ is larger if both fit."""
    from wnconvert.numerics.rules.spectral.square import matrix_health  # which g alone does not need

    dims = (0, 1) if dim is None else (dim,)
    found = max((matrix_health(original, u, v, each) for each in dims), key=lambda item: abs(item.sigma))
    ratio = found.sigma / found.largest if found.largest else None
    return SpectralStats(found.sigma, found.largest, ratio, found.u, found.v)


def _flags_of_sigma(found: SpectralStats) -> Iterator[Flag]:
    if not found.sigma or not np.isfinite(found.sigma):
        yield Flag(FlagKind.NO_SIGMA)
    elif found.ratio is not None and found.ratio < _TRAINED * found.u * found.v:
        yield Flag(FlagKind.UNTRAINED)


def _sizes(g: RowValues) -> Floats:
    """|g| of all rows."""
    sizes = np.empty(g.count)
    for rows, values in g.windows():
        np.abs(values, out=sizes[rows])
    return sizes


def refused_layer(path: str, name: str) -> LayerStats:
    """The row of a layer that is refused: nothing of it is read."""
    return LayerStats(path, name, "refused", None, (), "", 0, odd=(Flag(FlagKind.REFUSED),))


def computed_layer(path: str, name: str) -> LayerStats:
    """The row of a weight that a graph computes: nothing of it is read."""
    return LayerStats(path, name, "computed", None, (), "", 0, odd=(Flag(FlagKind.COMPUTED),))


def plain_layer(path: str, tensor: StoredTensor, *, form: str, dim: int | None) -> LayerStats:
    """The row of a plain weight without its magnitudes: no element is read."""
    info = tensor.info
    return LayerStats(path, info.name, form, dim, info.shape, str(info.dtype), rows_of(info.shape, dim))


def plain_stats(
    elements: Elements, path: str, tensor: StoredTensor, *, form: str, dim: int | None
) -> LayerStats:
    """The row of a plain weight; its magnitudes are the norms of its rows along ``dim``."""
    stats, info = plain_layer(path, tensor, form=form, dim=dim), tensor.info
    from wnconvert.numerics.norms import norm_blocks

    norms, report = norm_blocks(elements.reader(tensor), info.shape, dim, info.dtype, "float64")
    odd = (Flag(FlagKind.NONFINITE_WEIGHT),) if report.nonfinite.count else ()
    zero, nonfinite = row_places([(0, norms == 0)]), row_places([(0, ~np.isfinite(norms))])
    of_g = _summary(norms)
    details = RowDetails(of_g.distribution(), zero=zero, nonfinite=nonfinite)
    return replace(stats, g=of_g.spread, zero_rows=report.zero.count, odd=odd, details=details)


def _with_v(
    elements: Elements, stats: LayerStats, g: RowValues, v: StoredTensor, of_g: _Summary
) -> LayerStats:
    from wnconvert.numerics.norms import norm_blocks

    norms, report = norm_blocks(elements.reader(v), stats.shape, stats.dim, v.info.dtype, "float64")
    ratio, untouched = np.empty(len(norms)), bool(norms.any() and np.isfinite(norms).all())
    for rows, values in g.windows():
        norm = norms[rows]
        with np.errstate(all="ignore"):
            np.divide(np.abs(values), norm, out=ratio[rows])
            untouched = untouched and bool((np.abs(values - norm) <= UNTOUCHED * norm).all())
    flags: list[Flag] = []
    if report.zero.count:
        flags.append(Flag(FlagKind.ZERO_ROWS, report.zero.count))
    if report.nonfinite.count:
        flags.append(Flag(FlagKind.NONFINITE_V))
    if _overflows(elements, stats, ratio, g, v):
        flags.append(Flag(FlagKind.OVERFLOWS_FLOAT16))
    if untouched:
        flags.append(Flag(FlagKind.UNTOUCHED))
    with_places = _with_places(stats.flagged(*flags), g, norms, RowDetails(of_g.distribution()))
    of_v, of_ratio = _summary(norms), _summary(ratio)
    details = replace(with_places, norm=of_v.distribution(), ratio=of_ratio.distribution())
    with_v = replace(
        stats, norm=of_v.spread, ratio=of_ratio.spread, zero_rows=report.zero.count, details=details
    )
    return with_v.flagged(*flags)


def _with_places(stats: LayerStats, g: RowValues, norms: Floats, details: RowDetails) -> RowDetails:
    """The details of a layer with the rows that its flags tell of; without a flag none is looked for."""
    flags = {flag.kind for flag in stats.odd}
    if FlagKind.NEGATIVE_G in flags:
        details = replace(details, negative=row_places((rows.start, v < 0) for rows, v in g.windows()))
    if FlagKind.ZERO_G in flags:
        details = replace(details, zero=row_places((rows.start, v == 0) for rows, v in g.windows()))
    if FlagKind.ZERO_ROWS in flags:
        details = replace(details, dead=row_places([(0, norms == 0)]))
    if flags & _NONFINITE:
        finite = ((rows.start, np.isfinite(v) & np.isfinite(norms[rows])) for rows, v in g.windows())
        details = replace(details, nonfinite=row_places((first, ~mask) for first, mask in finite))
    return details


def _overflows(elements: Elements, stats: LayerStats, ratio: Floats, g: RowValues, v: StoredTensor) -> bool:
    """Whether a weight is too large for float16. No weight is larger than its g, so v is seldom asked."""
    large = any((np.abs(values) >= _FLOAT16_BEYOND * 0.99).any() for _, values in g.windows())
    if not large:
        return False
    top = np.zeros(stats.rows)
    read = elements.reader(v)
    for block in blocks(stats.shape, stats.dim, v.info.dtype.itemsize):
        with np.errstate(all="ignore"):
            largest = np.abs(read(block).astype(np.float64)).max(axis=(0, 2), initial=0)
        top[block.rows] = np.maximum(top[block.rows], largest)
    with np.errstate(all="ignore"):
        return bool((ratio * top >= _FLOAT16_BEYOND).any())


@dataclass(frozen=True, slots=True)
class _Summary:
    """The finite ones of some numbers, sorted, and their spread."""

    ordered: Floats
    spread: Spread | None

    def distribution(self) -> Distribution | None:
        """How the numbers are distributed, which only full inspections show."""
        return distribution_of(self.ordered)


def _summary(values: Floats) -> _Summary:
    """Some numbers in short; they are sorted where they lie."""
    finite = values if np.isfinite(values).all() else values[np.isfinite(values)]
    if not finite.size:
        return _Summary(finite, None)
    mean = _sum_of_parts(finite, finite.size)  # the sum itself may be too large for a float64
    finite.sort()
    least, q1, median, q3, greatest = (_quantile(finite, quarter) for quarter in range(5))
    return _Summary(finite, Spread(least, q1, median, mean, q3, greatest))


def _sum_of_parts(values: Floats, count: int) -> float:
    """Σ value/count as numpy has it, which sums halves of whole eighths, without all quotients at once."""
    if values.size <= _AT_ONCE:
        return float((values / count).sum())
    half = values.size // 2
    half -= half % 8
    return _sum_of_parts(values[:half], count) + _sum_of_parts(values[half:], count)


def _quantile(ordered: Floats, quarter: int) -> float:
    """As ``np.quantile`` has it, which is slow with few numbers, and loads numpy.ma."""
    below, rest = divmod((ordered.size - 1) * quarter, 4)
    a, b = ordered[below : below + 2].tolist() if rest else [float(ordered[below])] * 2
    part = rest / 4
    return b - (b - a) * (1 - part) if part >= 0.5 else a + (b - a) * part  # exact at both ends


def _flags_of_g(g: RowValues) -> Iterator[Flag]:
    found = {
        kind
        for _, values in g.windows()
        for kind, is_so in (
            (FlagKind.NEGATIVE_G, (values < 0).any()),
            (FlagKind.ZERO_G, (values == 0).any()),
            (FlagKind.NONFINITE_G, not np.isfinite(values).all()),
        )
        if is_so
    }
    return (Flag(kind) for kind in FlagKind if kind in found)
