"""The bias of a layer into which a norm is folded, correctly rounded.

Behind the layer it is (b - μ)·γ/√(v + ε) + β, before it b + Σ w·(β - μγ/√(v + ε)). Both are computed in
float64 with a bound on their error. Where both ends of that interval do not round alike, bounds are narrowed
until they do, or are equal: a sum of roots that is not rational is no midpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.rules import BIAS, ORIGINAL, Mask, Neighbour, NormBehind, Rule
from wnconvert.numerics.norms import arithmetic
from wnconvert.numerics.rounding import FLOAT_FORMATS, DTypeLike, Format, cast, name_of
from wnconvert.numerics.rows import WHOLE, RowReport, RowTally
from wnconvert.numerics.rules.channels.shifts import ShiftedSums, Shifts
from wnconvert.numerics.rules.channels.vector import FACTOR_STEPS, NormChannels, channels_of
from wnconvert.numerics.rules.factors import Bounds
from wnconvert.numerics.rules.parts import RuleParts
from wnconvert.numerics.rules.spectral.roots import refined_sum
from wnconvert.numerics.rules.table import stage_of
from wnconvert.numerics.sums import UNIT
from wnconvert.tensors.blocks import BLOCK_BYTES, Array, Block, Floats, Read

__all__ = ["fold_bias"]


#: A float64 result may be off by so many ulp, and one rounding more.
_LOOSE = 3.5
#: What roundings below the range of float64 add up to, at most.
_TINY = 2.0**-1060


def fold_bias(
    rule: Rule, parts: RuleParts, out_dtype: DTypeLike, *, limit: int = BLOCK_BYTES
) -> tuple[Array, RowReport]:
    """The bias of a layer into which ``rule`` folds a norm, as ``out_dtype``, and its odd channels.

    A bias that the layer does not have is 0. The weight is read only where a norm stands before the layer.
    The nearest values, ties to even; float64 within 4 ulp. NaN and infinities follow IEEE 754, and are
    reported: ``channels`` with one, and those whose result is an ``overflow``.

    Raises ``LayerError`` for parts that do not fit each other, and for a norm *before* a layer whose weight
    is not plain or pruned.

    >>> from wnconvert.numerics.rules.parts import RulePart
    >>> rule = Rule((NormBehind(0, eps=0.0, gain=False, shift=False),))
    >>> arrays = {"original": np.ones((2, 1)), "variance": np.array([4.0, 1.0]), "mean": np.array([1.0, 2.0])}
    >>> fold_bias(rule, {role: RulePart.of(array) for role, array in arrays.items()}, "float32")[0]
    array([-0.5, -2. ], dtype=float32)
    """
    operation, form = rule.neighbour, FLOAT_FORMATS[name_of(out_dtype)]
    assert operation is not None  # noqa: S101 - only such rules have a bias
    shape = parts[ORIGINAL].shape
    with arithmetic():
        channels = channels_of(operation, parts, shape)
        beta = _vector(parts, "beta" if "beta" in operation.offsets else "", channels.count)
        mean = _vector(parts, "mean" if "mean" in operation.offsets else "", channels.count)
        if isinstance(operation, NormBehind):
            sums: _Behind | _Before = _Behind(channels, _vector(parts, BIAS, channels.count), mean, beta)
        else:
            sums = _before(rule, operation, parts, Shifts(channels, beta, mean), form.dtype.name, limit)
        found, odd = _settled(sums, form)
    tally = RowTally()
    tally.add("channels", ~(np.isfinite(mean) & np.isfinite(beta)), 0)
    tally.add("overflow", np.isinf(found) & ~odd, 0)
    if not np.isfinite(sums.bias).all():
        tally.put("nonfinite", WHOLE)
    return found, tally.report()


#: The bounds on a result, or the result as IEEE 754 has it, where it is not finite.
_Ends = Iterator[Bounds] | float


def _vector(parts: RuleParts, role: str, count: int) -> Floats:
    """The elements of a part; zeros where there is none."""
    if role not in parts:
        return np.zeros(count)
    if parts[role].count != count:
        raise LayerError(f"{role} {parts[role].shape} does not fit {count} channels")
    return parts[role].whole()


@dataclass(frozen=True, slots=True)
class _Behind:
    """(b - μ)·γ/√(v + ε) + β of each channel."""

    channels: NormChannels
    bias: Floats
    mean: Floats
    beta: Floats

    @property
    def plain(self) -> Floats:
        """As IEEE 754 has them."""
        values: Floats = (self.bias - self.mean) * self.channels.values + self.beta
        return values

    @property
    def odd(self) -> NDArray[np.bool_]:
        """The results that are made of NaN or infinities."""
        flags: NDArray[np.bool_] = (
            self.channels.odd | ~np.isfinite(self.bias - self.mean) | ~np.isfinite(self.beta)
        )
        return flags

    def rough(self) -> tuple[Floats, Floats]:
        """All results, and bounds on their errors."""
        off, factors = self.bias - self.mean, self.channels.values
        products = off * factors
        values = products + self.beta
        errors = np.abs(products) * ((FACTOR_STEPS + 3) * UNIT) + np.abs(values) * UNIT + _TINY
        errors[~(np.isfinite(values) & ((factors != 0) | (self.channels.gamma == 0)))] = np.inf
        errors[(off == 0) | (self.channels.gamma == 0)] = 0
        return values, errors

    def refined(self, rows: Sequence[int]) -> Iterator[tuple[int, _Ends]]:
        """Ever narrower bounds on some results."""
        for row in rows:
            bias, mean, beta, gamma = (
                Fraction(float(each[row])) for each in (self.bias, self.mean, self.beta, self.channels.gamma)
            )
            yield row, refined_sum([(bias - mean) * gamma, beta], [self.channels.divisor(row), Fraction(1)])


@dataclass(frozen=True, slots=True)
class _Before:
    """b + Σ w·shift of each output channel."""

    bias: Floats
    groups: tuple[ShiftedSums, ...]

    @property
    def size(self) -> int:
        """The number of output channels of a group."""
        return len(self.bias) // len(self.groups)

    @property
    def odd(self) -> NDArray[np.bool_]:
        """The results that are made of NaN or infinities beside the weight's."""
        groups = np.repeat([not np.isfinite(group.its).all() for group in self.groups], self.size)
        flags: NDArray[np.bool_] = groups | ~np.isfinite(self.bias)
        return flags

    @property
    def plain(self) -> Floats:
        """As IEEE 754 has them."""
        values: Floats = self.bias + np.concatenate([group.plain() for group in self.groups])
        return values

    def rough(self) -> tuple[Floats, Floats]:
        """All results, and bounds on their errors."""
        sums = [group.fast() for group in self.groups]
        high, low, off = (
            np.concatenate([getattr(each, name) for each in sums]) for name in ("high", "low", "error")
        )
        total = self.bias + high
        back = total - self.bias
        rest = (self.bias - (total - back)) + (high - back) + low
        values = total + rest
        return values, off + (np.abs(rest) * 4 + np.abs(values)) * UNIT

    def refined(self, rows: Sequence[int]) -> Iterator[tuple[int, _Ends]]:
        """Ever narrower bounds on some results."""
        for at, group in enumerate(self.groups):
            first = at * self.size
            its = [row - first for row in rows if first <= row < first + self.size]
            for row, ends in group.exact(its):
                bias = float(self.bias[first + row])
                yield first + row, ends + bias if isinstance(ends, float) else _plus(Fraction(bias), ends)


def _plus(bias: Fraction, ends: Iterator[Bounds]) -> Iterator[Bounds]:
    return ((bias + least, bias + most) for least, most in ends)


def _before(  # noqa: PLR0917 -- the rule, its parts, for what
    rule: Rule, operation: Neighbour, parts: RuleParts, shifts: Shifts, out: str, limit: int
) -> _Before:
    """The bias behind a norm, whose channels are those of the layer's input."""
    shape = parts[ORIGINAL].shape
    if len(shape) < 2:
        raise LayerError(f"a weight {shape} has no output channels")
    if not all(isinstance(each, Mask) for each in rule.operations[:-1]):
        raise LayerError(
            "a norm before a layer whose weight is computed by another kind cannot be folded into its bias",
            fix="fold that kind alone, into a file of its own, and then the norm: that rounds twice",
        )
    stage = stage_of(Rule(rule.operations[:-1]), parts, out, limit)
    axis, count = 1 - operation.dim, operation.groups
    its_shape = (shape[0] // count, *shape[1:])
    cut = shifts.cut() if np.isfinite(shifts.values).all() else None
    groups = [
        ShiftedSums(
            _from(stage.read, group * math.prod(its_shape), group * its_shape[0] if axis == 0 else 0),
            its_shape,
            axis,
            stage.dtype,
            limit,
            shifts,
            cut,
            group * shape[1],
        )
        for group in range(count)
    ]
    return _Before(_vector(parts, BIAS, shape[axis]), tuple(groups))


def _from(read: Read, start: int, row: int) -> Read:
    """The blocks of a part of a tensor."""
    return lambda block: read(Block(block.start + start, block.shape, block.row + row))


def _settled(sums: _Behind | _Before, form: Format) -> tuple[Array, NDArray[np.bool_]]:
    """The results, each rounded once; and those that are made of NaN or infinities."""
    odd = sums.odd
    if odd.any():
        values, errors = sums.plain, np.full(len(odd), np.inf)
    else:
        values, errors = sums.rough()
    found = cast(values, form.dtype)
    if form.digits == FLOAT_FORMATS["float64"].digits:
        is_open = ~(errors <= np.spacing(np.abs(values)) * _LOOSE)
    else:
        slack = errors * (1 + 4 * UNIT) + np.abs(values) * np.where(errors > 0, 2 * UNIT, 0)
        ends = (cast(np.where(slack > 0, values + by, values), form.dtype) for by in (-slack, slack))
        low, high = (each.view(form.codes) for each in ends)
        is_open = low != high
    for row, ends_of_row in sums.refined(np.flatnonzero(is_open & ~odd).tolist()):
        found[row] = _rounded(ends_of_row, form, float(values[row]))
    return found, odd


def _rounded(ends: _Ends, form: Format, plain: float) -> float:
    """The value nearest to a number between ever narrower bounds; a zero has its sign in float64."""
    if isinstance(ends, float):
        return ends
    for least, most in ends:
        if least == most == 0:
            return math.copysign(0.0, plain) if plain == 0 else 0.0
        if least > 0 or most < 0:
            codes = [_nearest(abs(end), form) for end in (least, most)]
            if codes[0] == codes[1]:
                size = math.inf if codes[0] >= form.inf else float(form.value(codes[0]))
                return size if least > 0 else -size
    raise AssertionError("bounds on a number have no end before it is known")


def _nearest(size: Fraction, form: Format) -> int:
    """The code of the value nearest to a magnitude, ties to even."""
    try:
        near = float(size)
    except OverflowError:
        near = math.inf
    code = int(cast(np.array([near]), form.dtype).view(form.codes)[0])
    return form.nearest_root(size**2, max(code - 1, 0))
