"""Tensors that may be halves of a layer or weights: what they are, and why one of them cannot be."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from wnconvert.frozen import dataclass
from wnconvert.layers.schemes import Layer, spelled
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.tensors.memory import array_of
from wnconvert.tensors.tree import TensorInfo

__all__ = ["Reason", "info_of", "is_wrapper", "layer_of", "reason_against_tensor"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something cannot be converted; and what helps against it, if not to exclude it."""

    text: str
    fix: str = ""


def reason_against_tensor(name: str, value: Tensor) -> Reason | None:
    """Why a tensor can be neither a half of a layer nor a weight; None where it can."""
    if is_lazy(value):
        return Reason(f"{name} is not initialized yet: run the module once")
    if is_wrapper(value):
        return Reason(f"{name} is a {type(value).__name__}, which is not a plain tensor")
    info = info_of(name, value)
    if info is None or not info.dtype.foldable:
        what = str(value.dtype).removeprefix("torch.")
        how = "" if value.layout == torch.strided else f" {str(value.layout).removeprefix('torch.')}"
        return Reason(f"{name} is{how} {what}, which cannot be weight-normalized")
    if not value.numel():
        return Reason(f"{name} is empty: one rank's share of a sharded module", _GATHER)
    return None if value.is_meta else _reason_against_reading(name, value)


_GATHER = "gather it first (deepspeed.zero.GatheredParameters, FSDP.summon_full_params)"


def _reason_against_reading(name: str, value: Tensor) -> Reason | None:
    """Why the numbers of a tensor cannot be read: its class, a transform of ``torch.func``."""
    try:
        array_of(value.detach()[:0] if value.dim() else value)
    except Exception as error:  # noqa: BLE001 - whatever such a class raises
        return Reason(f"{name} is a {type(value).__name__} whose numbers cannot be read: {error}")
    return None


def is_wrapper(value: Tensor) -> bool:
    """Whether a tensor has no numbers of its own: a DTensor, a FakeTensor and the like."""
    return type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__


def info_of(name: str, value: Tensor) -> TensorInfo | None:
    """A tensor's name, dtype and shape; None if it is not a plain tensor."""
    if is_lazy(value) or value.layout != torch.strided:
        return None
    dtype = DTYPES.get(str(value.dtype).removeprefix("torch."))
    return None if dtype is None else TensorInfo(name, dtype, tuple(value.shape))


def layer_of(name: str, form: str, dim: int | None, g: Tensor, v: Tensor) -> Layer:
    """The layer with this name of its weight, form and halves."""
    keys = spelled(form, name) or ("", "")
    g_info, v_info = (info_of(key, value) for key, value in zip(keys, (g, v), strict=True))
    assert g_info is not None  # noqa: S101 - what has none was refused
    assert v_info is not None  # noqa: S101
    return Layer.of_pair(name, form, dim, g_info, v_info)
