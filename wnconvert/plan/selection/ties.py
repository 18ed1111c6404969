"""Tensors that share memory with others, where one of them is to become another number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from wnconvert.layers.schemes import Layer, Refused
from wnconvert.messages import printable
from wnconvert.tensors.tree import ByteRange, StateDict, StoredTensor

__all__ = ["refused_for_ties"]


def refused_for_ties(state: StateDict, layers: Iterable[Layer]) -> Iterator[Refused]:
    """The refusals of layers that a recipe tells and whose numbers are those of another name, too.

    The affine of a norm may go into several layers, so it is theirs together; any other tensor is one
    layer's alone.
    """
    told = [layer for layer in layers if layer.grade != "keys"]
    if not told:
        return
    shared = _shared(state.tensors)
    for layer in told:
        own = {part.name for part in layer.parts.values()}
        ties = ((name, other) for name in own for other in shared.get(name, ()) if other not in own)
        if tie := min(ties, default=None):
            name, other = map(printable, tie)
            yield Refused(layer.name, f"{name} and {other} are one tensor, and one number cannot be two")


def _shared(tensors: Mapping[str, StoredTensor]) -> dict[str, set[str]]:
    """The tensors that have elements in common with others, each with one of them at least."""
    stored: dict[ByteRange, list[tuple[int, int, str]]] = {}
    for name, tensor in tensors.items():
        if tensor.info.numel:
            stored.setdefault(tensor.storage, []).append((*_extent(tensor), name))
    found: dict[str, set[str]] = {}
    for of_storage in stored.values():
        reach, last = -1, ""  # how far the tensors before reach, and which of them does
        for start, end, name in sorted(of_storage):
            if start < reach:
                found.setdefault(name, set()).add(last)
                found.setdefault(last, set()).add(name)
            if end > reach:
                reach, last = end, name
    return found


def _extent(tensor: StoredTensor) -> tuple[int, int]:
    """The first byte of a tensor in its storage, and the one behind its last."""
    info, size = tensor.info, tensor.info.dtype.itemsize
    last = sum((length - 1) * stride for length, stride in zip(info.shape, tensor.strides, strict=True))
    return tensor.offset * size, (tensor.offset + last + 1) * size
