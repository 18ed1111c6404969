"""Two ONNX models as functions of the same inputs, with the same names and dtypes of outputs.

Names, dtypes of floats and dynamic sizes may differ between both sides; what does is told in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from wnconvert.errors import ArgumentError, InputError, VerifyError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, printable
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.onnx.runtime.ports import ValueInfo
from wnconvert.onnx.runtime.process import Opened
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.verbs.export.ports import ports_of
from wnconvert.verbs.models.proof.causes.steady import NumericFunction
from wnconvert.verbs.models.proof.signatures import Signature

__all__ = ["Fed", "fed"]


@dataclass(frozen=True, slots=True)
class Fed:
    """Two models as functions; ``notes`` say which inputs and outputs differ."""

    a: NumericFunction
    b: NumericFunction
    notes: tuple[str, ...]


def fed(a: Opened, b: Opened, signature: Signature) -> Fed:
    """Feed two models alike: ``signature`` names the inputs of A, and those of B where they have other names.

    Floats are rounded to the coarser of both dtypes, so both sides are fed the same numbers, and compared in
    the finer one. Outputs are paired by name, or in their order where as many have other names. Raises
    ``ArgumentError`` for an input of B that is none of A's.
    """
    own = {port.name: port for port in a.inputs}
    likened = tuple(_likened(port, own) for port in b.inputs)
    ports = ports_of(replace(b, inputs=likened), signature)
    theirs = {port.name: port for port in b.inputs}
    inputs = [(own[name], theirs[its]) for name, its in ports.names.items() if name in own]
    outputs = _paired(a.outputs, b.outputs)
    finer = {left.name: _finer(left, right) for left, right in outputs}
    names = {right.name: left.name for left, right in outputs}
    coarse = {left.name: _coarser(left, right) for left, right in inputs}
    known = tuple(port.name for port in a.outputs)

    def run_a(feeds: Mapping[str, Array]) -> dict[str, Array]:
        mine = {name: _through(feeds[name], coarse.get(name)) for name in own if name in feeds}
        try:
            found = a.run(mine)
        except VerifyError as error:  # it is the reference: nothing is proven by it
            raise InputError(error.heading, where=error.where, fix=error.fix) from error
        return {name: _as(array, finer.get(name)) for name, array in found.items()}

    def run_b(feeds: Mapping[str, Array]) -> dict[str, Array]:
        its = {
            other: _as(feeds[name], theirs[other].dtype)
            for name, other in ports.names.items()
            if name in feeds
        }
        try:
            found = b.run(its)
        except ArgumentError as error:  # it has other sizes than A
            raise VerifyError(f"of B, {error.heading}", fix=error.fix) from error
        made = {
            names.get(name, name): _as(array, finer.get(names.get(name, ""))) for name, array in found.items()
        }
        order = sorted(made, key=lambda name: known.index(name) if name in known else len(known))
        return {name: made[name] for name in order}

    notes = (*ports.notes, *_apart("input", inputs), *_other_names(outputs), *_apart("output", outputs))
    return Fed(run_a, run_b, notes)


def _likened(port: ValueInfo, own: Mapping[str, ValueInfo]) -> ValueInfo:
    """An input of B with the dtype that A's has, where both are floats: it is fed with those, rounded."""
    floats = [each for each in own.values() if each.dtype is not None and each.dtype.foldable]
    same = own.get(port.name) or (floats[0] if floats else port)
    both = [each for each in (port, same) if each.dtype is not None and each.dtype.foldable]
    return replace(port, dtype=same.dtype) if len(both) == 2 else port


def _paired(a: Sequence[ValueInfo], b: Sequence[ValueInfo]) -> list[tuple[ValueInfo, ValueInfo]]:
    """Outputs of one name, and, where as many are left on either side, the others in their order."""
    of_b = {port.name: port for port in b}
    pairs = [(port, of_b[port.name]) for port in a if port.name in of_b]
    left_a = [port for port in a if port.name not in of_b]
    left_b = [port for port in b if port.name not in {each.name for each in a}]
    return [*pairs, *(zip(left_a, left_b, strict=True) if len(left_a) == len(left_b) else ())]


def _digits(dtype: DType | None) -> int:
    return FLOAT_FORMATS[dtype.name].digits if dtype is not None and dtype.name in FLOAT_FORMATS else 0


def _coarser(a: ValueInfo, b: ValueInfo) -> DType | None:
    """The dtype with fewer digits of two floats; None of others, and where they are one."""
    if a.dtype == b.dtype or not _digits(a.dtype) or not _digits(b.dtype):
        return None
    return min(a.dtype, b.dtype, key=_digits)


def _finer(a: ValueInfo, b: ValueInfo) -> DType | None:
    """A dtype that holds the numbers of two floats; None of others, and where they are one."""
    if _coarser(a, b) is None:
        return None
    return DTYPES["float64" if "float64" in (str(a.dtype), str(b.dtype)) else "float32"]


def _as(array: Array, dtype: DType | None) -> Array:
    return array if dtype is None else array.astype(dtype.numpy(), copy=False)


def _through(array: Array, dtype: DType | None) -> Array:
    """An array rounded to a coarser dtype, in its own."""
    return array if dtype is None else array.astype(dtype.numpy()).astype(array.dtype)


# -- in words


def _apart(noun: str, pairs: Sequence[tuple[ValueInfo, ValueInfo]]) -> Iterator[str]:
    """Which dtypes and sizes differ; a dynamic size has no name here."""
    for a, b in pairs:
        if (a.dtype, _sizes(a)) != (b.dtype, _sizes(b)):
            yield f"{noun} {printable(a.name)} is {_text(a)} in A and {_text(b)} in B"


def _sizes(port: ValueInfo) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in port.shape]


def _text(port: ValueInfo) -> str:
    return str(replace(port, shape=tuple(_sizes(port))))


def _other_names(outputs: Sequence[tuple[ValueInfo, ValueInfo]]) -> Iterator[str]:
    other = [(a.name, b.name) for a, b in outputs if a.name != b.name]
    if other:
        said = listed(f"{printable(own)} is {printable(its)}" for own, its in other)
        yield f"B has other names of outputs, taken in their order: {said}"
