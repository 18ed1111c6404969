"""A layer with the norm behind it: the original's own nodes, and the new ones, run on one made-up input."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wnconvert.errors import VerifyError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.messages import REPORT_BUG, printable
from wnconvert.onnx.graph.computed import GraphLayer
from wnconvert.onnx.graph.neighbours import Behind
from wnconvert.onnx.graph.views import View
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.onnx.runtime.words import NoAnswerError
from wnconvert.onnx.slices import Slices, UnreachableError
from wnconvert.tensors.blocks import Array

__all__ = ["NormNodes"]


#: How far an output may be off, as a part of the greatest: both ways round at every step.
_PART = {"float64": 1e-9, "float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
#: Bytes of a weight with which nodes are run.
_MOST_BYTES = 64 << 20
#: Elements of the made-up input along an axis of places, beside those that one output needs.
_MORE = 3


@dataclass(frozen=True, slots=True)
class NormNodes:
    """The nodes of layers and of the norms behind them, cut out of the original and of the new model."""

    before: Slices
    after: Slices
    runtime: Runtime

    def agree(self, layer: GraphLayer) -> bool:
        """Whether both make the same of made-up inputs; False if they cannot be run alone.

        Raises ``VerifyError`` if they make something else.
        """
        norm, view = layer.behind, layer.weights[0].view
        assert norm is not None  # noqa: S101 - only such layers are asked for
        if view.original.info.nbytes > _MOST_BYTES:
            return False
        for shape in _shapes(norm, view):
            x = np.random.default_rng(0).normal(0, 1, shape).astype(view.dtype.numpy())
            try:
                expected, found = (self._made(each, norm, view, x) for each in (self.before, self.after))
            except (UnreachableError, NoAnswerError):
                return False
            except WnconvertError:  # of another rank, perhaps
                continue
            _compare(layer, found, expected, _PART[view.dtype.name])
            return True
        return False

    def _made(self, model: Slices, norm: Behind, view: View, x: Array) -> Array:
        """What the nodes of a model make of an input of the layer."""
        given = model.index.resolve(norm.path, norm.linear.inputs[0])
        if given is None:
            raise UnreachableError(norm.path)
        cut = model.cut((norm.path, norm.norm.outputs[0]), (), view.dtype, given=given)
        feeds = {cut.given: x}
        for name, constant in cut.fed.items():
            assert constant.tensor is not None  # noqa: S101 - only such are fed
            data = model.bytes(constant.tensor.data)
            feeds[name] = np.frombuffer(data, constant.tensor.info.dtype.numpy()).reshape(
                constant.tensor.info.shape
            )
        (made,) = self.runtime.compute(cut.model, feeds).values()
        return made


def _shapes(norm: Behind, view: View) -> Iterator[tuple[int, ...]]:
    """Shapes that the input of a linear node may have."""
    w, op = view.original.info.shape, norm.linear.op
    settings = {name: attribute.value for name, attribute in norm.linear.attributes.items()}
    if op == "Gemm":
        inner = w[1 - norm.dim]
        yield (inner, 2) if settings.get("transA") else (2, inner)
    elif op == "MatMul":
        yield from ((2, *places, w[0]) for places in ((), (3,), (3, 4), (3, 4, 5)))
    else:
        given = settings.get("dilations")
        steps = [step for step in given if isinstance(step, int)] if isinstance(given, tuple) else []
        steps = steps or [1] * len(w[2:])
        places = ((size - 1) * step + 1 + _MORE for size, step in zip(w[2:], steps, strict=False))
        groups = settings.get("group", 1)
        channels = w[0] if op == "ConvTranspose" else w[1] * (groups if isinstance(groups, int) else 1)
        yield (2, channels, *places)


def _compare(layer: GraphLayer, found: Array, expected: Array, part: float) -> None:
    """Raise ``VerifyError`` if two outputs differ by more than a part of the greatest value."""
    shown = printable(layer.layer.name)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise VerifyError(
            f"layer {shown} makes {found.dtype}{found.shape}, and with its norm it made "
            f"{expected.dtype}{expected.shape}; nothing is kept",
            fix=REPORT_BUG,
        )
    a, b = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    most = float(np.abs(b[finite]).max(initial=0))
    off = float(np.abs(a[finite] - b[finite]).max(initial=0))
    if not off <= part * most:
        raise VerifyError(
            f"layer {shown} is off by {off:.3g} and made at most {most:.3g} with its norm; nothing is kept",
            fix=REPORT_BUG,
        )
