"""The inputs and outputs of an ONNX model, and which arrays fit them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from wnconvert.errors import ArgumentError, InputError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, printable
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES, DType

__all__ = ["ValueInfo", "check_feeds", "check_numbers", "torch_name"]


#: The torch names of dtypes by those of onnxruntime, where these differ.
_NAMES = {
    "float": "float32",
    "double": "float64",
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
}


def torch_name(name: str) -> str:
    """The torch name of a dtype by that of onnxruntime.

    >>> torch_name("double"), torch_name("int64")
    ('float64', 'int64')
    """
    return _NAMES.get(name, name)


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """An input or output of a model: a number, a name or None for each size.

    ``dtype`` is None if it is not a tensor of numbers; ``kind`` is its type in any case. ``shape`` is ()
    also if the model does not give a shape.
    """

    name: str
    kind: str
    dtype: DType | None
    shape: tuple[int | str | None, ...]

    @classmethod
    def of(cls, name: str, kind: str, shape: Sequence[int | str | None]) -> ValueInfo:
        """A port as onnxruntime describes it.

        >>> str(ValueInfo.of("x", "tensor(float)", [1, "T"]))
        'float32[1,T]'
        """
        found = re.fullmatch(r"tensor\((\w+)\)", kind)
        known = torch_name(found[1]) if found else ""
        return cls(name, kind, DTYPES.get(known), tuple(shape))

    def __str__(self) -> str:
        """The dtype and shape, as a text for ``--input``."""
        sizes = ",".join("?" if size is None else printable(str(size)) for size in self.shape)
        return f"{self.dtype or self.kind}[{sizes}]"


def check_feeds(inputs: Sequence[ValueInfo], feeds: Mapping[str, Array], spelled: Mapping[str, str]) -> None:
    """Raise ``ArgumentError`` if the names, dtypes or shapes of arrays do not fit the inputs of a model.

    ``spelled`` is how the user writes names of inputs, where that differs.
    """
    names = [port.name for port in inputs]
    have = f"its inputs are {listed(map(printable, names))}" if names else "it has no inputs"
    for name in feeds:
        if name not in names:
            raise ArgumentError(f"the model has no input {printable(name)}", fix=have)
    for port in inputs:
        name = printable(port.name)
        if port.name not in feeds:
            raise ArgumentError(f"the input {name} is missing", fix=have)
        array = feeds[port.name]
        text = f"{printable(spelled.get(port.name, port.name))}={port}"
        if port.dtype is None or array.dtype.name != port.dtype.name:
            what = f"input {name} is {port.dtype or port.kind}, but {array.dtype} is given"
            raise ArgumentError(what, fix=f"give {text}")
        fits = len(array.shape) == len(port.shape) and all(
            size == want or not isinstance(want, int)
            for size, want in zip(array.shape, port.shape, strict=True)
        )
        if port.shape and not fits:
            shape = ",".join(map(str, array.shape))
            what = f"input {name} is {port}, but the shape [{shape}] is given"
            raise ArgumentError(what, fix=f"give sizes that it takes: {text}")


def check_numbers(outputs: Sequence[ValueInfo]) -> None:
    """Raise ``InputError`` if an output is not a tensor of numbers that can be compared."""
    for port in outputs:
        if port.dtype is None or port.dtype.is_float8:
            raise InputError(
                f"output {printable(port.name)} is {port.kind}, which cannot be compared",
                fix="give a model whose outputs are tensors of numbers",
            )
