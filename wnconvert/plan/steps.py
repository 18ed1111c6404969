"""The steps of a plan: each knows what it reads and the work that makes its tensor.

A new kind of step is a class here; a new kind of work, if it needs one, is a class in ``plan.layout``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from wnconvert.layers.schemes import Layer
from wnconvert.plan.layout import (
    CopyBytes,
    Directions,
    Evaluate,
    Filled,
    FoldBias,
    FoldLayer,
    Gather,
    Norms,
    Work,
)
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import Shape, StoredTensor, TensorInfo

__all__ = [
    "Bias",
    "Direction",
    "EvaluateConstant",
    "Fold",
    "Keep",
    "MadeTensor",
    "Magnitude",
    "Neutral",
    "Step",
]


@dataclass(frozen=True, slots=True)
class MadeTensor:
    """A tensor of an output: its name, dtype and shape, the work that makes it, and its source.

    The new tensor takes the device and kind of ``like``, a tensor of the source.
    """

    info: TensorInfo
    work: Work
    like: StoredTensor


class Step(Protocol):
    """One key of an output, and where its value comes from.

    ``kept`` is the key in the source whose value this step puts, or None if the value is computed. ``layer``
    is the layer that is computed, or None. ``dtype`` is the dtype of the result; None: that of the source.
    ``is_as_it_was`` says whether the value that is kept goes on as it is, in its dtype and shape.
    """

    @property
    def name(self) -> str:
        """The key in the output."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The keys in the source that the step reads."""

    @property
    def kept(self) -> str | None:
        """The key in the source whose value is kept."""

    @property
    def layer(self) -> Layer | None:
        """The layer that is computed."""

    @property
    def dtype(self) -> DType | None:
        """The dtype of the result."""

    @property
    def is_tensor(self) -> bool:
        """Whether the value is a tensor."""

    @property
    def is_as_it_was(self) -> bool:
        """Whether the value that is kept goes on as it is."""

    def made_of(self, tensors: Mapping[str, StoredTensor], path: str = "") -> MadeTensor:
        """The new tensor, made of the ``tensors`` of the state dict at ``path``.

        Two steps whose works are equal make the same bytes: what is tied in the source is made once.
        """


@dataclass(frozen=True, slots=True)
class Keep:
    """Put the value of ``kept`` under ``name``; a tensor is cast where ``dtype`` is given.

    ``shape`` is given where the same elements, in the same order, get another one: a g that was a vector.
    """

    name: str
    kept: str
    dtype: DType | None = None
    is_tensor: bool = True
    shape: Shape | None = None
    layer: ClassVar[None] = None

    @property
    def is_as_it_was(self) -> bool:
        """Whether it is neither cast nor given another shape."""
        return self.dtype is None and self.shape is None

    @property
    def sources(self) -> tuple[str, ...]:
        """The key that is kept."""
        return (self.kept,)

    def made_of(self, tensors: Mapping[str, StoredTensor], path: str = "") -> MadeTensor:  # noqa: ARG002
        """The bytes as they are, unless they must be gathered or cast."""
        stored = tensors[self.kept]
        if self.shape is not None:
            stored = stored.shaped(self.shape)
        dtype: DType = self.dtype or stored.info.dtype
        info = TensorInfo(self.name, dtype, stored.info.shape)
        if self.dtype is None and stored.is_contiguous:
            return MadeTensor(info, CopyBytes(stored.data), stored)
        return MadeTensor(info, Gather(_nameless(stored), dtype, self.kept), stored)


class _Computed:
    """A step whose value is computed."""

    __slots__ = ()
    kept: ClassVar[None] = None
    is_tensor: ClassVar[bool] = True
    is_as_it_was: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Fold(_Computed):
    """Put the weight that ``layer`` computes under its name, in ``dtype``."""

    layer: Layer
    dtype: DType

    @property
    def name(self) -> str:
        """The name of the weight."""
        return self.layer.name

    @property
    def sources(self) -> tuple[str, ...]:
        """The parts that it is computed of."""
        return tuple(part.name for part in self.layer.parts.values())

    def made_of(self, tensors: Mapping[str, StoredTensor], path: str = "") -> MadeTensor:
        """The weight, of the original's shape."""
        layer = self.layer
        parts = tuple((role, _nameless(tensors[part.name])) for role, part in layer.parts.items())
        work = FoldLayer(layer.rule, parts, self.dtype, _where(path, layer))
        info = TensorInfo(self.name, self.dtype, layer.original.shape)
        return MadeTensor(info, work, tensors[layer.original.name])


@dataclass(frozen=True, slots=True)
class Bias(_Computed):
    """Put the bias that ``layer`` has once a norm is folded into it under its name, in ``dtype``."""

    layer: Layer
    dtype: DType

    @property
    def name(self) -> str:
        """The name of the bias."""
        return self.layer.bias

    @property
    def sources(self) -> tuple[str, ...]:
        """The parts that it is computed of, and the norm's count of batches."""
        return (*(part.name for part in self.layer.parts.values()), *self._counts)

    @property
    def _counts(self) -> tuple[str, ...]:
        return tuple(info.name for info in self.layer.unread if info.name.startswith(f"{self.layer.norm}."))

    def made_of(self, tensors: Mapping[str, StoredTensor], path: str = "") -> MadeTensor:
        """The bias, an element for each output channel of the layer."""
        layer = self.layer
        parts = tuple((role, _nameless(tensors[part.name])) for role, part in layer.parts.items())
        where = f"{path}: {layer.bias}" if path else layer.bias
        info = TensorInfo(self.name, self.dtype, layer.bias_shape)
        batches = next((tensors[name] for name in self._counts), None)
        work = FoldBias(layer.rule, parts, self.dtype, where, batches)
        return MadeTensor(info, work, tensors[layer.original.name])


@dataclass(frozen=True, slots=True)
class Neutral(_Computed):
    """Put ``value`` into every element of a tensor of a norm that is kept and does nothing any more."""

    info: TensorInfo
    value: float
    layer: ClassVar[None] = None

    @property
    def name(self) -> str:
        """The name of the tensor."""
        return self.info.name

    @property
    def dtype(self) -> DType:
        """Its dtype."""
        return self.info.dtype

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensor in whose place it stands, of which nothing is read."""
        return (self.info.name,)

    def made_of(self, tensors: Mapping[str, StoredTensor], path: str = "") -> MadeTensor:  # noqa: ARG002
        """The number, everywhere."""
        info, old = self.info, tensors[self.info.name]
        return MadeTensor(info, Filled(self.value, info.numel, info.dtype, _nameless(old)), old)


class _Half(_Computed):
    """A step that computes a half of a layer from its plain weight."""

    __slots__ = ()
    layer: Layer

    @property
    def sources(self) -> tuple[str, ...]:
        """The plain weight."""
        return (self.layer.name,)


@dataclass(frozen=True, slots=True)
class Magnitude(_Half):
    """Put g = ‖w‖ under the name of g; w is the plain weight that ``layer`` is named after.

    Where a fold divides by a norm with an eps, g is that, so that the fold gives w.
    """

    layer: Layer

    @property
    def name(self) -> str:
        """The name of g."""
        return self.layer.g.name

    @property
    def dtype(self) -> DType:
        """The dtype of g."""
        return self.layer.g.dtype

    def made_of(self, tensors: Mapping[str, StoredTensor], path: str = "") -> MadeTensor:
        """g, a norm for each row of the weight."""
        layer, w = self.layer, tensors[self.layer.name]
        work = Norms(_nameless(w), layer.dim, layer.g.dtype, layer.guard, _where(path, layer))
        return MadeTensor(layer.g, work, w)


@dataclass(frozen=True, slots=True)
class Direction(_Half):
    """Put v = w under the name of v; w is the plain weight that ``layer`` is named after.

    If a row of w is zero, that row of v is a unit direction.
    """

    layer: Layer

    @property
    def name(self) -> str:
        """The name of v."""
        return self.layer.v.name

    @property
    def dtype(self) -> DType:
        """The dtype of v."""
        return self.layer.v.dtype

    def made_of(self, tensors: Mapping[str, StoredTensor], path: str = "") -> MadeTensor:
        """v, of the weight's shape."""
        layer, w = self.layer, tensors[self.layer.name]
        return MadeTensor(layer.v, Directions(_nameless(w), layer.dim, _where(path, layer)), w)


def _where(path: str, layer: Layer) -> str:
    return f"{path}: layer {layer.name}" if path else f"layer {layer.name}"


def _nameless(tensor: StoredTensor) -> StoredTensor:
    """The tensor without its name, so that tensors of the same bytes are equal."""
    info = TensorInfo("", tensor.info.dtype, tensor.info.shape)
    return StoredTensor(info, tensor.storage, tensor.offset, tensor.strides, tensor.location)


@dataclass(frozen=True, slots=True)
class EvaluateConstant:
    """Put a weight that an ONNX graph computes in a way that no rule knows, by evaluating it."""

    name: str
    shape: Shape
    work: Evaluate | FoldLayer
    kept: ClassVar[None] = None
    layer: ClassVar[None] = None
    is_tensor: ClassVar[bool] = True
    is_as_it_was: ClassVar[bool] = False

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensors that it is made of."""
        return tuple(tensor.info.name for _, tensor in self.work.parts)

    @property
    def dtype(self) -> DType:
        """The dtype of the weight."""
        return self.work.dtype

    def made_of(self, tensors: Mapping[str, StoredTensor], path: str = "") -> MadeTensor:  # noqa: ARG002
        """The weight, beside the first of the tensors that it is made of."""
        like = tensors[self.sources[0]]
        return MadeTensor(TensorInfo(self.name, self.dtype, self.shape), self.work, like)
