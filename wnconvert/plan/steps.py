"""A step of a plan, and the work that makes its tensor: where plans meet layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from wnconvert.layers.schemes import Layer
from wnconvert.plan.layout import CopyBytes, Directions, FoldLayer, Gather, Norms, Work
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import StoredTensor, TensorInfo

__all__ = ["Direction", "Fold", "Keep", "MadeTensor", "Magnitude", "Step", "work_of"]


@dataclass(frozen=True, slots=True)
class Keep:
    """Put the value of ``source`` under ``name``; a tensor is cast where ``dtype`` differs from its own."""

    name: str
    source: str
    dtype: DType | None = None
    is_tensor: bool = True


@dataclass(frozen=True, slots=True)
class Fold:
    """Put w = g·v/‖v‖ of ``layer`` under its name, in ``dtype``."""

    layer: Layer
    dtype: DType

    @property
    def name(self) -> str:
        """The name of the weight."""
        return self.layer.name


@dataclass(frozen=True, slots=True)
class Magnitude:
    """Put g = ‖w‖ of the plain weight that ``layer`` is named by under the name of its g."""

    layer: Layer

    @property
    def name(self) -> str:
        """The name of g."""
        return self.layer.g.name


@dataclass(frozen=True, slots=True)
class Direction:
    """Put v = w of the plain weight that ``layer`` is named by under the name of its v.

    Where a row of w is zero, v is a direction all the same.
    """

    layer: Layer

    @property
    def name(self) -> str:
        """The name of v."""
        return self.layer.v.name


Step: TypeAlias = Keep | Fold | Magnitude | Direction


@dataclass(frozen=True, slots=True)
class MadeTensor:
    """A tensor of an output: its name, dtype and shape, the work that makes it, and its source.

    ``like`` is the source's tensor whose device and kind it takes.
    """

    info: TensorInfo
    work: Work
    like: StoredTensor


def work_of(step: Step, tensors: Mapping[str, StoredTensor], path: str = "") -> MadeTensor:
    """What a step makes of the ``tensors`` of a state dict at ``path``.

    Two steps whose works are equal make the same bytes, so what is tied in the source is made once.
    """
    if isinstance(step, Keep):
        return _kept(step, tensors[step.source])
    layer = step.layer
    where = f"{path}: layer {layer.name}" if path else f"layer {layer.name}"
    if isinstance(step, Fold):
        g, v = tensors[layer.g.name], tensors[layer.v.name]
        work: Work = FoldLayer(_nameless(g), _nameless(v), layer.dim, step.dtype, where)
        return MadeTensor(TensorInfo(step.name, step.dtype, layer.v.shape), work, v)
    w = tensors[layer.name]
    if isinstance(step, Magnitude):
        return MadeTensor(layer.g, Norms(_nameless(w), layer.dim, layer.g.dtype, where), w)
    return MadeTensor(layer.v, Directions(_nameless(w), layer.dim, where), w)


def _kept(step: Keep, stored: StoredTensor) -> MadeTensor:
    dtype: DType = step.dtype or stored.info.dtype
    info = TensorInfo(step.name, dtype, stored.info.shape)
    if step.dtype is None and stored.is_contiguous:
        return MadeTensor(info, CopyBytes(stored.data), stored)
    return MadeTensor(info, Gather(_nameless(stored), dtype, step.source), stored)


def _nameless(tensor: StoredTensor) -> StoredTensor:
    """A tensor that equals another where their bytes do."""
    return replace(tensor, info=replace(tensor.info, name=""))
