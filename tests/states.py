"""What the tests of names, plans and files share: infos, float64 folds, and files read by others than us."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from wnconvert.tensors import (
    ByteRange,
    Entry,
    StateDict,
    StoredTensor,
    TensorInfo,
    contiguous_strides,
    dtype_named,
)

Shape = tuple[int, ...]
State = dict[str, Tensor]


def info(name: str, shape: Shape, dtype: str = "float32") -> TensorInfo:
    return TensorInfo(name, dtype_named(dtype), shape)


def infos(*tensors: tuple[str, Shape] | tuple[str, Shape, str]) -> list[TensorInfo]:
    return [info(*tensor) for tensor in tensors]


def entries(*tensors: TensorInfo) -> tuple[Entry, ...]:
    """Keys of a state dict whose tensors lie end to end in one file."""
    made, at = [], 0
    for each in tensors:
        stored = StoredTensor(each, ByteRange(at, each.nbytes), 0, contiguous_strides(each.shape))
        made.append(Entry(each.name, stored))
        at += each.nbytes
    return tuple(made)


def state_at(path: str, *tensors: tuple[str, Shape] | tuple[str, Shape, str]) -> StateDict:
    return StateDict(path, entries(*infos(*tensors)))


def pair(name: str, shape: Shape = (8, 4, 3), dtype: str = "float32") -> list[tuple[str, Shape, str]]:
    """The two halves of a legacy layer, dim 0."""
    return [(f"{name}_g", (shape[0],) + (1,) * (len(shape) - 1), dtype), (f"{name}_v", shape, dtype)]


def new_pair(name: str, shape: Shape = (8, 4, 3), dtype: str = "float32") -> list[tuple[str, Shape, str]]:
    """The two halves of a parametrized layer, dim 0."""
    owner, _, param = name.rpartition(".")
    at = f"{owner}.parametrizations.{param}." if owner else f"parametrizations.{param}."
    return [
        (f"{at}original0", (shape[0],) + (1,) * (len(shape) - 1), dtype),
        (f"{at}original1", shape, dtype),
    ]


def load(path: Path) -> Any:
    """A file as torch, or the safetensors library, reads it."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        return safetensors.torch.load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def halves(state: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The names of g and v by the weight's: an enumeration of its own, by spelling alone."""
    found = {}
    for name in state:
        if name.endswith("_v") and f"{name[:-2]}_g" in state:
            found[name[:-2]] = (f"{name[:-2]}_g", name)
        elif name.endswith(".original1") and name.startswith(("parametrizations.", "")):
            owner, _, param = name.removesuffix(".original1").rpartition("parametrizations.")
            found[owner + param] = (f"{name[:-1]}0", name)
    return found


def folded64(g: Tensor, v: Tensor) -> Tensor:
    """g·v/‖v‖ in float64, written out; the axes that are summed over are those where g has size 1."""
    wide_g, wide_v = g.double(), v.double()
    if g.numel() == 1:
        return wide_g.reshape(()) * wide_v / wide_v.square().sum().sqrt()
    if g.dim() == 1 and v.dim() > 1:
        wide_g = wide_g.reshape(-1, *[1] * (v.dim() - 1))  # by hand: of ours, only the first axis fits
    axes = [axis for axis in range(v.dim()) if wide_g.shape[axis] == 1]
    norm = wide_v.square().sum(dim=axes, keepdim=True).sqrt() if axes else wide_v.abs()
    return wide_g * wide_v / norm


def ulps(found: Tensor, exact: Tensor) -> float:
    """How many units in the last place of its own dtype a tensor is at most off a float64 one."""
    assert found.shape == exact.shape
    assert found.numel() > 0, "a comparison of nothing is a failure"
    assert torch.isfinite(found).all()
    bits, least = {
        torch.float64: (53, -1074),
        torch.float32: (24, -149),
        torch.float16: (11, -24),
        torch.bfloat16: (8, -133),
    }[found.dtype]
    exponent = np.frexp(exact.numpy())[1]
    unit = np.ldexp(1.0, np.maximum(exponent - bits, least))
    return float(np.max(np.abs(found.double().numpy() - exact.numpy()) / unit))


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, dtype and shape included."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    bits = [side.detach().contiguous().reshape(-1).view(torch.uint8) for side in (left, right)]
    return torch.equal(*bits)
