"""Evaluation of small tensors of an ONNX model: the shape arithmetic on which Reshape and Expand depend.

Integers are int64 here, floats float64, truth values bool; shapes follow ONNX's rules, which are numpy's
nearly everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from wnconvert.onnx.file.tensors import CODES
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import FOLDABLE

__all__ = ["MOST_ELEMENTS", "Settings", "axes_of", "evaluate", "flag_attribute"]


#: The attributes of a node that are plain numbers or sequences of them.
Settings: TypeAlias = Mapping[str, Any]

#: Shapes are small: a larger tensor is not evaluated.
MOST_ELEMENTS = 512

_WHOLE = {code for name, code in CODES.items() if name.startswith(("int", "uint"))}
_FLOAT = {CODES[name] for name in FOLDABLE}
_BOOL = CODES["bool"]


def axes_of(inputs: Sequence[Array | None], settings: Settings, at: int = 1) -> tuple[int, ...] | None:
    """The axes of a node, from an attribute (older opsets) or from input ``at``; None if it names none.

    Raises ``KeyError`` if they are in an input whose numbers are not known.

    >>> axes_of([], {"axes": (1, -1)}), axes_of([None, np.array([0])], {}), axes_of([None], {})
    ((1, -1), (0,), None)
    """
    if "axes" in settings:
        return tuple(settings["axes"])
    if len(inputs) <= at:
        return None
    numbers = inputs[at]
    if numbers is None:
        raise KeyError("axes")
    return tuple(int(axis) for axis in numbers.reshape(-1))


def flag_attribute(settings: Settings, name: str, default: int = 0) -> bool:
    """An attribute that is 0 or 1.

    Raises ``ValueError`` for any other number: runtimes do not agree on its meaning.
    """
    number = settings.get(name, default)
    if number not in {0, 1}:
        raise ValueError(name)
    return bool(number)


def evaluate(op: str, inputs: Sequence[Array | None], settings: Settings) -> Array | None:
    """The result of an op of the ONNX domain on small known tensors; None if it is not known.

    ``inputs`` has None for an input that is left out or unknown.

    >>> shape = np.array([8, 4, 3])
    >>> evaluate("Gather", [shape, np.array(0)], {"axis": 0})
    array(8)
    >>> evaluate("Concat", [np.array([8]), np.array([-1])], {"axis": 0}).tolist()
    [8, -1]
    """
    rule = _RULES.get(op)
    if rule is None or not inputs or inputs[0] is None:
        return None
    try:
        with np.errstate(all="ignore"):
            made = np.asarray(rule(inputs, settings))
    except (ArithmeticError, IndexError, KeyError, TypeError, ValueError):
        return None  # against the specification: the result is not known
    return made if made.size <= MOST_ELEMENTS else None


_Rule: TypeAlias = Callable[[Sequence[Any], Settings], Any]


def _cast(inputs: Sequence[Any], settings: Settings) -> Array:
    to = settings["to"]
    if to in _WHOLE:
        return np.asarray(np.trunc(inputs[0]), np.int64)
    if to == _BOOL:
        return np.asarray(inputs[0] != 0)
    if to in _FLOAT:
        return np.asarray(inputs[0], np.float64)
    raise ValueError(to)


def _divide(inputs: Sequence[Any], _: Settings) -> Array:
    a, b = inputs
    if a.dtype.kind == "f":
        if not np.all(b):
            raise ZeroDivisionError
        return np.asarray(a / b)
    quotient = np.abs(a) // np.abs(b)  # ONNX truncates towards zero
    return np.asarray(quotient * np.sign(a) * np.sign(b))


def _power(inputs: Sequence[Any], _: Settings) -> Array:
    a, b = inputs
    made = np.asarray(a, np.float64) ** b
    if not np.isfinite(made).all():
        raise ValueError("pow")
    return np.asarray(made if a.dtype.kind == "f" else np.trunc(made).astype(np.int64))


def _gather(inputs: Sequence[Any], settings: Settings) -> Array:
    return np.asarray(np.take(inputs[0], inputs[1], axis=settings.get("axis", 0)))


def _slice(inputs: Sequence[Any], settings: Settings) -> Array:
    data = inputs[0]
    given = [*inputs[1:], *[None] * 4]
    if "starts" in settings:  # opset < 10
        given = [settings["starts"], settings["ends"], settings.get("axes"), None]
    starts, ends, axes, steps = (None if part is None else list(part) for part in given[:4])
    if starts is None or ends is None:
        raise KeyError("starts")
    index = [slice(None)] * data.ndim
    for place, axis in enumerate(axes if axes is not None else range(len(starts))):
        start, end, step = int(starts[place]), int(ends[place]), int(steps[place]) if steps else 1
        # An end far below zero, with a negative step, means "to the first".
        stop = None if step < 0 and end < -data.shape[axis] else end
        index[int(axis)] = slice(start, stop, step)
    return np.asarray(data[tuple(index)])


def _squeeze(inputs: Sequence[Any], settings: Settings) -> Array:
    return np.asarray(np.squeeze(inputs[0], axis=axes_of(inputs, settings)))


def _unsqueeze(inputs: Sequence[Any], settings: Settings) -> Array:
    axes = axes_of(inputs, settings)
    if axes is None:
        raise KeyError("axes")
    return np.expand_dims(inputs[0], axes)


def _reshape(inputs: Sequence[Any], settings: Settings) -> Array:
    data = inputs[0]
    shape = settings["shape"] if "shape" in settings else inputs[1].tolist()
    if not flag_attribute(settings, "allowzero"):
        shape = [data.shape[at] if size == 0 else size for at, size in enumerate(shape)]
    return np.asarray(data.reshape(tuple(shape)))


def _range(inputs: Sequence[Any], _: Settings) -> Array:
    start, stop, step = (part.item() for part in inputs)
    if abs((stop - start) / step) > MOST_ELEMENTS:
        raise ValueError("range")
    return np.arange(start, stop, step)


def _fill(inputs: Sequence[Any], settings: Settings) -> Array:
    shape = tuple(int(size) for size in inputs[0])
    if np.prod(shape, dtype=float) > MOST_ELEMENTS:
        raise ValueError("fill")
    return np.full(shape, settings.get("value", 0.0))


def _expand(inputs: Sequence[Any], _: Settings) -> Array:
    data, shape = inputs
    wanted = np.broadcast_shapes(data.shape, tuple(int(size) for size in shape))
    if np.prod(wanted, dtype=float) > MOST_ELEMENTS:
        raise ValueError("expand")
    return np.broadcast_to(data, wanted)


def _where(inputs: Sequence[Any], _: Settings) -> Array:
    shape = np.broadcast_shapes(*(part.shape for part in inputs))
    if np.prod(shape, dtype=float) > MOST_ELEMENTS:
        raise ValueError("where")
    return np.asarray(np.where(*inputs))


def _reduced(how: Callable[..., Any]) -> _Rule:
    def rule(inputs: Sequence[Any], settings: Settings) -> Any:
        axes = axes_of(inputs, settings)
        if not axes and flag_attribute(settings, "noop_with_empty_axes"):
            return inputs[0]
        return how(inputs[0], axis=axes or None, keepdims=flag_attribute(settings, "keepdims", 1))

    return rule


def _of_two(how: Callable[[Any, Any], Any]) -> _Rule:
    return lambda inputs, _: how(inputs[0], inputs[1])


def _of_one(how: Callable[[Any], Any]) -> _Rule:
    return lambda inputs, _: how(inputs[0])


def _positive(how: Callable[[Any], Any]) -> _Rule:
    def rule(inputs: Sequence[Any], _: Settings) -> Any:
        if not np.all(inputs[0] > 0):
            raise ValueError("not positive")
        return how(inputs[0])

    return rule


_RULES: dict[str, _Rule] = {
    "Abs": _of_one(np.abs),
    "Add": _of_two(np.add),
    "And": _of_two(np.logical_and),
    "Cast": _cast,
    "Concat": lambda inputs, settings: np.concatenate(inputs, axis=settings["axis"]),
    "ConstantOfShape": _fill,
    "Div": _divide,
    "Equal": _of_two(np.equal),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _of_two(np.greater),
    "Identity": _of_one(np.asarray),
    "Less": _of_two(np.less),
    "Mul": _of_two(np.multiply),
    "Neg": _of_one(np.negative),
    "Not": _of_one(np.logical_not),
    "Or": _of_two(np.logical_or),
    "Pow": _power,
    "Range": _range,
    "Reciprocal": _positive(lambda x: 1 / x),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "Reshape": _reshape,
    "Slice": _slice,
    "Sqrt": _positive(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _of_two(np.subtract),
    "Transpose": lambda inputs, settings: np.transpose(inputs[0], settings.get("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
