"""The verbs that inspect a file or a tree.

Only g is read; v and plain weights are read if the user asks for it. If a layer is refused, it is flagged and
the others are shown.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.layers.conventions import CONVENTIONS, has_eps
from wnconvert.layers.evidence import notes_on_passed
from wnconvert.layers.find import FoundPairs, pairs_in
from wnconvert.layers.recipes import Recipe
from wnconvert.layers.schemes import Selection
from wnconvert.messages import counted, listed, option, options_as_python, refuse_other_than_path, told
from wnconvert.plan.record.history import origins
from wnconvert.plan.selection.wanted import fitting_layers
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.files import located, unchanging
from wnconvert.storage.sources import Source
from wnconvert.storage.workers import Workers
from wnconvert.tensors.blocks import Elements
from wnconvert.tensors.claims import refuse_unfounded
from wnconvert.tensors.distributed import obstacle
from wnconvert.tensors.memory import InMemory, is_torch, tree_of
from wnconvert.tensors.tree import StateDict, StoredTensor, Tree
from wnconvert.verbs.inspection.forecast import fold_in_words, migrate_in_words, split_in_words
from wnconvert.verbs.inspection.health import Fault, empty_tensors, health_of
from wnconvert.verbs.inspection.magnitudes import LayerStats
from wnconvert.verbs.inspection.request import InspectRequest, request_of
from wnconvert.verbs.inspection.result import (
    Inspection,
    SiblingSummary,
    StateDictSummary,
)
from wnconvert.verbs.inspection.rows import MadeRows, row_tasks, rows_made
from wnconvert.verbs.inspection.summaries.contents import metadata_of, tensor_rows
from wnconvert.verbs.inspection.summaries.counts import bytes_held, counts_of
from wnconvert.verbs.inspection.summaries.kinds import kinds_in
from wnconvert.verbs.inspection.summaries.norms import norm_rows
from wnconvert.verbs.inspection.summaries.steps import step_in
from wnconvert.verbs.shared.digests import sha256_beside
from wnconvert.verbs.shared.progress import Progress, bytes_progress
from wnconvert.verbs.shared.recipes import refuse_recipe

__all__ = ["inspect_file", "inspect_state_dict", "inspect_tree"]


def inspect_file(
    src: str | os.PathLike[str],
    *,
    layers: Iterable[str] = (),
    full: bool = False,
    all_weights: bool = False,
    tensors: bool = False,
    metadata: bool = False,
    sha256: bool = False,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    progress: Progress = False,
) -> Inspection:
    """Inspect a checkpoint file of any readable format, a folder with weights or its index, or an ONNX model.

    Nothing in it is imported or run.

    ``layers`` are globs on the names of weights. ``full`` reads every float tensor, for ``health`` (NaN,
    infinities, zero rows …), and computes the magnitudes of folded layers (by the record of the fold) too;
    ``all_weights`` does that for every plain weight
    of two and more dimensions. The layers of an ONNX model are those in its graph, and the plain weights
    that its convolutions, products and recurrent layers use. ``tensors`` lists every tensor, ``metadata``
    what a safetensors file or an ONNX model says of itself; ``sha256`` computes that of the whole file. The
    forecast of ``fold`` is that of a fold by ``recipe``. ``progress`` is called with the number of bytes
    read and the approximate total, or True for a bar.

    Raises ``InputError`` if ``src`` is not a checkpoint and ``FormatError`` if it is damaged.

    >>> found = inspect_file("fixtures/g_02500000")
    >>> len(found.layers), found.layers[0].name, found.fold
    (78, 'conv_pre.weight', 'would make 78 plain weights')
    """
    refuse_other_than_path(src)
    path = located(src)
    checkpoint = open_checkpoint(path)
    request = request_of(layers, full=full, all_weights=all_weights, recipe=recipe)
    with unchanging(checkpoint.seen), sha256_beside(*([path] if sha256 else [])) as digests:
        found = _inspect_any(checkpoint, path, request, bytes_progress(progress))
        return replace(
            found,
            tensors=tensor_rows(checkpoint.tree, request.selection) if tensors else None,
            metadata=metadata_of(checkpoint) if metadata else None,
            sha256="".join(digests()),
        )


def _inspect_any(
    checkpoint: Checkpoint, path: PurePath, request: InspectRequest, progress: Callable[[int, int], None]
) -> Inspection:
    if checkpoint.onnx is not None:
        if request.recipe is not None:
            refuse_recipe()
        from wnconvert.verbs.inspection.onnx import inspect_onnx  # ten modules on graphs

        return inspect_onnx(checkpoint, checkpoint.onnx, request)
    return _inspect(checkpoint, path, request, progress)


def _inspect(
    checkpoint: Checkpoint, path: PurePath, request: InspectRequest, progress: Callable[[int, int], None]
) -> Inspection:
    """Inspect a checkpoint that is not an ONNX model."""
    tree, pairs = checkpoint.tree, _all_pairs(checkpoint.tree, request)
    workers = Workers(None if request.reads_weights else 1, _estimated(progress))
    with Source(checkpoint.sources, workers.advance, checkpoint.reopen) as source:
        if not request.reads_weights:
            source.soon(_magnitudes(tree, pairs))
        found = _inspect_found(tree, pairs, source, request, workers)
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


def _estimated(progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Progress of which the total is an estimate: some bytes are read twice."""
    return lambda done, total: progress(done, max(done, total))


def _magnitudes(tree: Tree, pairs: Iterable[FoundPairs]) -> Iterator[StoredTensor]:
    """The g of every layer."""
    for state, found in zip(tree.state_dicts, pairs, strict=True):
        yield from (state.tensors[layer.g.name] for layer in found.layers)


def _all_pairs(tree: Tree, request: InspectRequest) -> list[FoundPairs]:
    """The layers of every state dict."""
    return [_pairs(state, request.selection.layers) for state in tree.state_dicts]


def _pairs(state: StateDict, named: Iterable[str] = ()) -> FoundPairs:
    """The layers of a state dict; those that its hooks name, and others that are ``named``, for sure."""
    return pairs_in(state, Selection(named=(*named, *state.dims)))


def _known(tree: Tree, pairs: Iterable[FoundPairs], selection: Selection) -> dict[str, FoundPairs]:
    """The layers that a verb without a selection finds: those that were found, if none was asked for."""
    return {
        state.path: fitting_layers(state, _pairs(state) if selection.layers else its)
        for state, its in zip(tree.state_dicts, pairs, strict=True)
    }


def _bytes_to_read(tree: Tree, request: InspectRequest, pairs: Iterable[FoundPairs]) -> int:
    if request.reads_weights:
        return sum(it.info.nbytes for state in tree.state_dicts for it in state.tensors.values())
    return sum(layer.g.nbytes for found in pairs for layer in found.layers)


def inspect_tree(
    tree: Tree, elements: Elements, request: InspectRequest, workers: Workers, explained: Collection[str] = ()
) -> Inspection:
    """Inspect the state dicts of a tree, reading elements as the request needs them.

    ``explained`` are layers whose refusal the caller explains: they are flagged without a note.
    """
    return _inspect_found(tree, _all_pairs(tree, request), elements, request, workers, explained)


def _inspect_found(  # noqa: PLR0917 -- a tree, what was found in it, and what ``inspect_tree`` is given
    tree: Tree,
    pairs: Sequence[FoundPairs],
    elements: Elements,
    request: InspectRequest,
    workers: Workers,
    explained: Collection[str] = (),
) -> Inspection:
    workers.expect(_bytes_to_read(tree, request, pairs))
    found = [
        _inspect_state(tree, state, its, elements, request, workers, explained)
        for state, its in zip(tree.state_dicts, pairs, strict=True)
    ]
    known = _known(tree, pairs, request.selection)
    counts = counts_of(tree.state_dicts)
    rows = [row for of_state in found for row in of_state.made.rows]
    finite = {view for of_state in found for view in of_state.made.finite}
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
        kinds=tuple(kinds_in(tree)),
        fold=fold_in_words(tree, rows, known, request.recipe),
        split=split_in_words(tree),
        migrate=migrate_in_words(tree, known),
        notes=(*(note for of_state in found for note in of_state.notes), *empty),
        health=health_of(tree, elements, request.selection, faults, finite, workers)
        if request.full
        else None,
        norms=norm_rows(tree, elements, request.selection) if request.full else None,
        recorded_by=tree.recorded_by,
        step=step_in((), tree.metadata),
    )


def _empty_note(tree: Tree) -> Iterator[str]:
    if names := [fault.name for fault in empty_tensors(tree)]:
        yield f"{counted(len(names), 'tensor')} without elements: {listed(names, 3)}"


def _zero_rows(rows: Iterable[LayerStats]) -> Iterator[Fault]:
    """The layers whose v has zero rows; those of a folded weight were let through when it was folded."""
    for row in rows:
        if row.form in CONVENTIONS and row.zero_rows and not has_eps(row.form):
            yield Fault("zero rows", row.state_dict, row.name, row.zero_rows, weight=row.name)


@dataclass(frozen=True, slots=True)
class _StateInspection:
    """One state dict: its counts, a row for each layer that is shown, and notes."""

    summary: StateDictSummary
    made: MadeRows
    notes: tuple[str, ...]
    halves: tuple[Fault, ...]


def _inspect_state(  # noqa: PLR0917 -- one state dict of those that ``inspect_tree`` is given
    tree: Tree,
    state: StateDict,
    found: FoundPairs,
    elements: Elements,
    request: InspectRequest,
    workers: Workers,
    explained: Collection[str],
) -> _StateInspection:
    tensors = state.tensors
    read = ((item.info.name, item) for item in _to_read(state, found, request))
    refuse_unfounded(read, f"{option('layers')} names the layers to read")
    folded = _folded(tree, state)
    made = rows_made(row_tasks(elements, state, found, folded, request), workers)
    forms = Counter(layer.form for layer in found.layers)
    forms.update({"folded": len(folded), "refused": len(found.refused)})
    forms.update(layer.rule.kind for layer in found.others)
    counts = counts_of([state])
    summary = StateDictSummary(
        state.path,
        len(tensors),
        sum(counts.parameters.values()),
        sum(counts.buffers.values()),
        bytes_held(tensors.values()),
        {form: count for form, count in forms.items() if count},
    )
    halves = tuple(Fault("half", state.path, half, weight=half) for half in found.halves)
    return _StateInspection(summary, made, tuple(_notes(found, explained, request)), halves)


def _to_read(state: StateDict, found: FoundPairs, request: InspectRequest) -> Iterator[StoredTensor]:
    """The tensors whose elements are looked at."""
    wants = request.selection.wants
    if not request.reads_weights:
        return (state.tensors[layer.g.name] for layer in found.layers if wants(layer.name))
    from wnconvert.numerics.finite import may_be_nonfinite  # which g alone does not need

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


def inspect_state_dict(
    state_dict: Mapping[str, Any],
    *,
    layers: Iterable[str] = (),
    full: bool = False,
    all_weights: bool = False,
    recipe: str | os.PathLike[str] | Recipe | None = None,
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
        request = request_of(layers, full=full, all_weights=all_weights, recipe=recipe)
        obstacles = {
            name: why for name, value in values.items() if is_torch(value) and (why := obstacle(value))
        }
        found = inspect_tree(_without(tree, obstacles), InMemory(values), request, Workers(1))
        notes = (
            f"{listed([name for name, its in obstacles.items() if its == why], 10)}: {why[0]}; {why[1]}"
            for why in dict.fromkeys(obstacles.values())
        )
        return replace(found, notes=(*found.notes, *notes))


def _without(tree: Tree, names: Collection[str]) -> Tree:
    """The tree of a state dict in which no more is known of some tensors, and of their other halves."""
    state = tree.state_dict("")
    pairs = pairs_in(state).layers
    halves = [{half.name for half in layer.halves} for layer in pairs]
    left_out = set(names).union(*(pair for pair in halves if not pair.isdisjoint(names)))
    entries = (
        replace(entry, tensor=None, is_opaque=True) if entry.name in left_out else entry
        for entry in state.entries
    )
    return Tree((replace(state, entries=tuple(entries)),))
