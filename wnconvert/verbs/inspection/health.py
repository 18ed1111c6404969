"""The health of a checkpoint: NaN and infinities in every float tensor, zero rows, halves, empty tensors.

What the magnitudes of layers show to be finite is not read again; all else is read and counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from wnconvert.frozen import dataclass
from wnconvert.layers.schemes import Selection
from wnconvert.messages import counted, listed, option
from wnconvert.plan.names.trees import weights_of
from wnconvert.storage.workers import Workers
from wnconvert.tensors.blocks import Elements, blocks
from wnconvert.tensors.memory import InMemory
from wnconvert.tensors.tree import StateDict, StoredTensor, Tree

__all__ = ["Fault", "Health", "empty_tensors", "health_of"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a tensor, or the layer of that name.

    ``kind`` is ``"nonfinite"``, ``"zero rows"`` (``count`` of them), ``"half"`` or ``"empty"``. ``weight`` is
    the name of the layer that the tensor is of: of a half, that of its pair.
    """

    kind: str
    state_dict: str
    name: str
    count: int = 0
    nan: int = 0
    inf: int = 0
    weight: str = ""

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


def empty_tensors(tree: Tree) -> Iterator[Fault]:
    """The tensors without elements; extra state, which is often one, is not meant."""
    for state in tree.state_dicts:
        for name, tensor in state.tensors.items():
            if not tensor.info.numel and name.rpartition(".")[2] != "_extra_state":
                yield Fault("empty", state.path, name, weight=name)


def health_of(  # noqa: PLR0917 -- what is looked at, what is known of it, who looks
    tree: Tree,
    elements: Elements,
    selection: Selection,
    found: Iterable[Fault],
    finite: Collection[object],
    workers: Workers,
) -> Health:
    """Look at all float tensors of the selected weights.

    ``found`` are faults so far. Tensors whose views are ``finite`` were read, and have nothing but numbers.
    """
    chosen: list[tuple[str, StoredTensor]] = []
    not_read: list[str] = []
    for state in tree.state_dicts:
        to_read, passed = _chosen(state, elements, selection)
        chosen += ((state.path, tensor) for tensor in to_read)
        not_read += passed
    unread = {tensor.view: tensor for _, tensor in chosen if tensor.view not in finite}
    counts = _counts(elements, list(unread.values()), workers)
    odd = [(path, tensor) for path, tensor in chosen if any(counts.get(tensor.view, (0, 0)))]
    weights = {path: weights_of(tree.state_dict(path)) for path in {path for path, _ in odd}}
    faults = (
        Fault("nonfinite", path, name, nan=nan, inf=inf, weight=weights[path][name])
        for path, tensor in odd
        for name, (nan, inf) in ((tensor.info.name, counts[tensor.view]),)
    )
    return Health((*faults, *found, *empty_tensors(tree)), len(chosen), (*not_read, *_beside(tree)))


def _counts(
    elements: Elements, tensors: Sequence[StoredTensor], workers: Workers
) -> dict[object, tuple[int, int]]:
    """The numbers of NaN and infinities of tensors, by their views."""
    sizes = {at: tensor.info.nbytes for at, tensor in enumerate(tensors)}
    found = workers.each(lambda at: _count(elements, tensors[at]), sizes)
    return {tensor.view: found[at] for at, tensor in enumerate(tensors)}


def _count(elements: Elements, tensor: StoredTensor) -> tuple[int, int]:
    from wnconvert.numerics.finite import count_nonfinite

    info, read = tensor.info, elements.reader(tensor)
    nan = inf = 0
    for block in blocks(info.shape, None, info.dtype.itemsize):
        found = count_nonfinite(read(block), info.dtype)
        nan, inf = nan + found[0], inf + found[1]
    return nan, inf


def _chosen(
    state: StateDict, elements: Elements, selection: Selection
) -> tuple[list[StoredTensor], list[str]]:
    """The float tensors of a state dict to read, and in words those that are passed over."""
    from wnconvert.numerics.finite import may_be_nonfinite  # as ``count_nonfinite``, g alone does not need it

    floats = [item for item in state.tensors.values() if may_be_nonfinite(item.info.dtype)]
    weights = {} if selection.wants_all else weights_of(state)
    wanted = [it for it in floats if selection.wants(weights.get(it.info.name, it.info.name))]
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
