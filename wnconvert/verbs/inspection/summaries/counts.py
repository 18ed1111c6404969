"""Elements counted: those that are stored, each once, whatever names and views share them; buffers apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import field

from wnconvert.frozen import dataclass
from wnconvert.plan.order import is_buffer
from wnconvert.tensors.tree import StateDict, StoredTensor

__all__ = ["Counts", "bytes_held", "counts_of"]


@dataclass(frozen=True, slots=True)
class Counts:
    """The elements of parameters and of buffers that are stored, by dtype.

    ``by_name`` counts the elements of parameters once for each of their names.
    """

    parameters: dict[str, int] = field(default_factory=dict)
    buffers: dict[str, int] = field(default_factory=dict)
    by_name: int = 0


def counts_of(states: Iterable[StateDict]) -> Counts:
    """Count the elements of some state dicts.

    Buffers are those that a module states, and those that torch's norms register: of other names a state
    dict does not say it.
    """
    parameters: list[StoredTensor] = []
    buffers: list[StoredTensor] = []
    for state in states:
        for name, tensor in state.tensors.items():
            (buffers if name in state.buffers or is_buffer(name) else parameters).append(tensor)
    by_name = sum(tensor.info.numel for tensor in parameters)
    return Counts(_by_dtype(parameters), _by_dtype(buffers), by_name)


def _by_dtype(tensors: Iterable[StoredTensor]) -> dict[str, int]:
    kinds: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        kinds.setdefault(str(tensor.info.dtype), []).append(tensor)
    counts = {kind: _stored(of_kind) for kind, of_kind in kinds.items()}
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _stored(tensors: Sequence[StoredTensor]) -> int:
    """The elements of tensors of one dtype; views of the same bytes count once."""
    views = {tensor.view: tensor for tensor in tensors if tensor.info.numel}
    # Tensors on the meta device all lie at 0, and share nothing.
    alone = [tensor for tensor in tensors if _start(tensor) == (0, 0)]
    placed = sorted((view for view in views.values() if _start(view) != (0, 0)), key=_start)
    total = sum(tensor.info.numel for tensor in alone)
    reached = shared = 0
    first, end = (0, 0), 0
    for view in placed:
        start, size = _start(view), view.info.dtype.itemsize
        if start[0] != first[0] or start[1] >= end:
            total += min(reached, shared)
            first, end, reached, shared = start, start[1], 0, 0
        last = start[1] + _span(view) * size
        shared += max(last - end, 0) // size
        end = max(end, last)
        reached += _elements(view)
    return total + min(reached, shared)


def _start(tensor: StoredTensor) -> tuple[int, int]:
    """The file, and the byte at which the first element lies."""
    return tensor.storage.shard, tensor.storage.start + tensor.offset * tensor.info.dtype.itemsize


def _span(tensor: StoredTensor) -> int:
    """The elements from the first to the last, those between them too."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.info.shape, tensor.strides, strict=True))


def _elements(tensor: StoredTensor) -> int:
    """The elements that a view has: one along an axis that only repeats it."""
    sizes = zip(tensor.info.shape, tensor.strides, strict=True)
    return math.prod(size for size, step in sizes if step)


def bytes_held(tensors: Iterable[StoredTensor]) -> int:
    """The bytes of tensors; a storage that they share counts once."""
    return sum(storage.size for storage in {tensor.storage for tensor in tensors})
