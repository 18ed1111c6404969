"""Weights that no rule knows, evaluated in float64 by onnx's reference implementation, and rounded once.

The arithmetic is cut out of the model and *lifted*: all floats in it become float64, and casts between floats
go away, so that nothing is rounded to fewer bits on the way. What decides by numbers, such as ``Round`` or
``Greater``, is not evaluated: a float32 may be on the other side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.numerics.rounding import cast
from wnconvert.onnx.file.model import Constant
from wnconvert.onnx.file.tensors import CODES
from wnconvert.onnx.fractions import as_fractions, to_odd
from wnconvert.onnx.graph.plan import Evaluation
from wnconvert.onnx.graph.weights import EVALUATED, QUOTIENTS, EvaluatedWeight, RunWeight
from wnconvert.onnx.rowed import cut_in_rows
from wnconvert.onnx.slices import Slices, UnreachableError
from wnconvert.plan.layout import Evaluate
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES, FOLDABLE, DType

__all__ = ["evaluated", "evaluation_by", "quotients"]


#: The most bytes that all values of one weight's arithmetic may take in float64.
_MOST_BYTES = 1 << 30
#: Operators that only move elements, of any dtype, and those that make shapes.
_MOVES = frozenset(
    "Identity Transpose Reshape Squeeze Unsqueeze Flatten Slice Split Gather GatherElements GatherND Expand "
    "Tile Pad DepthToSpace SpaceToDepth Concat Shape Size Constant ConstantOfShape Range Cast "
    "CastLike".split()
)
#: Operators on whole numbers and truth values, as in shape arithmetic: on floats they would decide.
_DECIDES = frozenset("Equal Greater GreaterOrEqual Less LessOrEqual Not And Or Sign Mod".split())
#: So many float32 are multiplied and divided within the range of float64.
_MOST_FACTORS = 6
#: As fractions so many elements, which are not made row by row, take seconds, and half a GiB.
_MOST_EXACT = 1 << 20
_FLOATS = {CODES[name]: DTYPES[name] for name in FOLDABLE}
_DOUBLE = CODES["float64"]


class _NotEvaluatedError(Exception):
    """A weight that is not evaluated; its text says why."""


@dataclass(frozen=True, slots=True)
class _Type:
    """The dtype (as a code) and shape of a value."""

    code: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes in float64."""
        return int(np.prod(self.shape, dtype=np.float64)) * 8


def evaluation_by(slices: Slices) -> Evaluation:
    """How to evaluate the weights of a model, each or why not. No large tensor is read for it."""

    def evaluation(weight: RunWeight) -> EvaluatedWeight | str:
        try:
            return _planned(slices, weight)
        except _NotEvaluatedError as error:
            return str(error)

    return evaluation


def _planned(slices: Slices, weight: RunWeight) -> EvaluatedWeight:
    """How to evaluate a weight. Raises ``_NotEvaluatedError``."""
    try:
        cut = slices.cut(weight.made, (), DTYPES["float32"])
    except UnreachableError as error:
        raise _NotEvaluatedError(f"{error} cannot be cut out of the graph") from error
    model = _alone(cut.model, cut.fed)
    types = _types(model)
    output = model.graph.output[0].name
    if output not in types:
        raise _NotEvaluatedError("its size is not known before it is computed")
    for node in model.graph.node:
        _check(node, types)
    dtype = _FLOATS.get(types[output].code)
    if dtype is None:
        raise _NotEvaluatedError("it is made of whole numbers")
    _check_digits(model, types, dtype)
    parts = tuple((name, each.tensor) for name, each in cut.fed.items() if each.tensor is not None)
    roundings, rows = _roundings(model, types, dtype), None
    if roundings is not None:
        rows = cut_in_rows(model, {name: each.shape for name, each in types.items()})
    needed = sum(each.size for each in types.values())
    if rows is None and needed > _MOST_BYTES:
        size = f"{needed / (1 << 30):.1f} GiB in float64, and at most {_MOST_BYTES >> 30} GiB is taken"
        raise _NotEvaluatedError(f"its values would take {size}")
    if rows is None and max(each.size for each in types.values()) > 8 * _MOST_EXACT:
        roundings = None
    lifted = _lifted(model, types)
    _evaluator(lifted)
    along = tuple((rows or {}).items())
    work = Evaluate(lifted, parts, dtype, f"weight {weight.name}", roundings, along)
    return EvaluatedWeight(weight.name, weight.made, weight.operators, types[output].shape, work)


def evaluated(model: bytes, parts: Mapping[str, Array]) -> Array:
    """The only output of a lifted model, which is float64, of arrays by the names of its inputs."""
    feeds = {
        name: array.astype(np.float64) if array.dtype.name in FOLDABLE else array
        for name, array in parts.items()
    }
    with np.errstate(all="ignore"):
        (made,) = _evaluator(model).run(None, feeds)
    array = np.asarray(made, order="C")
    assert array.dtype == np.float64  # noqa: S101 - operators that are evaluated make what they are given
    return array


def quotients(
    model: bytes,
    parts: Mapping[str, Array],
    dtype: DType,
    roundings: int,
    rows: Mapping[str, int] = MappingProxyType({}),
) -> Array:
    """The same of quotients and products: of each element the cast to ``dtype`` is the correctly rounded.

    Each of the ``roundings`` is within 2⁻⁵³ of its result. Where both ends of that interval round alike, the
    element is settled; the others are computed as fractions. Where something is divided by 0 on the way there
    is none, and what float64 makes stands. ``rows`` are the parts that have an axis of rows, if each row of
    the result is made of those; then fractions are computed of the rows that need them alone.
    """
    made = _repeated(evaluated(model, parts), parts, rows)
    spread = (roundings + 1) * 2.0**-53
    with np.errstate(all="ignore"):
        low, high = (cast(made * (1 + part), dtype.name) for part in (-spread, spread))
        doubtful = (low != high) & np.isfinite(made)
    if doubtful.any():
        exact = _in_fractions(model, parts, rows, doubtful)
        made[doubtful] = [
            to_odd(each) if isinstance(each, Fraction) else was
            for each, was in zip(exact, made[doubtful], strict=True)
        ]
    return made


def _repeated(made: Array, parts: Mapping[str, Array], rows: Mapping[str, int]) -> Array:
    """What was made of so many rows of its parts; if these are all alike, one was made."""
    count = next((parts[name].shape[axis] for name, axis in rows.items()), None)
    if count is None or len(made) == count:
        return made
    return np.broadcast_to(made, (count, *made.shape[1:])).copy()


def _in_fractions(
    model: bytes, parts: Mapping[str, Array], rows: Mapping[str, int], doubtful: Array
) -> Sequence[Any]:
    """The elements in doubt as fractions, in their order."""
    if not rows:
        return list(as_fractions(model, parts)[doubtful])
    at = np.flatnonzero(doubtful.reshape(len(doubtful), -1).any(axis=1))
    some = {
        name: np.take(part, at, axis=rows[name]) if name in rows else part for name, part in parts.items()
    }
    exact = _repeated(as_fractions(model, some), some, rows)
    return list(exact[doubtful[at]])


def _evaluator(model: bytes) -> Any:
    """onnx's reference implementation of a model. Raises ``_NotEvaluatedError`` where it has none."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class DequantizeLinear(OpRun):  # onnx's own computes in float32, and is not there for each opset
        op_domain = ""

        def _run(
            self, x: Array, scale: Array, zero: Array | None = None, axis: int | None = 1, **_: Any
        ) -> tuple[Array]:
            shape = (
                [-1 if at == (1 if axis is None else axis) % x.ndim else 1 for at in range(x.ndim)]
                if scale.ndim
                else []
            )
            below = 0.0 if zero is None else zero.astype(np.float64).reshape(shape)
            return ((x.astype(np.float64) - below) * scale.reshape(shape),)

    try:
        return ReferenceEvaluator(model, new_ops=[DequantizeLinear])
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise _NotEvaluatedError("onnx does not evaluate one of its operators at this opset") from error


def _alone(model: bytes, fed: Mapping[str, Constant]) -> Any:
    """A cut as a model without functions, whose inputs have the shapes of their tensors."""
    from onnx import ModelProto, helper, inliner

    made = ModelProto.FromString(model)
    del made.graph.input[:]
    for name, constant in fed.items():
        assert constant.info is not None  # noqa: S101 - only such are fed
        code = CODES[constant.info.dtype.name]
        made.graph.input.append(helper.make_tensor_value_info(name, code, constant.info.shape))
    made.graph.output[0].ClearField("type")
    return inliner.inline_local_functions(made) if made.functions else made


def _types(model: Any) -> dict[str, _Type]:
    """The types of all values of a model whose sizes follow from those of its inputs.

    Raises ``_NotEvaluatedError`` for a model in which onnx finds none.
    """
    from onnx import shape_inference

    try:
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
    except shape_inference.InferenceError as error:  # an operator without an opset, types that cannot be
        raise _NotEvaluatedError("onnx cannot tell the types of its values") from error
    found = {each.name: _Type(each.data_type, tuple(each.dims)) for each in graph.initializer}
    for port in (*graph.input, *graph.value_info, *graph.output):
        kind = port.type.tensor_type
        if kind.elem_type and kind.HasField("shape"):
            sizes = [each.dim_value if each.HasField("dim_value") else -1 for each in kind.shape.dim]
            if min(sizes, default=0) >= 0:
                found[port.name] = _Type(kind.elem_type, tuple(sizes))
    return found


def _check(node: Any, types: Mapping[str, _Type]) -> None:
    """Raise ``_NotEvaluatedError`` for a node that is not evaluated in float64."""
    inputs = [types.get(name) for name in node.input if name]
    outputs = [types.get(name) for name in node.output if name]
    if any(each is None for each in (*inputs, *outputs)):
        raise _NotEvaluatedError("its size is not known before it is computed")
    floats = [each for each in (*inputs, *outputs) if each is not None and each.code in _FLOATS]
    known = node.op_type in EVALUATED | _MOVES or (node.op_type in _DECIDES and not floats)
    if node.op_type == "Range":
        known = not floats
    if node.op_type == "DequantizeLinear":
        known = not any(attribute.name == "block_size" and attribute.i for attribute in node.attribute)
    is_cut_off = node.op_type in ("Cast", "CastLike") and inputs[0] in floats and outputs[0] not in floats
    if node.domain not in ("", "ai.onnx") or not known or is_cut_off:
        raise _NotEvaluatedError(f"{node.op_type} is not evaluated in float64")


def _check_digits(model: Any, types: Mapping[str, _Type], dtype: DType) -> None:
    """Raise ``_NotEvaluatedError`` if a result is rounded to fewer bits on the way than ``dtype`` has."""
    for node in model.graph.node:
        made = _FLOATS.get(types[node.output[0]].code)
        if made is None or made.holds(dtype):
            continue
        source = _FLOATS.get(types[node.input[0]].code) if node.input else None
        narrows = node.op_type in ("Cast", "CastLike") and source is not None and not made.holds(source)
        if node.op_type in EVALUATED or narrows:
            raise _NotEvaluatedError(f"{node.op_type} rounds to {made} on the way to {dtype}")


def _roundings(model: Any, types: Mapping[str, _Type], dtype: DType) -> int | None:
    """How many steps of quotients and products round, in float64; None for other arithmetic."""
    if any(each.code == _DOUBLE for each in (_Type(CODES[dtype.name], ()), *types.values())):
        return None
    factors: dict[str, int] = {}  # how many stored numbers are multiplied in a value, at most
    roundings = 0
    for node in model.graph.node:
        inputs = [factors.get(name, 1) for name in node.input if name]
        to_float = types[node.output[0]].code in _FLOATS
        is_cast = node.op_type in ("Cast", "CastLike")
        of_whole_numbers = is_cast and to_float and types[node.input[0]].code not in _FLOATS
        if node.op_type not in QUOTIENTS | _MOVES or of_whole_numbers:
            return None
        multiplies = node.op_type in ("Mul", "Div", "Reciprocal")
        roundings += multiplies
        factors |= dict.fromkeys(node.output, sum(inputs) if multiplies else max(inputs, default=1))
    return roundings if max(factors.values(), default=1) <= _MOST_FACTORS else None


def _lifted(model: Any, types: Mapping[str, _Type]) -> bytes:
    """The model in float64: what was a float of any size is one, and casts between floats are none."""
    for port in (*model.graph.input, *model.graph.output):
        if port.name in types and types[port.name].code in _FLOATS:
            port.type.tensor_type.elem_type = _DOUBLE
    for tensor in model.graph.initializer:
        _widen(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in _FLOATS:
                attribute.i = _DOUBLE
            if attribute.HasField("t"):
                _widen(attribute.t)
        if node.op_type == "Constant":
            _widen_number(node)
        if node.op_type == "ConstantOfShape" and not node.attribute:
            _put(node, "value", [0.0], (1,))
    made: bytes = model.SerializeToString()
    return made


def _widen(tensor: Any) -> None:
    """Make a tensor of floats one of float64."""
    from onnx import numpy_helper

    if tensor.data_type in _FLOATS:
        array = _elements(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _elements(tensor: Any) -> Array:
    """A tensor of floats as an array. Before 1.19 onnx itself does not read the bytes of a bfloat16."""
    from onnx import numpy_helper

    if tensor.data_type != CODES["bfloat16"]:
        return numpy_helper.to_array(tensor)
    raw = tensor.raw_data if tensor.HasField("raw_data") else np.array(tensor.int32_data, "<u2").tobytes()
    return np.frombuffer(raw, DTYPES["bfloat16"].numpy()).reshape(tuple(tensor.dims))


def _widen_number(node: Any) -> None:
    """Make the floats of a Constant a tensor of float64."""
    for attribute in list(node.attribute):
        if attribute.name == "value_float":
            _put(node, "value", [attribute.f], ())
        elif attribute.name == "value_floats":
            _put(node, "value", list(attribute.floats), (len(attribute.floats),))


def _put(node: Any, name: str, numbers: Sequence[float], shape: Sequence[int]) -> None:
    """Give a node a tensor as its only attribute."""
    from onnx import helper

    del node.attribute[:]
    node.attribute.append(helper.make_attribute(name, helper.make_tensor(name, _DOUBLE, shape, numbers)))
