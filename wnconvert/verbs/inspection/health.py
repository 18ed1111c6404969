"""The health of a checkpoint: NaN and infinities in every float tensor, zero rows, halves, empty tensors.

Elements are counted as they are read for the magnitudes of layers; what these do not read is read afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from wnconvert.layers.schemes import Selection
from wnconvert.messages import counted, listed, option
from wnconvert.numerics.finite import count_nonfinite, may_be_nonfinite
from wnconvert.plan.names.trees import weights_of
from wnconvert.tensors.blocks import Array, Block, Elements, Read, blocks
from wnconvert.tensors.memory import InMemory
from wnconvert.tensors.tree import StateDict, StoredTensor, Tree

__all__ = ["Fault", "Health", "WatchedElements", "empty_tensors", "health_of"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a tensor, or the layer of that name.

    ``kind`` is ``"nonfinite"``, ``"zero rows"`` (``count`` of them), ``"half"`` or ``"empty"``.
    """

    kind: str
    state_dict: str
    name: str
    count: int = 0
    nan: int = 0
    inf: int = 0

    def __str__(self) -> str:
        name = f"{self.state_dict}: {self.name}" if self.state_dict else self.name
        if self.kind == "half":
            return f"{name} stands without its other half"
        if self.kind == "empty":
            return f"{name} is empty"
        if self.kind == "zero rows":
            return f"{name} has {counted(self.count, 'zero row')} in v"
        infinities = "1 infinity" if self.inf == 1 else f"{self.inf} infinities"
        parts = [f"{self.nan} NaN"] * bool(self.nan) + [infinities] * bool(self.inf)
        return f"{name} has {' and '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Health:
    """The faults that were found, the number of float tensors that were read, and what was not looked at.

    It is true if nothing is wrong.
    """

    faults: tuple[Fault, ...]
    read: int
    not_read: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.faults


@dataclass(slots=True)
class _Seen:
    """How far a tensor was read, and what was counted in it."""

    stop: int = 0
    nan: int = 0
    inf: int = 0


@dataclass(slots=True)
class WatchedElements:
    """Elements that are counted while they are read: each once, though a tensor is read again."""

    elements: Elements
    seen: dict[object, _Seen] = field(default_factory=dict)

    def reader(self, tensor: StoredTensor) -> Read:
        """A function from a block of a tensor to its elements."""
        read, seen = self.elements.reader(tensor), self._of(tensor)

        def counting(block: Block) -> Array:
            values = read(block)
            if block.start == seen.stop:
                self._count(tensor, values)
                seen.stop = block.stop
            return values

        return counting

    def whole(self, tensor: StoredTensor) -> Array:
        """All elements of a small tensor."""
        values = self.elements.whole(tensor)
        if not self._of(tensor).stop:
            self._count(tensor, values)
            self._of(tensor).stop = tensor.info.numel
        return values

    def finish(self, tensor: StoredTensor) -> tuple[int, int]:
        """Read what was not read yet; the numbers of NaN and infinities in the whole tensor."""
        seen, info = self._of(tensor), tensor.info
        if seen.stop < info.numel:
            read = self.reader(tensor)
            for block in blocks(info.shape, None, info.dtype.itemsize):
                if block.start >= seen.stop:
                    read(block)
        return seen.nan, seen.inf

    def _of(self, tensor: StoredTensor) -> _Seen:
        return self.seen.setdefault(tensor.view, _Seen())

    def _count(self, tensor: StoredTensor, values: Array) -> None:
        nan, inf = count_nonfinite(values, tensor.info.dtype)
        seen = self._of(tensor)
        seen.nan += nan
        seen.inf += inf


def empty_tensors(tree: Tree) -> Iterator[Fault]:
    """The tensors without elements; extra state, which is often one, is not meant."""
    for state in tree.state_dicts:
        for name, tensor in state.tensors.items():
            if not tensor.info.numel and name.rpartition(".")[2] != "_extra_state":
                yield Fault("empty", state.path, name)


def health_of(tree: Tree, watched: WatchedElements, selection: Selection, found: Iterable[Fault]) -> Health:
    """Read all float tensors of the selected weights that were not read yet; ``found`` are faults so far."""
    faults: list[Fault] = []
    read = 0
    not_read: list[str] = []
    for state in tree.state_dicts:
        chosen, passed = _chosen(state, watched.elements, selection)
        read += len(chosen)
        not_read += passed
        for tensor in chosen:
            nan, inf = watched.finish(tensor)
            if nan or inf:
                faults.append(Fault("nonfinite", state.path, tensor.info.name, nan=nan, inf=inf))
    return Health((*faults, *found, *empty_tensors(tree)), read, (*not_read, *_beside(tree)))


def _chosen(
    state: StateDict, elements: Elements, selection: Selection
) -> tuple[list[StoredTensor], list[str]]:
    """The float tensors of a state dict to read, and in words those that are passed over."""
    weights = weights_of(state)
    floats = [item for item in state.tensors.values() if may_be_nonfinite(item.info.dtype)]
    wanted = [tensor for tensor in floats if selection.wants(weights[tensor.info.name])]
    chosen = [tensor for tensor in wanted if _is_readable(elements, tensor)]
    where = f"{state.path}: " if state.path else ""
    passed: list[str] = []
    if len(wanted) < len(floats):
        left = counted(len(floats) - len(wanted), "float tensor")
        passed.append(f"{where}{left} that {option('layers')} leaves out")
    if unread := [tensor for tensor in wanted if not _is_readable(elements, tensor)]:
        passed.append(f"{where}{_named([tensor.info.name for tensor in unread])}, which cannot be read")
    if opaque := [entry.name for entry in state.entries if entry.is_opaque]:
        passed.append(f"{where}{_named(opaque)}, quantized, sparse or on the meta device")
    return chosen, passed


def _is_readable(elements: Elements, tensor: StoredTensor) -> bool:
    return not isinstance(elements, InMemory) or elements.is_readable(tensor)


def _named(names: Sequence[str]) -> str:
    return listed(names, 3)


#: The kinds of siblings that hold no tensor.
_SIMPLE = {"int", "float", "str", "bool", "bytes", "nonetype"}


def _beside(tree: Tree) -> Iterator[str]:
    """What lies beside the state dicts and may hold tensors."""
    others = [*tree.optimizers, *(item.path for item in tree.siblings if item.kind not in _SIMPLE)]
    if others:
        yield f"{listed(others, 8)}, beside the state dicts"
