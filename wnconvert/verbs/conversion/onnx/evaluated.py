"""Weights that no rule knows, as they were stored, against what the original's own nodes make of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wnconvert.errors import VerifyError, WnconvertError
from wnconvert.messages import listed, option, printable
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.graph.plan import OnnxFold
from wnconvert.onnx.graph.weights import EvaluatedWeight
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.onnx.runtime.words import NoAnswerError
from wnconvert.onnx.slices import Slices, UnreachableError
from wnconvert.plan.layout import Evaluate
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import Array
from wnconvert.verbs.conversion.onnx.compared import layer_tolerance

__all__ = ["EvaluatedCompared", "compare_evaluated"]


#: How far an element that onnxruntime computes may be off, for it rounds at every step: a part of the element
#: itself where all steps are quotients and products, and else, since sums cancel, of the largest. Norms are
#: sums that do not cancel, and held to what those of layers are.
_PART = {"float64": 1e-9, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
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
            expected = _computed(weight, slices, old, runtime)
            if expected is None:
                unrun.append(weight.name)
                continue
            finite = _compare(weight, new.whole(stored[names[weight.work]]), expected)
            if finite < expected.size:
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


def _computed(weight: EvaluatedWeight, slices: Slices, source: Source, runtime: Runtime) -> Array | None:
    """What onnxruntime computes of the original's nodes; None if it cannot run them alone."""
    try:
        cut = slices.cut(weight.made, (), weight.work.dtype)
        feeds = {}
        for name, constant in cut.fed.items():
            assert constant.tensor is not None  # noqa: S101 - only such are fed
            feeds[name] = source.whole(constant.tensor)
        (value,) = runtime.compute(cut.model, feeds).values()
    except NoAnswerError:
        return None
    except (UnreachableError, WnconvertError):
        return None
    return value


def _compare(weight: EvaluatedWeight, found: Array, expected: Array) -> int:
    """Compare the elements that are finite in the original; how many these are.

    Raises ``VerifyError`` if two weights differ by more than their dtype's rounding of each step.
    """
    a, b = found.astype(np.float64).reshape(weight.shape), expected.astype(np.float64)
    if a.shape != b.shape:
        raise _error(weight, np.inf, 0.0)
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
