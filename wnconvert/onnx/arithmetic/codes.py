"""Operators on codes: how their codes are quantized, and values that are rounded to codes on their way."""

from __future__ import annotations

from collections.abc import Sequence

from wnconvert.onnx.arithmetic.known import KnownValue
from wnconvert.onnx.arithmetic.staged import Roundings
from wnconvert.onnx.file.model import Constant, Node
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.tensors.tree import Shape
from wnconvert.tensors.views.dequantized import CODED
from wnconvert.tensors.views.quantization import Quantization

__all__ = ["quantization_of", "staged_value", "start_of"]


#: Attributes that change nothing for whole numbers, and those that ask for another arithmetic if not 0.
_PLAIN = {"axis", "block_size", "saturate"}
_OF_DTYPES = {"output_dtype", "precision"}


def quantization_of(
    node: Node, beside: Sequence[Constant], shape: Shape, codes: DType | None
) -> Quantization | None:
    """How codes of a shape are quantized, by the stored scale and zero of a node; None if it is not known.

    Without ``codes``, their dtype, it is that of the zero.
    """
    tensors = [constant.elements for constant in beside]
    scale, zero = tensors[0], tensors[1] if len(tensors) > 1 else None
    dtype = codes or (zero.info.dtype if zero is not None else DTYPES["uint8"])
    if scale is None or None in tensors or not scale.info.dtype.foldable or dtype.name not in CODED:
        return None
    if not _is_plain(node) or (zero is not None and zero.info.dtype != dtype):
        return None
    axis, block = _number(node, "axis", 1), _number(node, "block_size", 0)
    if scale.info.numel == 1:
        zero = zero.shaped(scale.info.shape) if zero is not None and zero.info.numel == 1 else zero
        how = Quantization(dtype, scale, zero)
    elif -len(shape) <= axis < len(shape):
        how = Quantization(dtype, scale, zero, axis % len(shape), block)
    else:
        return None
    return how if how.fits(shape) else None


def staged_value(staged: Roundings | None) -> KnownValue | None:
    """A value that is rounded on its way."""
    if staged is None:
        return None
    return KnownValue(staged.of.shape, staged.steps[-1].dtype, staged=staged)


def start_of(value: KnownValue | None) -> Roundings | None:
    """A value as one that may be rounded from now on."""
    if value is None or value.staged is not None:
        return value.staged if value is not None else None
    if value.monomial is None or value.dtype != DTYPES["float32"] or value.coarse:
        return None
    return Roundings(value.monomial, value.dtype)


def _number(node: Node, name: str, default: int) -> int:
    """An attribute that is a whole number."""
    value = node.attributes[name].value if name in node.attributes else default
    return value if isinstance(value, int) else default


def _is_plain(node: Node) -> bool:
    """Whether no attribute asks for another arithmetic, or is given by the call of a function."""
    return all(
        not attribute.reference and (name in _PLAIN or (name in _OF_DTYPES and not attribute.value))
        for name, attribute in node.attributes.items()
    )
