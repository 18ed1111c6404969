"""Tensors that share memory with others, where one of them is to become another number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
    alike = _Alike(state)
    for layer in told:
        own = {part.name for part in layer.parts.values()}
        shared = ((name, other) for name in own for other in alike.others(name) if other not in own)
        if tie := min(shared, default=None):
            name, other = map(printable, tie)
            yield Refused(layer.name, f"{name} and {other} are one tensor, and one number cannot be two")


class _Alike:
    """The tensors of a state dict by the storages in which they lie."""

    def __init__(self, state: StateDict) -> None:
        self.tensors = state.tensors
        self.names: dict[ByteRange, list[str]] = {}
        for name, tensor in self.tensors.items():
            self.names.setdefault(tensor.storage, []).append(name)

    def others(self, name: str) -> Iterator[str]:
        """The names of tensors that have an element in common with this one."""
        tensor = self.tensors[name]
        start, end = _extent(tensor)
        for other in self.names[tensor.storage]:
            from_, to = _extent(self.tensors[other])
            if other != name and from_ < end and start < to:
                yield other


def _extent(tensor: StoredTensor) -> tuple[int, int]:
    """The first byte of a tensor in its storage, and the one behind its last."""
    info, size = tensor.info, tensor.info.dtype.itemsize
    if not info.numel:
        return 0, 0
    last = sum((length - 1) * stride for length, stride in zip(info.shape, tensor.strides, strict=True))
    return tensor.offset * size, (tensor.offset + last + 1) * size
