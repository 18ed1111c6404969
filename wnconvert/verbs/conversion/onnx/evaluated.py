"""Weights that no rule knows, as they were stored, against what the original's own nodes make of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from wnconvert.errors import VerifyError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.layers.rules import ORIGINAL
from wnconvert.messages import listed, option, printable
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.graph.plan import OnnxFold
from wnconvert.onnx.graph.weights import EvaluatedWeight
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.onnx.slices import Slice, Slices, UnreachableError
from wnconvert.plan.layout import Evaluate
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.tree import StoredTensor, contiguous_strides
from wnconvert.verbs.conversion.onnx.compared import layer_tolerance
from wnconvert.verbs.conversion.onnx.works import rows_between

__all__ = ["EvaluatedCompared", "compare_evaluated"]


#: How far an element that onnxruntime computes may be off, for it rounds at every step: a part of the element
#: itself where all steps are quotients and products, and else, since sums cancel, of the largest. Norms are
#: sums that do not cancel, and held to what those of layers are.
_PART = {"float64": 1e-9, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
#: Elements of the rows that are compared at a time.
_PIECE = 1 << 20
#: The least normal number: what is smaller has fewer digits, and is held against it.
_LEAST = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}


@dataclass(frozen=True, slots=True)
class EvaluatedCompared:
    """How many evaluated weights were compared, and notes on those that were not."""

    alone: int
    notes: tuple[str, ...] = ()


def compare_evaluated(
    opened: OnnxFile, fold: OnnxFold, written: Checkpoint, runtime: Runtime
) -> EvaluatedCompared:
    """Compare each weight that was evaluated with the value that onnxruntime computes from its nodes.

    Raises ``VerifyError`` for one that is something else.
    """
    if not fold.evaluated:
        return EvaluatedCompared(0)
    stored = {
        (state.path, name): tensor
        for state in written.tree.state_dicts
        for name, tensor in state.tensors.items()
    }
    names = {tensor.work: (tensor.path, tensor.name) for tensor in fold.edits.tensors}
    alone, unrun, infinite = 0, [], []
    with Source(written.shards) as new, Source(opened.shards) as old:
        slices = Slices(opened, old.files)
        for weight in fold.evaluated:
            found = stored[names[weight.work]]
            try:
                cut = slices.cut(weight.made, (), weight.work.dtype)
                finite = _Weight(weight, cut, found, new, old).compared(runtime)
            except UnreachableError:
                finite = None
            if finite is None:
                unrun.append(weight.name)
                continue
            if finite < found.info.numel:
                infinite.append(weight.name)
            alone += finite > 0
    return EvaluatedCompared(alone, tuple(_notes(unrun, infinite)))


def _notes(unrun: list[str], infinite: list[str]) -> Iterator[str]:
    if infinite:
        names = listed(map(printable, infinite), 6)
        yield f"the original makes NaN or infinite elements of {names}, which are no measure"
    if unrun:
        names = listed(map(printable, unrun), 6)
        yield f"onnxruntime cannot run the arithmetic of {names} alone: only the whole model compares it"


@dataclass(frozen=True, slots=True)
class _Weight:
    """A weight that was evaluated, its arithmetic alone, and where it is stored in the new model."""

    weight: EvaluatedWeight
    cut: Slice
    stored: StoredTensor
    new: Source
    old: Source

    def compared(self, runtime: Runtime) -> int | None:
        """Compare it some rows at a time, or whole; None if onnxruntime cannot run its arithmetic alone.

        Returns how many elements are finite in the original. Raises ``VerifyError``.
        """
        dim, along = _rows_in(self.weight, self.cut)
        every = self.weight.shape[dim] if along else 1
        step = max(_PIECE * every // max(self.stored.info.numel, 1), 1)
        finite = self._in_pieces(runtime, dim, along, step) if step < every else None
        return finite if finite is not None else self._in_pieces(runtime, dim, {}, every)

    def _in_pieces(self, runtime: Runtime, dim: int, along: Mapping[str, int], step: int) -> int | None:
        """The same, of so many rows at a time; None too if these have another shape alone."""
        every, finite = self.weight.shape[dim] if along else step, 0
        for start in range(0, every, step):
            rows = (start, min(start + step, every), every)
            found = self.new.whole(rows_between(self.stored, dim, *rows) if along else self.stored)
            expected = _computed(self.cut, along, rows, self.old, runtime)
            if expected is None or (along and expected.shape != found.shape):
                return None
            finite += _compare(self.weight, found, expected)
        return finite


def _rows_in(weight: EvaluatedWeight, cut: Slice) -> tuple[int, dict[str, int]]:
    """The axis of a weight's rows, and that of each input of its arithmetic that has such rows, if any."""
    work = weight.work
    if isinstance(work, Evaluate):
        rows = dict(work.rows)
        return 0, {name: rows[name] for name in cut.fed if name in rows}
    dim, original = work.rule.dim, dict(work.parts)[ORIGINAL]
    if dim is None or original.strides != contiguous_strides(original.info.shape):
        return 0, {}  # it may lie in another order than its parts
    shapes = {name: constant.info.shape for name, constant in cut.fed.items() if constant.info is not None}
    whole = {name: dim for name, shape in shapes.items() if shape == weight.shape}
    of_rows = {
        name: shape.index(weight.shape[dim])
        for name, shape in shapes.items()
        if math.prod(shape) == weight.shape[dim]
    }
    return dim, of_rows | whole


def _computed(
    cut: Slice, along: Mapping[str, int], rows: tuple[int, int, int], source: Source, runtime: Runtime
) -> Array | None:
    """What onnxruntime computes of the original's nodes in some rows; None if it cannot run them alone."""
    feeds = {}
    for name, constant in cut.fed.items():
        assert constant.tensor is not None  # noqa: S101 - only such are fed
        part = rows_between(constant.tensor, along[name], *rows) if name in along else constant.tensor
        feeds[name] = source.whole(part)
    try:
        (value,) = runtime.compute(cut.model, feeds).values()
    except WnconvertError:
        return None
    return value


def _compare(weight: EvaluatedWeight, found: Array, expected: Array) -> int:
    """Compare the elements that are finite in the original; how many these are.

    Raises ``VerifyError`` if two weights differ by more than their dtype's rounding of each step.
    """
    if found.shape != expected.shape:
        raise _error(weight, np.inf, 0.0)
    a, b = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    off, sizes = np.abs(a[finite] - b[finite]), np.abs(b[finite])
    most = float(sizes.max(initial=0))
    dtype = weight.work.dtype.name
    scale = sizes + _LEAST[dtype] if weight.is_exact else most
    part = _PART[dtype] if isinstance(weight.work, Evaluate) else layer_tolerance([dtype])
    if not (off <= part * scale).all():
        raise _error(weight, float(off.max()), most)
    return len(off)


def _error(weight: EvaluatedWeight, off: float, most: float) -> VerifyError:
    return VerifyError(
        f"weight {printable(weight.name)} is off by up to {off:.3g} in float64, where the original computes "
        f"at most {most:.3g} in its own dtype; nothing is kept",
        fix=f"{option('exclude', glob=weight.name)} leaves it to the graph",
    )
