"""Whole numbers that stand for others, and tensors whose elements a view makes: as data, without numpy."""

from __future__ import annotations

import math
from dataclasses import field
from typing import TypeAlias

from wnconvert.frozen import dataclass
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import Shape, StoredTensor
from wnconvert.tensors.views.assembled import FileView

__all__ = ["Dequantize", "Elementwise", "Quantization", "Quantize", "Times", "ViewedTensor"]


@dataclass(frozen=True, slots=True)
class Quantization:
    """How codes of a ``dtype`` are numbers: (code − zero)·scale.

    There is one scale for all (``axis`` is None), one for each place on an axis, or, with a ``block``, one
    for so many neighbours on it; then ``scale`` has as many axes as the codes. ``zero`` has the shape of
    ``scale``; without one it is 0. This is what ONNX's QuantizeLinear and DequantizeLinear compute.
    """

    dtype: DType
    scale: StoredTensor
    zero: StoredTensor | None = None
    axis: int | None = None
    block: int = 0

    def scale_shape(self, shape: Shape) -> Shape:
        """The shape that the scale of codes of this shape has, but that of one for all, which is free.

        >>> from wnconvert.tensors.dtypes import dtype_named
        >>> from wnconvert.tensors.tree import ByteRange, TensorInfo
        >>> scale = StoredTensor(TensorInfo("s", dtype_named("float32"), (8, 2)), ByteRange(0, 64), 0, (2, 1))
        >>> Quantization(dtype_named("int8"), scale, axis=1, block=16).scale_shape((8, 24))
        (8, 2)
        """
        if self.axis is None:
            return ()
        if not self.block:
            return (shape[self.axis],)
        blocks = -(-shape[self.axis] // self.block)
        return (*shape[: self.axis], blocks, *shape[self.axis + 1 :])

    def fits(self, shape: Shape) -> bool:
        """Whether its scale and zero are there for codes of this shape."""
        given = self.scale.info.shape
        if self.zero is not None and self.zero.info.shape != given:
            return False
        return math.prod(given) == 1 if self.axis is None else given == self.scale_shape(shape)

    def __str__(self) -> str:
        """In words, for people.

        >>> from wnconvert.tensors.dtypes import dtype_named
        >>> from wnconvert.tensors.tree import ByteRange, TensorInfo
        >>> scale = StoredTensor(TensorInfo("s", dtype_named("float32"), (8,)), ByteRange(0, 32), 0, (1,))
        >>> print(Quantization(dtype_named("int8"), scale, axis=0))
        int8, a scale for each place on axis 0
        """
        if self.axis is None:
            return f"{self.dtype}, one scale"
        each = f"each {self.block} places" if self.block else "each place"
        return f"{self.dtype}, a scale for {each} on axis {self.axis}"


@dataclass(frozen=True, slots=True)
class ViewedTensor(StoredTensor):
    """A tensor whose storage lies in no file: ``made`` gives its bytes.

    Its storage names the shard of what it is made of.
    """

    made: FileView = field(kw_only=True)

    @property
    def view(self) -> tuple[object, ...]:
        """Equal for two tensors exactly where they are the same elements of the same storage."""
        return (self.made, self.info.dtype, self.offset, self.info.shape, self.strides)


@dataclass(frozen=True, slots=True)
class Quantize:
    """Codes for numbers: ONNX's QuantizeLinear, which divides in the dtype of the scale."""

    how: Quantization

    @property
    def reads(self) -> tuple[StoredTensor, ...]:
        """The tensors that are read for it."""
        return (self.how.scale,) if self.how.zero is None else (self.how.scale, self.how.zero)

    @property
    def dtype(self) -> DType:
        """The dtype of what it makes."""
        return self.how.dtype


@dataclass(frozen=True, slots=True)
class Dequantize:
    """Numbers for codes: ONNX's DequantizeLinear, rounded to the dtype of the scale."""

    how: Quantization

    @property
    def reads(self) -> tuple[StoredTensor, ...]:
        """The tensors that are read for it."""
        return (self.how.scale,) if self.how.zero is None else (self.how.scale, self.how.zero)

    @property
    def dtype(self) -> DType:
        """The dtype of what it makes."""
        return self.how.scale.info.dtype


@dataclass(frozen=True, slots=True)
class Times:
    """Each element times that of ``factor`` for its place on ``axis`` (None: its only one), rounded."""

    factor: StoredTensor
    axis: int | None
    dtype: DType

    @property
    def reads(self) -> tuple[StoredTensor, ...]:
        """The tensors that are read for it."""
        return (self.factor,)


#: What is done with each element alone.
Elementwise: TypeAlias = Quantize | Dequantize | Times
