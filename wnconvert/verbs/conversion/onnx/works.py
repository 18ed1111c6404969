"""The kinds of work that only graphs have: weights rounded to whole numbers, and weights that no rule knows.

QuantizeLinear, DequantizeLinear and Mul are one operation of IEEE 754 on each element (QuantizeLinear is two:
the division and the rounding), so every runtime makes the same of the same weight. The weight they start from
is correctly rounded, where a runtime's own may be off by a few units in the last place: a code may differ by
that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from wnconvert.numerics.folding import Folding
from wnconvert.numerics.kernel.choice import cast_block
from wnconvert.numerics.rounding import count_overflow
from wnconvert.numerics.rows import RowPolicy
from wnconvert.plan.layout import Evaluate, FoldThrough, Requantized
from wnconvert.tensors.blocks import Array, Block, Elements, Floats
from wnconvert.tensors.tree import Shape, StoredTensor
from wnconvert.tensors.views.dequantized import (
    coded,
    packed,
    quantized_in,
    range_of,
    scale_places,
    stored_codes,
)
from wnconvert.tensors.views.quantization import Dequantize, Elementwise, Quantization, Quantize, Times
from wnconvert.verbs.conversion.executor import Outcome, Sink, folding_of, make_tensor, outcome_of

__all__ = ["Steps", "pieces_of_rows", "rows_between", "small_tensor"]


#: Elements of a weight that is evaluated by rows, at a time.
_PIECE = 1 << 18
#: A scale that is less stands for nothing but zeros, as onnxruntime's quantizer has it.
_LEAST_SCALE = float(np.finfo(np.float32).tiny)


def small_tensor(source: Elements, tensor: StoredTensor) -> Array:
    """All elements of a small tensor of floats or of codes, flat."""
    if tensor.info.dtype.foldable:
        return source.whole(tensor).reshape(-1)
    stored = tensor.in_bytes()
    every = Block(0, (1, 1, stored.info.numel), 0)
    return stored_codes(source.reader(stored)(every).tobytes(), tensor.info)


def rows_between(tensor: StoredTensor, dim: int | None, start: int, stop: int, every: int) -> StoredTensor:
    """Some rows of a tensor: along ``dim``, or else along its only axis with a size for ``every`` row."""
    shape = tensor.info.shape
    axis = dim if dim is not None else next((at for at, size in enumerate(shape) if size == every), None)
    if axis is None or stop - start == every:
        return tensor
    info = replace(tensor.info, shape=(*shape[:axis], stop - start, *shape[axis + 1 :]))
    return replace(tensor, info=info, offset=tensor.offset + start * tensor.strides[axis])


@dataclass(frozen=True)
class Steps:
    """What a graph does with each element of a weight of this shape; its small tensors are read once."""

    source: Elements
    steps: Sequence[Elementwise]
    shape: Shape

    def of(self, values: Array, block: Block) -> Array:
        """What the steps make of the elements of a block."""
        made = values.reshape(-1)
        with np.errstate(all="ignore"):
            for step in self._ready:
                made = step(made, block)
        return made.reshape(values.shape)

    @cached_property
    def _ready(self) -> list[Callable[[Array, Block], Array]]:
        return [self._prepared(step) for step in self.steps]

    def _prepared(self, step: Elementwise) -> Callable[[Array, Block], Array]:
        if isinstance(step, Times):
            return self._times(step)
        scale, zero = quantized_in(step.how, lambda tensor: small_tensor(self.source, tensor))
        dtype = step.how.scale.info.dtype.numpy()
        if isinstance(step, Quantize):
            narrow, codes = scale.astype(dtype), step.how.dtype

            def quantize(values: Array, block: Block) -> Array:
                at = self._places(step.how, block)
                return coded(values.astype(dtype) / narrow[at], zero[at], codes)

            return quantize

        def dequantize(values: Array, block: Block) -> Array:
            at = self._places(step.how, block)
            made: Array = ((values - zero[at]) * scale[at]).astype(dtype)
            return made

        return dequantize

    def _times(self, step: Times) -> Callable[[Array, Block], Array]:
        factor = small_tensor(self.source, step.factor)
        along = Quantization(step.dtype, step.factor, axis=step.axis)

        def times(values: Array, block: Block) -> Array:
            made: Array = values * factor[self._places(along, block)]
            return made

        return times

    def _places(self, how: Quantization, block: Block) -> slice | Array:
        found: slice | Array = scale_places(how, self.shape, block.start, block.stop)
        return found


@make_tensor.register
def _fold_through(work: FoldThrough, source: Elements, out: Sink, numbers: RowPolicy) -> Outcome:
    """Codes, or numbers of them; those of 4 bits are gathered first, as two of them are one byte."""
    fold = work.fold
    shape = dict(fold.parts)["original"].info.shape
    steps = Steps(source, work.steps, shape)
    halves = []
    with folding_of(fold, source) as folding:
        for block, w in folding.blocks():
            made = steps.of(w, block)
            if isinstance(work.steps[-1], (Dequantize, Times)):
                out.array(np.ascontiguousarray(made, work.dtype.numpy()))
            elif work.dtype.bits % 8:
                halves.append(made.reshape(-1).astype(np.int8))
            else:
                out.array(packed(made, work.dtype))
    if halves:
        out.array(packed(np.concatenate(halves), work.dtype))
    return outcome_of(folding, fold, numbers)


# -- codes again


@make_tensor.register
def _requantize(work: Requantized, source: Elements, out: Sink, numbers: RowPolicy) -> Outcome:
    """A weight as codes by a scheme whose numbers are chosen as onnxruntime's quantizer chooses them."""
    fold, how = work.fold, work.how
    shape = dict(fold.parts)["original"].info.shape
    with folding_of(fold, source) as folding:
        scale, zero = _chosen(how, _ends(how, shape, folding), _middle(how, source))
        outcome = outcome_of(folding, fold, numbers)
    if work.part == "scale":
        out.array(scale.astype(work.dtype.numpy()))
    elif work.part == "zero":
        out.array(packed(zero, how.dtype))
    else:
        halves = []
        with folding_of(fold, source) as folding:
            for block, w in folding.blocks():
                at = scale_places(how, shape, block.start, block.stop)
                made = coded(w.reshape(-1) / scale[at], zero[at], how.dtype)
                if how.dtype.bits % 8:
                    halves.append(made.astype(np.int8))
                else:
                    out.array(packed(made, how.dtype))
        if halves:
            out.array(packed(np.concatenate(halves), how.dtype))
    return outcome


def _ends(how: Quantization, shape: Shape, folding: Folding) -> tuple[Floats, Floats]:
    """The least and the greatest element of a weight for each scale, and 0 if that is beyond them."""
    count = 1 if how.axis is None else math.prod(how.scale_shape(shape))
    least, most = np.zeros(count), np.zeros(count)
    for block, w in folding.blocks():
        values = w.reshape(-1).astype(np.float64)
        at = (
            np.zeros(len(values), np.intp)
            if how.axis is None
            else scale_places(how, shape, block.start, block.stop)
        )
        np.minimum.at(least, at, values)
        np.maximum.at(most, at, values)
    return least, most


def _middle(how: Quantization, source: Elements) -> int | None:
    """The zero of a symmetric scheme, in which it is the same for all; None for another."""
    middle = 1 << how.dtype.bits - 1 if how.dtype.name.startswith("u") else 0
    zero = np.zeros(1) if how.zero is None else small_tensor(source, how.zero)
    return middle if bool(np.all(zero == middle)) else None


def _chosen(how: Quantization, ends: tuple[Floats, Floats], middle: int | None) -> tuple[Floats, Floats]:
    """The scales and zeros for weights between these ends: onnxruntime's ``compute_scale_zp``."""
    least, most = ends
    lowest, highest = range_of(how.dtype)
    if middle is not None:
        lowest = -highest if lowest < 0 else lowest
        most = np.maximum(-least, most)
        least = -most
    scale = (most - least) / (highest - lowest)
    void = scale < _LEAST_SCALE
    scale = np.where(void, 1.0, scale).astype(how.scale.info.dtype.numpy()).astype(np.float64)
    if middle is not None:
        return scale, np.full_like(scale, middle)
    return scale, np.where(void, 0, np.clip(np.rint(lowest - least / scale), lowest, highest))


@make_tensor.register
def _evaluate(work: Evaluate, source: Elements, out: Sink, numbers: RowPolicy) -> Outcome:
    from wnconvert.onnx.evaluation import evaluated, quotients

    nonfinite = overflow = 0
    for parts in pieces_of_rows(work, source):
        if work.roundings is None:
            values = evaluated(work.model, parts)
        else:
            values = quotients(work.model, parts, work.dtype, work.roundings, dict(work.rows))
        made = cast_block(values, work.dtype.name)
        out.array(made)
        nonfinite += int(np.count_nonzero(~np.isfinite(values)))
        overflow += count_overflow(values, made)
    problems = numbers.cast_problems(overflow, work.dtype)
    return Outcome((*numbers.nonfinite_problems(nonfinite), *problems))


def pieces_of_rows(work: Evaluate, source: Elements) -> Iterator[dict[str, Array]]:
    """The parts of a weight that is evaluated, some rows of them at a time, or whole."""
    rows = dict(work.rows)
    every, elements = 1, 0
    for name, tensor in work.parts:
        if name in rows:
            every, elements = tensor.info.shape[rows[name]], max(elements, tensor.info.numel)
    step = max(_PIECE * every // max(elements, 1), 1)
    whole = {name: source.whole(tensor) for name, tensor in work.parts if name not in rows}
    for start in range(0, every, step):
        stop = min(start + step, every)
        cut = {
            name: source.whole(rows_between(tensor, rows[name], start, stop, every))
            for name, tensor in work.parts
            if name in rows
        }
        yield whole | cut
