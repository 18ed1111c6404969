"""A new tensor beside what the original says that it is: what its nodes compute, or what a formula is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from wnconvert.errors import VerifyError
from wnconvert.frozen import dataclass
from wnconvert.layers.rules import ORIGINAL, G, Rule, Standardize
from wnconvert.messages import REPORT_BUG, printable
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.numerics.rows import RowPolicy
from wnconvert.onnx.file.model import NewTensor
from wnconvert.onnx.slices import UnreachableError
from wnconvert.plan.layout import FoldBias, FoldThrough, Requantized
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import Array, Block, blocks, reader_of
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import Dim, StoredTensor, rows_of
from wnconvert.tensors.views.dequantized import scale_places
from wnconvert.tensors.views.quantization import Dequantize
from wnconvert.verbs.conversion.onnx.formula import Formula, bias_in_full, norms_axis
from wnconvert.verbs.conversion.onnx.works import Steps, rows_between, small_tensor

__all__ = [
    "NOTHING_LOST",
    "Arithmetic",
    "ComparedTensor",
    "Distance",
    "Lost",
    "apart_of",
    "axes_of_rows",
    "compare_codes",
    "layer_tolerance",
]


#: How far an element that onnxruntime computes may be off, relatively: it rounds at every step.
_RTOL = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-3, "bfloat16": 8e-3}
#: The part of that within which float32 itself tells that an element is near.
_CLEARLY = 0.99
#: How far a code may be off, in its scale: half for rounding, half for a zero that is a whole number.
_QUANTUM = 1.001


def layer_tolerance(dtypes: Iterable[str]) -> float:
    """How far an element of a weight of one of these dtypes may be off, relatively."""
    return max((_RTOL[dtype] for dtype in dtypes), default=0.0)


class Arithmetic(Protocol):
    """What computes a value of the original."""

    def rows(self, source: Source, start: int, stop: int) -> Array:
        """The value in some rows. Raises ``UnreachableError`` where it cannot be computed."""


# -- rows


def _apart(rule: Rule) -> Dim:
    """The axis along which rows are computed apart: that of their norms, unless all elements count for σ."""
    return norms_axis(rule) if "spectral" not in rule.kinds else None


def apart_of(tensor: NewTensor) -> Dim:
    """The same of a new tensor: what has scales of its own is computed whole."""
    return None if isinstance(tensor.work, FoldThrough) else _apart(tensor.rule)


def axes_of_rows(rule: Rule) -> dict[str, Dim]:
    """The tensors, by role, that have a part for each row, with its axis; None: their only one."""
    dim = _apart(rule)
    return {ORIGINAL: dim, "mask": dim, G: None}


# -- numbers


@dataclass(frozen=True, slots=True)
class Lost:
    """How many elements only the formula confirms: the original has no number there, or a bad one.

    ``rounded`` are those that it rounds to another whole number, since they are next to a midpoint; ``void``
    those that are NaN before it rounds them.
    """

    unfinite: int = 0
    strays: int = 0
    rounded: int = 0
    void: int = 0

    def __add__(self, other: Lost) -> Lost:
        return Lost(
            self.unfinite + other.unfinite,
            self.strays + other.strays,
            self.rounded + other.rounded,
            self.void + other.void,
        )


NOTHING_LOST = Lost()


@dataclass(frozen=True, slots=True)
class ComparedTensor:
    """A new tensor, ``found`` in the new model, beside what the original says that it is."""

    tensor: NewTensor
    found: StoredTensor
    new: Source
    old: Source
    numbers: RowPolicy

    def with_formula(self) -> Lost:
        """Compare it with the formula of its rule. Raises ``VerifyError``."""
        if isinstance(self.tensor.work, FoldBias):
            return self._bias(bias_in_full(self.old, self.tensor.rule, dict(self.tensor.parts)))
        formula = Formula(self.old, self.tensor.rule, self.tensor.parts)
        if isinstance(work := self.tensor.work, FoldThrough):
            steps = Steps(self.old, work.steps, self.found.info.shape)
            return self._rounded(work, self.found, lambda block: steps.of(formula.at(block), block), formula)
        return self._rows(0, self.found, formula.at, formula)

    def with_arithmetic(self, arithmetic: Arithmetic, step: int) -> Lost:
        """Compare it with what the original's nodes compute, some rows at a time. Raises ``VerifyError``."""
        tensor, lost, dim = self.tensor, NOTHING_LOST, apart_of(self.tensor)
        every, along = rows_of(tensor.original.info.shape, dim), axes_of_rows(tensor.rule)
        for start in range(0, every, step):
            stop = min(start + step, every)
            found = rows_between(self.found, dim, start, stop, every)
            parts = tuple(
                (role, rows_between(part, along[role], start, stop, every) if role in along else part)
                for role, part in tensor.parts
            )
            computed = arithmetic.rows(self.old, start, stop)
            if computed.shape != found.info.shape:
                if stop - start < every:
                    raise UnreachableError(tensor.name)
                raise VerifyError(
                    f"layer {printable(tensor.layer)} should have the shape {computed.shape} and has "
                    f"{found.info.shape}; nothing is kept",
                    fix=REPORT_BUG,
                )
            formula = Formula(self.old, tensor.rule, parts)
            lost += self._rows(start, found, reader_of(computed), formula)
        return lost

    def _rows(
        self, start: int, found: StoredTensor, expected: Callable[[Block], Array], formula: Formula
    ) -> Lost:
        """Compare some rows, of which ``start`` is the first."""
        if isinstance(work := self.tensor.work, FoldThrough):
            return self._rounded(work, found, expected, formula)
        lost, read, shape = NOTHING_LOST, self.new.reader(found), found.info.shape
        dim = norms_axis(self.tensor.rule)
        for block in blocks(shape, dim, found.info.dtype.itemsize):
            own, theirs = read(block), expected(block)
            if _clearly_near(own, theirs):
                continue
            is_, should = own.astype(np.float64), theirs.astype(np.float64)
            bad = ~self._good(is_, should)
            if any(isinstance(each, Standardize) for each in self.tensor.rule.operations):
                bad &= ~_near_beside(is_, should, self.tensor.dtype)
            if not bad.any():
                continue
            confirmed = bad & np.isfinite(is_) & _near(is_, formula.at(block), self.tensor.dtype)
            unfinite = confirmed & ~np.isfinite(should)
            strays = confirmed & ~unfinite & formula.strays(self.tensor.dtype)[block.rows].reshape(1, -1, 1)
            if (wrong := bad & ~unfinite & ~strays).any():
                at = int(np.flatnonzero(wrong)[0])
                place = [int(index) for index in np.unravel_index(block.start + at, shape)]
                if dim is not None:
                    place[dim] += start
                raise VerifyError(
                    f"layer {printable(self.tensor.layer)} is {is_.reshape(-1)[at]:.6g} at {tuple(place)}, "
                    f"where the original computes {should.reshape(-1)[at]:.6g}; nothing is kept",
                    fix=REPORT_BUG,
                )
            lost += Lost(int(np.count_nonzero(unfinite)), int(np.count_nonzero(strays)))
        return lost

    def _rounded(
        self, work: FoldThrough, found: StoredTensor, expected: Callable[[Block], Array], formula: Formula
    ) -> Lost:
        """Compare what is rounded to whole numbers on the way.

        A weight that is off by rounding may lie on the other side of a midpoint, so what both make must lie
        between what the steps make of a little less and of a little more.
        """
        shape, lost = found.info.shape, NOTHING_LOST
        steps, every = Steps(self.old, work.steps, shape), small_tensor(self.new, found)
        for block in blocks(shape, norms_axis(work.rule), 8):
            weight, is_ = formula.at(block), every[block.start : block.stop].reshape(block.shape)
            should = expected(block).astype(np.float64)
            void = int(np.count_nonzero(np.isnan(weight)))
            if self.numbers.zero_rows == "zero":
                weight, should = np.nan_to_num(weight), np.where(np.isnan(weight), is_, should)
            near = [
                steps.of(weight * part, block) for part in (1 - _RTOL["float32"], 1, 1 + _RTOL["float32"])
            ]
            least, most = np.minimum.reduce(near), np.maximum.reduce(near)
            fits = (least <= is_) & (is_ <= most) & (least <= should) & (should <= most)
            if self.numbers.allow_nonfinite:
                fits |= ~np.isfinite(weight)
            if not fits.all():
                at = int(np.flatnonzero(~fits)[0])
                place = tuple(int(index) for index in np.unravel_index(block.start + at, shape))
                raise VerifyError(
                    f"layer {printable(self.tensor.layer)} is {is_.reshape(-1)[at]:.6g} at {place}, "
                    f"where the original computes {should.reshape(-1)[at]:.6g}; nothing is kept",
                    fix=REPORT_BUG,
                )
            lost += Lost(rounded=int(np.count_nonzero(is_ != should)), void=void)
        return lost

    def _bias(self, expected: Array) -> Lost:
        """Compare it as a bias."""
        found = self.new.whole(self.found).astype(np.float64).reshape(-1)
        bad = np.flatnonzero(~self._good(found, expected))
        if bad.size:
            raise VerifyError(
                f"the bias of layer {printable(self.tensor.layer)} is {found[bad[0]]:.6g} in channel "
                f"{bad[0]}, where the original makes {expected[bad[0]]:.6g}; nothing is kept",
                fix=REPORT_BUG,
            )
        return NOTHING_LOST

    def _good(self, found: Array, expected: Array) -> Array:
        good = _near(found, expected, self.tensor.dtype)
        if self.numbers.zero_rows == "zero":
            good |= np.isnan(expected) & (found == 0)
        if self.numbers.allow_nonfinite:
            good |= ~np.isfinite(expected) & ~np.isfinite(found)
        return good


# -- codes again


@dataclass(frozen=True, slots=True)
class Distance:
    """Σw² of a weight, and Σ(w − x)² of what it is stored as."""

    signal: float
    noise: float

    @property
    def snr(self) -> float:
        """Their ratio in dB."""
        return 10 * math.log10(self.signal / self.noise) if self.signal and self.noise else math.inf


def compare_codes(
    tensors: Sequence[NewTensor], stored: Mapping[str, StoredTensor], new: Source, old: Source
) -> Distance:
    """How far a layer that is stored as codes again is from its formula; ``tensors`` are its new ones.

    Raises ``VerifyError`` if it is further than rounding by its scale.
    """
    made = {each.work.part: (each, each.work) for each in tensors if isinstance(each.work, Requantized)}
    tensor, work = made["codes"]
    scale, zero = stored[made["scale"][0].name], stored[made["zero"][0].name] if "zero" in made else None
    how = replace(work.how, scale=scale, zero=zero)
    shape = tensor.shape
    steps, formula = Steps(new, (Dequantize(how),), shape), Formula(old, tensor.rule, tensor.parts)
    codes, scales = small_tensor(new, stored[tensor.name]), small_tensor(new, scale).astype(np.float64)
    distance = Distance(0, 0)
    for block in blocks(shape, norms_axis(tensor.rule), 8):
        exact, is_ = formula.at(block), codes[block.start : block.stop].reshape(block.shape)
        found = steps.of(is_, block).astype(np.float64)
        widest = np.broadcast_to(scales[scale_places(how, shape, block.start, block.stop)], exact.size)
        off = np.abs(found - exact)
        if (wrong := np.flatnonzero(off.reshape(-1) > _QUANTUM * widest)).size:
            at = int(wrong[0])
            raise VerifyError(
                f"layer {printable(tensor.layer)} is {found.reshape(-1)[at]:.6g} behind its codes, where its "
                f"formula gives {exact.reshape(-1)[at]:.6g}; nothing is kept",
                fix=REPORT_BUG,
            )
        finite = np.isfinite(exact)
        distance = Distance(
            distance.signal + float(np.sum(exact[finite] ** 2)),
            distance.noise + float(np.sum(off[finite] ** 2)),
        )
    return distance


def _near_beside(found: Array, expected: Array, dtype: DType) -> Array:
    """Which elements differ by rounding beside the largest one: what a mean is taken from may cancel."""
    with np.errstate(all="ignore"):
        most = float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
        beside: Array = np.abs(found - expected) <= _RTOL[dtype.name] * most
    return beside


def _clearly_near(found: Array, expected: Array) -> bool:
    """Whether all elements are finite and near, told without doubt in their own dtype; False where it may be.

    The difference of two numbers of which neither is twice the other is exact (Sterbenz).
    """
    if found.dtype != expected.dtype or found.dtype not in (np.float32, np.float64):
        return False
    with np.errstate(all="ignore"):
        allowed = np.abs(expected)
        allowed *= _CLEARLY * _RTOL[found.dtype.name]
        off = np.subtract(found, expected)
        np.abs(off, out=off)
        return bool((off <= allowed).all()) and float(off.max(initial=0)) < math.inf


def _near(found: Array, expected: Array, dtype: DType) -> Array:
    smallest = math.ldexp(1, FLOAT_FORMATS[dtype.name].least)
    with np.errstate(all="ignore"):
        off = np.abs(found - expected)
        near: Array = off <= _RTOL[dtype.name] * np.abs(expected) + 2 * smallest
    made: Array = near & np.isfinite(expected) | (found == expected)
    return made
