"""The rows of layers and weights, made on several threads, and the tensors that they show to be finite."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from wnconvert.frozen import dataclass
from wnconvert.layers.find import FoundPairs
from wnconvert.layers.schemes import Layer
from wnconvert.storage.workers import Workers
from wnconvert.tensors.blocks import Elements
from wnconvert.tensors.tree import StateDict, StoredTensor
from wnconvert.verbs.inspection.magnitudes import (
    Flag,
    FlagKind,
    LayerStats,
    computed_layer,
    layer_stats,
    other_stats,
    plain_layer,
    plain_stats,
    refused_layer,
)
from wnconvert.verbs.inspection.request import InspectRequest

__all__ = [
    "MadeRows",
    "RowTask",
    "computed_task",
    "layer_task",
    "other_task",
    "plain_task",
    "refused_task",
    "row_tasks",
    "rows_made",
]


@dataclass(frozen=True, slots=True)
class RowTask:
    """A row to make, and the tensors of which every element is read for it."""

    make: Callable[[], LayerStats]
    read: tuple[StoredTensor, ...] = ()


@dataclass(frozen=True, slots=True)
class MadeRows:
    """Rows, and the views of the tensors that were read for them and have neither NaN nor infinities."""

    rows: tuple[LayerStats, ...]
    finite: frozenset[object]


def rows_made(tasks: Iterable[RowTask], workers: Workers) -> MadeRows:
    """Make all rows, in their order; tensors with NaN or infinities are not among the finite ones."""
    every = list(tasks)
    sizes = {at: sum(tensor.info.nbytes for tensor in task.read) for at, task in enumerate(every)}
    found = workers.each(lambda at: every[at].make(), sizes)
    finite = (
        tensor.view for at, task in enumerate(every) if not found[at].has_nonfinite for tensor in task.read
    )
    return MadeRows(tuple(found[at] for at in range(len(every))), frozenset(finite))


def layer_task(
    elements: Elements, path: str, layer: Layer, g: StoredTensor, v: StoredTensor, *flags: Flag, full: bool
) -> RowTask:
    """The row of a layer."""

    def make() -> LayerStats:
        return layer_stats(elements, path, layer, g, v, full=full).flagged(*flags)

    return RowTask(make, (g, v) if full else (g,))


def other_task(elements: Elements, state: StateDict, layer: Layer, *flags: Flag, full: bool) -> RowTask:
    """The row of a layer of another kind than weight norm alone."""
    parts = {role: state.tensors[part.name] for role, part in layer.parts.items()}
    return RowTask(lambda: other_stats(elements, state.path, layer, parts, full=full).flagged(*flags))


def plain_task(
    elements: Elements, path: str, tensor: StoredTensor, *flags: Flag, form: str, dim: int | None
) -> RowTask:
    """The row of a plain weight with its magnitudes."""

    def make() -> LayerStats:
        return plain_stats(elements, path, tensor, form=form, dim=dim).flagged(*flags)

    return RowTask(make, (tensor,))


def refused_task(path: str, name: str) -> RowTask:
    """The row of a layer that is refused."""
    return RowTask(lambda: refused_layer(path, name))


def computed_task(path: str, name: str) -> RowTask:
    """The row of a weight that a graph computes in a way that does not fold."""
    return RowTask(lambda: computed_layer(path, name))


def row_tasks(
    elements: Elements,
    state: StateDict,
    found: FoundPairs,
    folded: Mapping[str, int | None],
    request: InspectRequest,
) -> Iterator[RowTask]:
    """The rows of a state dict that a request asks for; ``folded`` are weights, each with its layer's dim."""
    tensors, wants = state.tensors, request.selection.wants
    shown = {part.name for layer in (*found.layers, *found.others) for part in layer.tensors}
    yield from _layers(elements, state, found, request)
    others, no = {layer.name for layer in found.others}, {item.name for item in found.refused}
    for layer in found.others:
        if wants(layer.name):
            flags = [Flag(FlagKind.REFUSED)] if layer.name in no else []
            yield other_task(elements, state, layer, *flags, full=request.full)
    for refused in found.refused:
        if wants(refused.name) and refused.name not in others:
            shown.add(refused.name)
            yield refused_task(state.path, refused.name)
    for name in _plain_siblings(tensors, found):
        if wants(name):
            shown.add(name)
            yield _sibling(elements, state, tensors[name], request)
    if request.reads_weights:
        shown |= {layer.name for layer in found.layers if wants(layer.name)}
        wanted = [tensors[name] for name in tensors if name not in shown and wants(name)]
        yield from _plain(elements, state, folded, wanted, request)


def _layers(
    elements: Elements, state: StateDict, found: FoundPairs, request: InspectRequest
) -> Iterator[RowTask]:
    tensors, wants = state.tensors, request.selection.wants
    tied: dict[object, list[str]] = {}
    for layer in found.layers:
        tied.setdefault(_views(tensors, layer), []).append(layer.name)
    for layer in found.layers:
        if wants(layer.name):
            g, v = tensors[layer.g.name], tensors[layer.v.name]
            twins = [name for name in tied[_views(tensors, layer)] if name != layer.name]
            flags = [Flag(FlagKind.TIED, other=name) for name in twins[:1]]
            yield layer_task(elements, state.path, layer, g, v, *flags, full=request.full)


def _views(tensors: Mapping[str, StoredTensor], layer: Layer) -> object:
    """A key that is equal for two layers that are tied."""
    return tensors[layer.g.name].view, tensors[layer.v.name].view


def _sibling(elements: Elements, state: StateDict, tensor: StoredTensor, request: InspectRequest) -> RowTask:
    flag = Flag(FlagKind.PLAIN_SIBLING)
    if request.full:
        return plain_task(elements, state.path, tensor, flag, form="plain", dim=0)
    return RowTask(lambda: plain_layer(state.path, tensor, form="plain", dim=0).flagged(flag))


def _plain_siblings(tensors: Mapping[str, StoredTensor], found: FoundPairs) -> Iterator[str]:
    """Plain weights where one expects a layer: of a layer's rank, and of its name except for numbers."""

    def place(name: str, rank: int) -> tuple[str, int]:
        return re.sub(r"\d+", "#", name), rank

    places = {place(layer.name, len(layer.v.shape)) for layer in found.layers}
    halves = {half.name for layer in found.layers for half in layer.halves}
    for name, tensor in tensors.items():
        rank = len(tensor.info.shape)
        if rank > 1 and name not in halves and tensor.info.dtype.foldable and place(name, rank) in places:
            yield name


def _plain(
    elements: Elements,
    state: StateDict,
    folded: Mapping[str, int | None],
    wanted: Iterable[StoredTensor],
    request: InspectRequest,
) -> Iterator[RowTask]:
    """Rows for folded weights among those wanted; if all weights are asked for, all of rank 2 and more."""
    for tensor in wanted:
        name, is_matrix = tensor.info.name, len(tensor.info.shape) > 1
        if not tensor.info.dtype.foldable:
            continue
        if name in folded:
            yield plain_task(elements, state.path, tensor, form="folded", dim=folded[name])
        elif request.all_weights and is_matrix:
            yield plain_task(elements, state.path, tensor, form="plain", dim=0)
