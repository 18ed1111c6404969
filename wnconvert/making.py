"""From a step of a plan to the work that makes its tensor: where plans meet layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from wnconvert.layout import CopyBytes, Directions, FoldLayer, Gather, Norms, Work
from wnconvert.plan import Fold, Keep, Magnitude, Step
from wnconvert.tensors import DType, StoredTensor, TensorInfo

__all__ = ["Made", "made"]


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor of an output: its name, dtype and shape, the work that makes it, and its source.

    ``like`` is the source's tensor whose device and kind it takes.
    """

    info: TensorInfo
    work: Work
    like: StoredTensor


def made(step: Step, tensors: Mapping[str, StoredTensor], path: str = "") -> Made:
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
        return Made(TensorInfo(step.name, step.dtype, layer.v.shape), work, v)
    w = tensors[layer.name]
    if isinstance(step, Magnitude):
        return Made(layer.g, Norms(_nameless(w), layer.dim, layer.g.dtype, where), w)
    return Made(layer.v, Directions(_nameless(w), layer.dim, where), w)


def _kept(step: Keep, stored: StoredTensor) -> Made:
    dtype: DType = step.dtype or stored.info.dtype
    info = TensorInfo(step.name, dtype, stored.info.shape)
    if step.dtype is None and stored.is_contiguous:
        return Made(info, CopyBytes(stored.data), stored)
    return Made(info, Gather(_nameless(stored), dtype, step.source), stored)


def _nameless(tensor: StoredTensor) -> StoredTensor:
    """A tensor that equals another where their bytes do."""
    return replace(tensor, info=replace(tensor.info, name=""))
