"""torch tensors and numpy arrays in memory, as one kind of value and as a tree like that of a file.

torch is imported only for values that are torch's, so that it is loaded already. CPU tensors are viewed as
numpy arrays without a copy; others come to the CPU, and new tensors go back to their devices.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from wnconvert.errors import ArgumentError, LayerError
from wnconvert.messages import fitting_function, kind_in_words
from wnconvert.tensors.blocks import Array, Block
from wnconvert.tensors.distributed import distributed_like, local_of, obstacle, whole_of
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.tensors.tree import (
    ByteRange,
    Dim,
    Entry,
    Shape,
    StateDict,
    StoredTensor,
    TensorInfo,
    Tree,
)

__all__ = [
    "InMemory",
    "array_of",
    "is_torch",
    "made_like",
    "modules_named_in",
    "refuse_other_than_state_dict",
    "shaped_like",
    "stored_tensor",
    "tree_of",
    "tree_of_values",
    "view_of",
]


class InMemory:
    """The elements of tensors that are values of a mapping, read as those of a file are."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def reader(self, tensor: StoredTensor) -> Callable[[Block], Array]:
        """A function from a block of a tensor to its elements."""
        flat = self.whole(tensor).reshape(-1)
        return lambda block: flat[block.start : block.stop].reshape(block.shape)

    def whole(self, tensor: StoredTensor) -> Array:
        """All elements of a tensor."""
        try:
            return array_of(self.values[tensor.info.name])
        except LayerError as error:
            error.where = error.where or tensor.info.name
            raise

    def is_readable(self, tensor: StoredTensor) -> bool:
        """Whether numpy can hold the elements: not those of float8, nor on the meta device."""
        value, dtype = self.values[tensor.info.name], tensor.info.dtype
        if not is_torch(value):
            return True
        numpys = dtype.foldable or dtype.name in ("complex64", "complex128", "int32", "int64")
        return numpys and value.device.type != "meta"


def is_torch(value: object) -> bool:
    """Whether a value is a torch tensor; without torch, none is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def stored_tensor(name: str, value: Any) -> StoredTensor | None:
    """A value's name, dtype and shape, or None if it is not a plain tensor (a sparse one is not).

    Its storage is its place in memory, so that tied tensors are known.
    """
    if is_torch(value) and str(value.layout) == "torch.strided":
        dtype = DTYPES.get(str(value.dtype).removeprefix("torch."))
        start = 0 if value.device.type == "meta" else _start(value)
        strides = value.stride()
    elif isinstance(value, (np.ndarray, np.generic)):
        value = np.asarray(value)
        dtype, start = DTYPES.get(value.dtype.name), value.ctypes.data
        strides = tuple(step // value.itemsize for step in value.strides)
    else:
        return None
    if dtype is None:
        return None
    info = TensorInfo(name, dtype, tuple(value.shape))
    return StoredTensor(info, ByteRange(start, info.nbytes), 0, strides)


def _start(value: Any) -> int:
    """Where a torch tensor's elements start; for those that cannot be had, a number of its own."""
    return id(value) if obstacle(value) else int(local_of(value).data_ptr())


def view_of(value: Any) -> object:
    """A key that is equal for two values of the same elements in memory; others equal only themselves."""
    if is_torch(value) and str(value.layout) == "torch.strided" and value.device.type != "meta":
        return (
            str(value.device),
            _start(value),
            tuple(value.shape),
            value.stride(),
            str(value.dtype),
            value.is_neg(),
            value.is_conj(),
            type(value),
        )
    if isinstance(value, np.ndarray):
        return ("numpy", value.ctypes.data, value.shape, value.strides, value.dtype.str)
    return id(value)


def array_of(value: Any) -> Array:
    """A tensor's elements as a numpy array; no copy of a CPU tensor."""
    if not is_torch(value):
        return np.asarray(value)
    import torch

    if value.device.type == "meta":
        raise LayerError(
            "a tensor on the meta device has no numbers", fix="load the checkpoint with its data"
        )
    value = whole_of(value).detach().cpu().resolve_conj().resolve_neg()
    if value.dtype == torch.bfloat16:
        bits: Array = value.view(torch.int16).numpy()
        return bits.view(DTYPES["bfloat16"].numpy())
    plain: Array = value.numpy()
    return plain


def made_like(value: Any, array: Array) -> Any:
    """New elements as a value like ``value``: on its device, a Parameter if it is one."""
    if not is_torch(value):
        return array
    import torch

    if array.dtype == DTYPES["bfloat16"].numpy():
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    tensor = distributed_like(value, tensor.to(value.device))
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(tensor, requires_grad=value.requires_grad)
    return tensor


def shaped_like(value: Any, shape: Shape) -> Any:
    """The same elements in another shape: a view, and a Parameter if the value is one."""
    if not is_torch(value):
        return np.asarray(value).reshape(shape)
    import torch

    view = value.detach().reshape(shape)
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(view, requires_grad=value.requires_grad)
    return view


def tree_of(state_dict: Any) -> tuple[Tree, dict[str, Any]]:
    """The tree of a state dict, and its values by name."""
    refuse_other_than_state_dict(state_dict)
    values = {name: value for name, value in state_dict.items() if isinstance(name, str)}
    tree = tree_of_values(values, modules=modules_named_in(state_dict))
    if not tree.state_dict("").tensors:
        _refuse_nested(state_dict)
    return tree, values


def modules_named_in(state_dict: object) -> Iterable[str]:
    """The modules that a state dict of torch's names in its ``_metadata``."""
    metadata = getattr(state_dict, "_metadata", None)
    return [name for name in metadata if isinstance(name, str)] if isinstance(metadata, Mapping) else ()


def refuse_other_than_state_dict(value: object) -> None:
    """Raise ``ArgumentError`` for what is not a mapping of names to tensors; an empty one is."""
    if not isinstance(value, Mapping):
        fix = f"pass a mapping of names to tensors; {fitting_function(value)}".rstrip("; ")
        raise ArgumentError(f"{kind_in_words(value)} is not a state dict", fix=fix)
    if value and not any(isinstance(name, str) for name in value):
        kinds = ", ".join(sorted({type(name).__name__ for name in value}))
        raise ArgumentError(
            f"{kind_in_words(value)} with keys of type {kinds} is not a state dict",
            fix="pass a mapping of names to tensors",
        )


def tree_of_values(
    values: Mapping[str, Any],
    *,
    stored: Callable[[str, Any], StoredTensor | None] = stored_tensor,
    dims: Mapping[str, Dim] | None = None,
    buffers: Iterable[str] = (),
    modules: Iterable[str] = (),
) -> Tree:
    """The tree whose one state dict holds these values; ``stored`` gives the tensor that a value is, if any.

    ``dims`` holds the dims of weights that are known beside their shapes, ``buffers`` names of buffers.
    ``modules`` are the modules that are named beside the values, as in torch's ``_metadata``.
    """
    entries = tuple(
        Entry(name, tensor := stored(name, value), is_opaque=tensor is None and is_torch(value))
        for name, value in values.items()
    )
    state = StateDict("", entries, dims or {}, buffers=frozenset(buffers), modules=tuple(modules))
    return Tree((state,))


def _refuse_nested(state_dict: Mapping[str, Any]) -> None:
    """Raise ``ArgumentError`` for a whole checkpoint: without tensors, silence would look like success."""
    for name, value in state_dict.items():
        if isinstance(value, Mapping) and any(stored_tensor("", item) for item in value.values()):
            raise ArgumentError(
                f"there is no tensor in it, but a state dict at {name!r}", fix=f"pass checkpoint[{name!r}]"
            )
    if state_dict and not any(map(is_torch, state_dict.values())):  # nor one that is sparse, say
        kinds = ", ".join(sorted({type(value).__name__ for value in state_dict.values()}))
        raise ArgumentError(
            f"there is no tensor in it, only {kinds}", fix="pass a mapping of names to tensors"
        )
