"""The verbs that inspect a file or a tree.

Only g is read; v and plain weights are read if the user asks for it. If a layer is refused, it is flagged and
the others are shown.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from wnconvert.layers.evidence import notes_on_passed
from wnconvert.layers.find import FoundPairs, find_pairs
from wnconvert.layers.kinds import find_kinds
from wnconvert.layers.schemes import FORMS, Selection
from wnconvert.messages import counted, listed, option, options_as_python, refuse_other_than_path, told
from wnconvert.numerics.finite import may_be_nonfinite
from wnconvert.plan.record.history import origins
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.files import located, unchanging
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import Elements
from wnconvert.tensors.claims import refuse_unfounded
from wnconvert.tensors.distributed import obstacle
from wnconvert.tensors.memory import InMemory, is_torch, tree_of
from wnconvert.tensors.tree import StateDict, StoredTensor, Tree
from wnconvert.verbs.inspection.contents import metadata_of, tensor_rows
from wnconvert.verbs.inspection.counts import bytes_held, counts_of
from wnconvert.verbs.inspection.forecast import fold_in_words, migrate_in_words, split_in_words
from wnconvert.verbs.inspection.health import Fault, WatchedElements, empty_tensors, health_of
from wnconvert.verbs.inspection.magnitudes import (
    Flag,
    FlagKind,
    LayerStats,
    layer_stats,
    plain_layer,
    plain_stats,
    refused_layer,
)
from wnconvert.verbs.inspection.request import InspectRequest, request_of
from wnconvert.verbs.inspection.result import (
    Inspection,
    KindSummary,
    SiblingSummary,
    StateDictSummary,
)
from wnconvert.verbs.shared.progress import Progress, bytes_progress

__all__ = ["inspect_file", "inspect_state_dict", "inspect_tree"]


def inspect_file(
    src: str | os.PathLike[str],
    *,
    layers: Iterable[str] = (),
    full: bool = False,
    all_weights: bool = False,
    tensors: bool = False,
    metadata: bool = False,
    progress: Progress = False,
) -> Inspection:
    """Inspect a checkpoint file of any readable format, a folder with weights or its index, or an ONNX model.

    Nothing in it is imported or run.

    ``layers`` are globs on the names of weights. ``full`` reads every float tensor, for ``health`` (NaN,
    infinities, zero rows …), and computes the magnitudes of folded layers (by the record of the fold) too;
    ``all_weights`` does that for every plain weight
    of two and more dimensions. The layers of an ONNX model are those in its graph, and the plain weights
    that its convolutions, products and recurrent layers use. ``tensors`` lists every tensor, ``metadata``
    what a safetensors file or an ONNX model says of itself. ``progress`` is called with the number of bytes
    read and the approximate total, or True for a bar.

    Raises ``InputError`` if ``src`` is not a checkpoint and ``FormatError`` if it is damaged.

    >>> found = inspect_file("fixtures/g_02500000")
    >>> len(found.layers), found.layers[0].name, found.fold
    (78, 'conv_pre.weight', 'would make 78 plain weights')
    """
    refuse_other_than_path(src)
    path = located(src)
    checkpoint = open_checkpoint(path)
    request = request_of(layers, full=full, all_weights=all_weights)
    with unchanging(checkpoint.seen):
        found = _inspect_any(checkpoint, path, request, bytes_progress(progress))
        return replace(
            found,
            tensors=tensor_rows(checkpoint.tree, request.selection) if tensors else None,
            metadata=metadata_of(checkpoint) if metadata else None,
        )


def _inspect_any(
    checkpoint: Checkpoint, path: PurePath, request: InspectRequest, progress: Callable[[int, int], None]
) -> Inspection:
    if checkpoint.onnx is not None:
        from wnconvert.verbs.inspection.onnx import inspect_onnx  # ten modules on graphs

        return inspect_onnx(checkpoint, checkpoint.onnx, request)
    return _inspect(checkpoint, path, request, progress)


def _inspect(
    checkpoint: Checkpoint, path: PurePath, request: InspectRequest, progress: Callable[[int, int], None]
) -> Inspection:
    """Inspect a checkpoint that is not an ONNX model."""
    reading = _Reading(progress, _bytes_to_read(checkpoint.tree, request))
    with Source(checkpoint.sources, reading.done, checkpoint.reopen) as source:
        found = inspect_tree(checkpoint.tree, source, request)
    others = replace(
        found,
        source=os.fspath(path),
        container=str(checkpoint.container),
        bytes=checkpoint.size,
        files=checkpoint.files,
        notes=(*_place_notes(path), *found.notes),
    )
    if checkpoint.torch is not None:
        from wnconvert.verbs.inspection.pickle import with_pickle

        return with_pickle(others, checkpoint, checkpoint.torch)
    return others if checkpoint.container.facts.names_devices else replace(others, devices=())


def _place_notes(path: PurePath) -> tuple[str, ...]:
    """Notes on a file of weights that is one of several, and on which snapshot of the hub's cache is read."""
    if "-of-" in path.name:
        from wnconvert.storage.folder.weights import part_notes

        return part_notes(path)
    if "models--" in path.name:
        from wnconvert.storage.folder.links import entry_notes

        return entry_notes(path)
    return ()


class _Reading:
    """The progress of an inspection in bytes; some bytes are read twice, so the total is an estimate."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self.progress = progress
        self.read = 0
        self.total = total

    def done(self, count: int) -> None:
        """Count bytes that were read."""
        self.read += count
        self.progress(self.read, max(self.read, self.total))


def _bytes_to_read(tree: Tree, request: InspectRequest) -> int:
    tensors = [tensor.info for state in tree.state_dicts for tensor in state.tensors.values()]
    if request.reads_weights:
        return sum(info.nbytes for info in tensors)
    return sum(layer.g.nbytes for layer in find_pairs(tensors).layers)


def inspect_tree(
    tree: Tree, elements: Elements, request: InspectRequest, explained: Collection[str] = ()
) -> Inspection:
    """Inspect the state dicts of a tree, reading elements as the request needs them.

    ``explained`` are layers whose refusal the caller explains: they are flagged without a note.
    """
    watched = WatchedElements(elements)
    found = [_inspect_state(tree, state, watched, request, explained) for state in tree.state_dicts]
    counts = counts_of(tree.state_dicts)
    rows = [row for of_state in found for row in of_state.rows]
    faults = [*_zero_rows(rows), *(half for of_state in found for half in of_state.halves)]
    empty = () if request.full else tuple(_empty_note(tree))  # else its health says it
    return Inspection(
        source="",
        container="state dict",
        version="",
        bytes=sum(of_state.summary.bytes for of_state in found),
        parameters=sum(counts.parameters.values()),
        parameters_by_name=counts.by_name,
        dtypes=counts.parameters,
        buffers=counts.buffers,
        devices=tuple(
            dict.fromkeys(tensor.location for state in tree.state_dicts for tensor in state.tensors.values())
        ),
        state_dicts=tuple(of_state.summary for of_state in found),
        siblings=tuple(SiblingSummary(item.path, item.kind, 0) for item in tree.siblings),
        layers=tuple(rows),
        kinds=tuple(_kinds(tree)),
        fold=fold_in_words(tree, rows),
        split=split_in_words(tree),
        migrate=migrate_in_words(tree),
        notes=(*(note for of_state in found for note in of_state.notes), *empty),
        health=health_of(tree, watched, request.selection, faults) if request.full else None,
    )


def _empty_note(tree: Tree) -> Iterator[str]:
    if names := [fault.name for fault in empty_tensors(tree)]:
        yield f"{counted(len(names), 'tensor')} without elements: {listed(names, 3)}"


def _zero_rows(rows: Iterable[LayerStats]) -> Iterator[Fault]:
    """The layers whose v has zero rows; those of a folded weight were let through when it was folded."""
    for row in rows:
        if row.form in FORMS and row.zero_rows:
            yield Fault("zero rows", row.state_dict, row.name, row.zero_rows)


@dataclass(frozen=True, slots=True)
class _StateInspection:
    """One state dict: its counts, a row for each layer that is shown, and notes."""

    summary: StateDictSummary
    rows: tuple[LayerStats, ...]
    notes: tuple[str, ...]
    halves: tuple[Fault, ...]


def _inspect_state(
    tree: Tree, state: StateDict, elements: Elements, request: InspectRequest, explained: Collection[str]
) -> _StateInspection:
    tensors = state.tensors
    infos = (tensor.info for tensor in tensors.values())
    found = find_pairs(infos, Selection(named=(*request.selection.layers, *state.dims)))
    read = ((item.info.name, item) for item in _to_read(state, found, request))
    refuse_unfounded(read, f"{option('layers')} names the layers to read")
    folded = _folded(tree, state)
    rows = list(_rows(elements, state, found, request))
    if request.reads_weights:
        known = {row.name for row in rows}
        known |= {half.name for layer in found.layers for half in layer.halves}
        wanted = [name for name in tensors if name not in known and request.selection.wants(name)]
        rows += _plain_rows(elements, state, folded, wanted, all_weights=request.all_weights)
    forms = Counter(layer.form for layer in found.layers)
    forms.update({"folded": len(folded), "refused": len(found.refused)})
    counts = counts_of([state])
    summary = StateDictSummary(
        state.path,
        len(tensors),
        sum(counts.parameters.values()),
        sum(counts.buffers.values()),
        bytes_held(tensors.values()),
        {form: count for form, count in forms.items() if count},
    )
    halves = tuple(Fault("half", state.path, half) for half in found.halves)
    return _StateInspection(summary, tuple(rows), tuple(_notes(found, explained, request)), halves)


def _to_read(state: StateDict, found: FoundPairs, request: InspectRequest) -> Iterator[StoredTensor]:
    """The tensors whose elements are looked at."""
    wants = request.selection.wants
    if not request.reads_weights:
        return (state.tensors[layer.g.name] for layer in found.layers if wants(layer.name))
    weights = {half.name: layer.name for layer in found.layers for half in layer.halves}
    floats = (item for item in state.tensors.values() if may_be_nonfinite(item.info.dtype))
    return (item for item in floats if wants(weights.get(item.info.name, item.info.name)))


def _notes(found: FoundPairs, explained: Collection[str], request: InspectRequest) -> Iterator[str]:
    alone = (" stands without its other half", " stand without their other halves")
    halves = () if request.full else found.halves  # else its health says it
    yield from told(((half, "") for half in halves), *alone)
    yield from told((layer.name, layer.note) for layer in found.layers if layer.note)
    refused = (item for item in found.refused if item.name not in explained)
    yield from told(((item.name, item.reason) for item in refused), " is refused: ", " are refused: ")
    yield from notes_on_passed(found.passed)


# -- rows


def _rows(
    elements: Elements, state: StateDict, found: FoundPairs, request: InspectRequest
) -> Iterator[LayerStats]:
    tensors, wants = state.tensors, request.selection.wants
    tied: dict[object, list[str]] = {}
    for layer in found.layers:
        tied.setdefault(_views(tensors, layer.g.name, layer.v.name), []).append(layer.name)
    for layer in found.layers:
        if wants(layer.name):
            g, v = tensors[layer.g.name], tensors[layer.v.name]
            stats = layer_stats(elements, state.path, layer, g, v, full=request.full)
            twins = [name for name in tied[_views(tensors, g.info.name, v.info.name)] if name != layer.name]
            yield stats.flagged(*(Flag(FlagKind.TIED, other=name) for name in twins[:1]))
    for refused in found.refused:
        if wants(refused.name):
            yield refused_layer(state.path, refused.name)
    for name in _plain_siblings(tensors, found):
        if wants(name):
            if request.full:
                stats = plain_stats(elements, state.path, tensors[name], form="plain", dim=0)
            else:
                stats = plain_layer(state.path, tensors[name], form="plain", dim=0)
            yield stats.flagged(Flag(FlagKind.PLAIN_SIBLING))


def _views(tensors: Mapping[str, StoredTensor], g: str, v: str) -> object:
    """A key that is equal for two layers that are tied."""
    return tensors[g].view, tensors[v].view


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


def _plain_rows(
    elements: Elements,
    state: StateDict,
    folded: Mapping[str, int | None],
    names: Iterable[str],
    *,
    all_weights: bool,
) -> Iterator[LayerStats]:
    """Rows for folded weights among ``names``; with ``all_weights`` for all of rank 2 and more."""
    tensors = state.tensors
    for tensor in (tensors[name] for name in names if tensors[name].info.dtype.foldable):
        name = tensor.info.name
        if name in folded:
            yield plain_stats(elements, state.path, tensor, form="folded", dim=folded[name])
        elif all_weights and len(tensor.info.shape) > 1:
            yield plain_stats(elements, state.path, tensor, form="plain", dim=0)


def _folded(tree: Tree, state: StateDict) -> dict[str, int | None]:
    """The layers that the record calls folded and whose weights are there in that shape: weight and dim."""
    tensors = state.tensors
    return {
        origin.layer.name: origin.layer.dim
        for step in origins(tree.record, state.path, "fold")
        for origin in step
        if (stored := tensors.get(origin.layer.name)) is not None
        and stored.info.shape == origin.layer.v.shape
    }


def _kinds(tree: Tree) -> Iterator[KindSummary]:
    for state in tree.state_dicts:
        for found in find_kinds(tensor.info for tensor in state.tensors.values()):
            kind = found.kind
            yield KindSummary(state.path, kind.name, found.count, found.example, kind.folds, kind.how)


def inspect_state_dict(
    state_dict: Mapping[str, Any],
    *,
    layers: Iterable[str] = (),
    full: bool = False,
    all_weights: bool = False,
) -> Inspection:
    """Inspect a state dict in memory: its layers, their magnitudes, and what folding would do.

    Values as for ``fold_state_dict``, options as for ``inspect_file``. Raises ``ArgumentError`` if the
    tensors are not in ``state_dict`` itself but in a mapping inside it.

    >>> import numpy as np
    >>> found = inspect_state_dict({"weight_g": np.float32([[10]]), "weight_v": np.float32([[3, 4]])})
    >>> found.layers[0].g.mean, found.fold
    (10.0, 'would make 1 plain weight')
    """
    with options_as_python():
        tree, values = tree_of(state_dict)
        request = request_of(layers, full=full, all_weights=all_weights)
        obstacles = {
            name: why for name, value in values.items() if is_torch(value) and (why := obstacle(value))
        }
        found = inspect_tree(_without(tree, obstacles), InMemory(values), request)
        notes = (
            f"{listed([name for name, its in obstacles.items() if its == why], 10)}: {why[0]}; {why[1]}"
            for why in dict.fromkeys(obstacles.values())
        )
        return replace(found, notes=(*found.notes, *notes))


def _without(tree: Tree, names: Collection[str]) -> Tree:
    """The tree of a state dict in which no more is known of some tensors, and of their other halves."""
    state = tree.state_dict("")
    pairs = find_pairs(tensor.info for tensor in state.tensors.values()).layers
    halves = [{half.name for half in layer.halves} for layer in pairs]
    left_out = set(names).union(*(pair for pair in halves if not pair.isdisjoint(names)))
    entries = (
        replace(entry, tensor=None, is_opaque=True) if entry.name in left_out else entry
        for entry in state.entries
    )
    return Tree((replace(state, entries=tuple(entries)),))
