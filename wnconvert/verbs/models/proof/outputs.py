"""The distance of one output from its reference: measured sample by sample, and the result over all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import numpy as np

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.numerics.distance import Measure, Tolerance, ToleranceTest, bites
from wnconvert.numerics.rounding import FLOAT_FORMATS, ieee
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.verbs.models.proof.samples import Sample

__all__ = ["STRICT", "Leniency", "OutputMeter", "OutputPair", "OutputProof", "Worst", "flat"]


#: How many elements are converted to float64 at a time.
_BITE = 1 << 20
#: An output that would pass by atol alone must be this near, as a part of its largest value.
LEAST_RTOL = 1e-3
#: Outputs of more elements are not kept to be shown.
_MOST_KEPT = 1 << 22
#: Advice rounds a tolerance up by less than this factor.
_ROUNDED = 1.1


@dataclass(frozen=True, slots=True)
class Worst:
    """The worst element of an output: its index, both values, and its sample; ``source`` is of the user."""

    index: tuple[int, ...]
    reference: float
    candidate: float
    seed: int
    sizes: Mapping[str, int]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Leniency:
    """What is asked beside a tolerance: ``outliers`` of all elements may be further off, by this share.

    In each sample the SNR must be ``min_snr`` decibels then. Raises ``ArgumentError`` for other numbers, and
    for outliers without an SNR, which could be anything. ``str()`` says it, behind the tolerance.
    """

    min_snr: float | None = None
    outliers: float = 0.0

    def __post_init__(self) -> None:
        if self.min_snr is not None and not 0 < self.min_snr < math.inf:
            raise ArgumentError(
                f"{self.min_snr} dB is no least SNR", fix="give a number above 0, such as 100"
            )
        if not 0 <= self.outliers <= 1:
            raise ArgumentError(
                f"{self.outliers} is not a share", fix="give a number from 0 to 1, such as 1e-5"
            )
        if self.outliers and self.min_snr is None:
            raise ArgumentError(
                "outliers alone may be anything", fix="say how loud all errors may be: --min-snr 100"
            )

    def __str__(self) -> str:
        share = f", but for {self.outliers:g} of the elements" if self.outliers else ""
        return share + ("" if self.min_snr is None else f", SNR at least {self.min_snr:g} dB")


class OutputPair:
    """An output in one sample, of the reference and of the candidate, kept to be shown; copies are itself."""

    __slots__ = ("candidate", "reference", "sample")

    def __init__(self, reference: Array, candidate: Array, sample: Sample) -> None:
        self.reference, self.candidate, self.sample = reference, candidate, sample

    def __deepcopy__(self, memo: object) -> OutputPair:
        return self


#: All elements must be within the tolerance, and no SNR is asked for.
STRICT = Leniency()


@dataclass(frozen=True, slots=True)
class OutputProof:
    """The distance of an output a from the reference b, over all samples.

    ``shape`` is the shape in the sample of the worst element, or in the first. These count elements that are
    finite on both sides: ``max_abs`` = max |a-b|; ``max_rel`` = max |a-b|/|b|, infinite if only b is 0;
    ``snr_db`` = 10·log₁₀ Σb²/Σ(a-b)², None if it has no value. ``largest`` = max |b|. ``identical`` is true
    if nothing differs. Of the elements ``out_of_tolerance``, ``unmatched`` are NaN or infinite on one side
    only: with any, ``max_abs`` and ``max_rel`` are NaN and ``snr_db`` is None. ``worst`` is the first of
    those, or else the element with the largest |a-b|. ``needed_atol`` is the least atol that would have
    passed with the given rtol, and ``needed_rtol`` the other way round; None if no value would. Integers and
    bools must be equal. ``unproven``: b is so small that zeros would pass too, and a is off by more than the
    rtol (at least ``LEAST_RTOL``) of the largest b, so another model would have passed. ``least_snr_db`` is
    the SNR of the sample in which it is least; ``noisy``: that is less than what is asked. ``few``: those out
    of tolerance are no more than may be. ``alike``: all elements of b, two or more, are one number or NaN,
    which proves little. ``spread`` counts the elements, of complex numbers their parts, that are 0, 1, 2 to
    3, 4 to 7, … ulps apart; it is empty of integers and bools. ``pair`` is the output on both sides, in the
    sample of the worst element, else in the first; None of a very large one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    identical: bool
    max_abs: float
    max_rel: float
    snr_db: float | None
    worst: Worst | None
    out_of_tolerance: int
    unmatched: int
    needed_atol: float | None
    needed_rtol: float | None
    largest: float = 0.0
    unproven: bool = False
    alike: bool = False
    least_snr_db: float | None = None
    few: bool = False
    noisy: bool = False
    spread: tuple[int, ...] = ()
    pair: OutputPair | None = field(default=None, compare=False, repr=False)

    @property
    def passed(self) -> bool:
        """Whether all elements are within tolerance, but for few that may be out, and the SNR is enough."""
        return not self.noisy and (self.few or not self.out_of_tolerance)

    @property
    def tells(self) -> bool:
        """Whether a pass proves something: integers and bools do, and floats if zeros would not pass too."""
        return _is_exact(self.dtype) or bool(self.largest and not self.unproven)


def flat(array: Array) -> Array:
    """The elements as one row, in C order."""
    return np.ascontiguousarray(array).reshape(-1)


@dataclass(slots=True)
class OutputMeter:
    """Measures one output over samples; other dtypes than floats are converted to a float format first.

    Complex numbers are compared part by part. ``unequal`` counts integers and bools that differ.
    """

    name: str
    dtype: DType
    tolerance: Tolerance
    leniency: Leniency = STRICT
    elements: int = 0
    unequal: int = 0
    largest: float = 0.0
    span: tuple[float, float] = (math.inf, -math.inf)
    shape: tuple[int, ...] = ()
    worst: Worst | None = None
    least_snr: float = math.inf
    pair: OutputPair | None = None
    measure: Measure = field(init=False)

    def __post_init__(self) -> None:
        form = DTYPES[_form(self.dtype).name]
        self.measure = Measure(ToleranceTest(Tolerance(0.0, 0.0) if self.is_exact else self.tolerance, form))

    @property
    def is_exact(self) -> bool:
        """Whether elements must be equal."""
        return _is_exact(self.dtype.name)

    @property
    def out(self) -> int:
        """The number of elements out of tolerance."""
        return self.unequal if self.is_exact else self.measure.different

    def add(self, sample: Sample, found: Array, expected: Array) -> None:
        """Measure the output for one sample."""
        left, right = flat(found), flat(expected)
        parts = 2 if right.dtype.kind == "c" else 1
        start, form = self.elements * parts, _form(self.dtype)
        at_first: int | None = None
        out_before = self.measure.different
        heard = noise = 0.0
        for at, x, y in bites(left, right, _BITE):
            y_floats = _floats(y, form)
            x_floats = _floats(x, form)
            self.measure.add(start + at * parts, x_floats, y_floats)
            power = _powers(x_floats, y_floats)
            heard, noise = heard + power[0], noise + power[1]
            low, high = _span(y_floats)
            self.span = min(self.span[0], low), max(self.span[1], high)
            self.largest = max(map(abs, self.span)) if low <= high else self.largest
            if self.is_exact:
                differ = x != y
                self.unequal += int(np.count_nonzero(differ))
                at_first = at + int(differ.argmax()) if at_first is None and differ.any() else at_first
        if 0 < noise < math.inf and heard < math.inf and (heard or self.measure.different > out_before):
            # Of a quotient that is too small for a float there would be no logarithm.
            snr = 10 * (math.log10(heard) - math.log10(noise)) if heard else -math.inf
            self.least_snr = min(self.least_snr, snr)
        worst = self.measure.worst
        here = (worst - start) // parts if worst is not None and worst >= start else None
        if here is None and self.worst is None:
            here = at_first  # integers past 2**53 that are equal as float64
        if here is not None:
            index = tuple(int(place) for place in np.unravel_index(here, expected.shape))
            values = (_number(right[here]), _number(left[here]))
            self.worst = Worst(index, *values, sample.seed, dict(sample.sizes), sample.source)
        if here is not None or not self.elements:
            self.shape = expected.shape
            self.pair = OutputPair(expected, found, sample) if expected.size <= _MOST_KEPT else None
        self.elements += right.size

    def result(self) -> OutputProof:
        """The result over all samples so far."""
        measure = self.measure
        tolerable = not self.is_exact and not measure.unmatched
        given = self.tolerance.atol or 0.0, self.tolerance.rtol or 0.0
        unproven = tolerable and not self.out and self.leniency.min_snr is None and self._is_unproven(*given)
        least = self.leniency.min_snr
        parts = 2 if self.dtype.name.startswith("complex") else 1
        # With the tolerance that is advised, which is rounded up, the proof must still mean something.
        atol = None if self._is_unproven(measure.atol * _ROUNDED, given[1]) else measure.atol
        rtol = measure.rtol
        if self._zeros_would_pass(given[0], rtol * _ROUNDED):
            rtol = max(rtol, self._share)
        return OutputProof(
            self.name,
            self.dtype.name,
            self.shape,
            self.elements,
            identical=not (measure.max_abs or measure.unmatched or self.unequal),
            max_abs=math.nan if measure.unmatched else measure.max_abs,
            max_rel=math.nan if measure.unmatched else measure.max_rel,
            snr_db=None if self.is_exact or measure.unmatched else measure.snr_db,
            worst=self.worst,
            out_of_tolerance=self.out,
            unmatched=measure.unmatched,
            needed_atol=atol if tolerable and atol is not None and math.isfinite(atol) else None,
            needed_rtol=rtol if tolerable and math.isfinite(rtol) else None,
            largest=self.largest,
            unproven=unproven,
            least_snr_db=self.least_snr if math.isfinite(self.least_snr) and not self.is_exact else None,
            few=tolerable and 0 < self.out <= self.leniency.outliers * self.elements * parts,
            noisy=not self.is_exact and least is not None and self.least_snr < least,
            alike=self.elements > 1 and self.span[0] >= self.span[1],
            spread=() if self.is_exact else measure.steps_apart,
            pair=self.pair,
        )

    def _is_unproven(self, atol: float, rtol: float) -> bool:
        """Whether zeros would pass too, and the output is off by more than the rtol of the largest value."""
        return self._zeros_would_pass(atol, rtol) and self._share > max(rtol, LEAST_RTOL)

    def _zeros_would_pass(self, atol: float, rtol: float) -> bool:
        return 0 < self.largest <= atol + rtol * self.largest

    @property
    def _share(self) -> float:
        """The largest |a-b| as a part of the largest |b|."""
        return self.measure.max_abs / self.largest if self.largest else math.inf


def _is_exact(dtype: str) -> bool:
    return dtype == "bool" or "int" in dtype


def _form(dtype: DType) -> np.dtype[Any]:
    """The float format in which a dtype is compared: its own, or one that holds it."""
    if dtype.name in FLOAT_FORMATS:
        return dtype.numpy()
    return np.dtype("float32" if dtype.is_float8 or dtype.name == "complex64" else "float64")


def _floats(x: Array, form: np.dtype[Any]) -> Array:
    return x.view(form) if x.dtype.kind == "c" else x.astype(form, copy=False)


def _powers(x: Array, y: Array) -> tuple[float, float]:
    """Σy² and Σ(x-y)² of the elements of float arrays that are finite on both sides."""
    left, right = x.astype(np.float64), y.astype(np.float64)
    odd = ~(np.isfinite(left) & np.isfinite(right))
    left[odd] = right[odd] = 0
    with ieee():
        apart = left - right
        return float(np.einsum("i,i->", right, right)), float(np.einsum("i,i->", apart, apart))


def _span(x: Array) -> tuple[float, float]:
    """The least and the greatest finite number; inf and -inf if there is none."""
    finite = x[np.isfinite(x)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.inf, -math.inf)


def _number(value: Any) -> float:
    """An element as a Python float; for a complex number, its absolute value."""
    return abs(complex(value)) if np.iscomplexobj(value) else float(value)
