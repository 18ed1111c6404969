"""Names, dtypes and shapes of tensors that need not exist, and the names of halves among them."""

from __future__ import annotations

from collections.abc import Iterable

from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import ByteRange, Entry, StateDict, StoredTensor, TensorInfo, contiguous_strides

Shape = tuple[int, ...]


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


def flax_halves(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The names of g and v by that of v, of layers of flax whose scope is the first part of a name."""
    scales = [name for name in names if name.startswith("WeightNorm_") and name.endswith("/kernel/scale")]
    kernels = {name: name.partition(".")[2].removesuffix("/kernel/scale") + ".kernel" for name in scales}
    return {kernel: (scale, kernel) for scale, kernel in kernels.items()}


def halves(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The names of g and v by the weight's: an enumeration of its own, by spelling alone."""
    every, found = set(names), {}
    for name in every:
        if name.endswith("_v") and f"{name[:-2]}_g" in every:
            found[name[:-2]] = (f"{name[:-2]}_g", name)
        elif name.endswith("weight") and f"{name}_g" in every and f"{name}_v" not in every:
            found[name] = (f"{name}_g", name)  # PhysicsNeMo's
        elif name.endswith(".original1"):
            owner, _, param = name.removesuffix(".original1").rpartition("parametrizations.")
            found[owner + param] = (f"{name[:-1]}0", name)
    return found
