"""The verbs that inspect a file or a tree.

Only g is read, and v or plain weights where that is asked for. Of a file with a layer that is refused the
others are shown and that one is flagged.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wnconvert.formats.pickle.values import PersistentId, Value, walk
from wnconvert.formats.pickle.writer import dump
from wnconvert.formats.torch.names import dangerous_names, foreign_names
from wnconvert.formats.torch.records import read_storage
from wnconvert.layers.find import FoundPairs, find_pairs
from wnconvert.layers.kinds import find_kinds
from wnconvert.layers.schemes import Selection
from wnconvert.messages import options_as_python
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.folder import part_notes
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import Elements
from wnconvert.tensors.containers import Container
from wnconvert.tensors.memory import InMemory, tree_of
from wnconvert.tensors.tree import StateDict, StoredTensor, Tree
from wnconvert.verbs.inspection.forecast import fold_in_words, migrate_in_words, split_in_words
from wnconvert.verbs.inspection.magnitudes import LayerStats, layer_stats, plain_stats
from wnconvert.verbs.inspection.onnx import inspect_onnx
from wnconvert.verbs.inspection.result import (
    Inspection,
    KindSummary,
    SiblingSummary,
    StateDictSummary,
    bytes_held,
)
from wnconvert.verbs.options import selection_of

__all__ = ["inspect_file", "inspect_state_dict", "inspect_tree"]


def inspect_file(
    src: str | os.PathLike[str],
    *,
    layers: Iterable[str] = (),
    full: bool = False,
    all_weights: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Inspect a checkpoint file of any readable format, a folder with weights or its index, or an ONNX model.

    Nothing in it is imported or run.

    ``layers`` are globs on weights' names. With ``full`` v is read too, and the magnitudes of folded layers
    (by the record of the fold) are computed from their weights; ``all_weights`` does that for every plain
    weight of two and more dimensions. Of an ONNX model the layers are those in its graph, and the plain
    weights that its convolutions, products and recurrent layers use. ``progress`` is called with the bytes
    read and about how many there are to read.

    Raises ``InputError`` for what is no checkpoint and ``FormatError`` for a damaged one.

    >>> found = inspect_file("fixtures/g_02500000")
    >>> len(found.layers), found.layers[0].name, found.fold
    (78, 'conv_pre.weight', 'would make 78 plain weights')
    """
    path = Path(src)
    checkpoint = open_checkpoint(path)
    if checkpoint.onnx is not None:
        return inspect_onnx(checkpoint, checkpoint.onnx, layers, full=full, all_weights=all_weights)
    reading = _Reading(progress, _to_read(checkpoint.tree, full=full, all_weights=all_weights))
    with Source(checkpoint.shards, reading.done) as source:
        found = inspect_tree(checkpoint.tree, source, layers=layers, full=full, all_weights=all_weights)
    others = replace(
        found,
        source=os.fspath(path),
        container=str(checkpoint.container),
        bytes=checkpoint.size,
        files=checkpoint.folder.files if checkpoint.folder else (),
        notes=(*part_notes(path), *found.notes),
    )
    return _with_pickle(others, checkpoint)


class _Reading:
    """How far an inspection has come, in bytes; some are read twice, so the total is no promise."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self.progress = progress
        self.read = 0
        self.total = total

    def done(self, count: int) -> None:
        """Count bytes that were read."""
        self.read += count
        self.progress(self.read, max(self.read, self.total))


def _to_read(tree: Tree, *, full: bool, all_weights: bool) -> int:
    tensors = [tensor.info for state in tree.state_dicts for tensor in state.tensors.values()]
    if full or all_weights:
        return sum(info.nbytes for info in tensors)
    return sum(layer.g.nbytes for layer in find_pairs(tensors).layers)


def inspect_tree(
    tree: Tree,
    elements: Elements,
    *,
    layers: Iterable[str] = (),
    full: bool = False,
    all_weights: bool = False,
) -> Inspection:
    """Inspect what a tree names, reading elements where needed."""
    selection = selection_of(layers, (), "auto")
    rows: list[LayerStats] = []
    states: list[StateDictSummary] = []
    dtypes: Counter[str] = Counter()
    notes: list[str] = []
    for state in tree.state_dicts:
        tensors = state.tensors
        found = find_pairs(tensor.info for tensor in tensors.values())
        folded = _folded(tree, state)
        for tensor in tensors.values():
            dtypes[str(tensor.info.dtype)] += tensor.info.numel
        forms = Counter(layer.form for layer in found.layers)
        forms.update({"folded": len(folded), "refused": len(found.refused)})
        states.append(
            StateDictSummary(
                state.path,
                len(tensors),
                sum(tensor.info.numel for tensor in tensors.values()),
                bytes_held(tensors.values()),
                {form: count for form, count in forms.items() if count},
            )
        )
        notes += [f"{half} stands without its other half" for half in found.halves]
        notes += [f"{layer.name}: {layer.note}" for layer in found.layers if layer.note]
        notes += [f"{refused.name} is refused: {refused.reason}" for refused in found.refused]
        of_state = list(_rows(elements, state, found, selection, full=full))
        if full or all_weights:
            known = {row.name for row in of_state}
            known |= {half.name for layer in found.layers for half in (layer.g, layer.v)}
            wanted = [name for name in tensors if name not in known and selection.wants(name)]
            of_state += _plain_rows(elements, state, folded, wanted, all_weights=all_weights)
        rows += of_state
    return Inspection(
        source="",
        container="state dict",
        version="",
        bytes=sum(state.bytes for state in states),
        parameters=sum(state.parameters for state in states),
        dtypes=dict(dtypes.most_common()),
        devices=tuple(
            dict.fromkeys(tensor.location for state in tree.state_dicts for tensor in state.tensors.values())
        ),
        state_dicts=tuple(states),
        siblings=tuple(SiblingSummary(item.path, item.kind, 0) for item in tree.siblings),
        layers=tuple(rows),
        kinds=tuple(_kinds(tree)),
        fold=fold_in_words(tree, rows),
        split=split_in_words(tree),
        migrate=migrate_in_words(tree),
        notes=tuple(notes),
    )


# -- rows


def _rows(
    elements: Elements, state: StateDict, found: FoundPairs, selection: Selection, *, full: bool
) -> Iterator[LayerStats]:
    tensors = state.tensors
    tied: dict[object, list[str]] = {}
    for layer in found.layers:
        tied.setdefault(_views(tensors, layer.g.name, layer.v.name), []).append(layer.name)
    for layer in found.layers:
        if selection.wants(layer.name):
            g, v = tensors[layer.g.name], tensors[layer.v.name]
            stats = layer_stats(elements, state.path, layer, g, v, full=full)
            twins = [name for name in tied[_views(tensors, g.info.name, v.info.name)] if name != layer.name]
            yield replace(stats, flags=(*stats.flags, f"tied to {twins[0]}")) if twins else stats
    for refused in found.refused:
        if selection.wants(refused.name):
            yield LayerStats(state.path, refused.name, "refused", None, (), "", 0, flags=("refused",))
    for name in _plain_siblings(tensors, found):
        if selection.wants(name):
            stats = plain_stats(elements, state.path, tensors[name], form="plain", dim=0, read=full)
            yield replace(stats, flags=(*stats.flags, "plain among normalized siblings"))


def _views(tensors: Mapping[str, StoredTensor], g: str, v: str) -> object:
    """Equal for two layers that are tied."""
    return tensors[g].view, tensors[v].view


def _plain_siblings(tensors: Mapping[str, StoredTensor], found: FoundPairs) -> Iterator[str]:
    """Plain weights in the place of a layer: a module of the same name but for numbers, of the same rank."""

    def place(name: str, rank: int) -> tuple[str, int]:
        return re.sub(r"\d+", "#", name), rank

    places = {place(layer.name, len(layer.v.shape)) for layer in found.layers}
    for name, tensor in tensors.items():
        rank = len(tensor.info.shape)
        if rank > 1 and tensor.info.dtype.foldable and place(name, rank) in places:
            yield name


def _plain_rows(
    elements: Elements,
    state: StateDict,
    folded: Mapping[str, int | None],
    names: Iterable[str],
    *,
    all_weights: bool,
) -> Iterator[LayerStats]:
    """Those of ``names`` that were folded, and with ``all_weights`` every weight that is no vector."""
    tensors = state.tensors
    for tensor in (tensors[name] for name in names if tensors[name].info.dtype.foldable):
        name = tensor.info.name
        if name in folded:
            yield plain_stats(elements, state.path, tensor, form="folded", dim=folded[name], read=True)
        elif all_weights and len(tensor.info.shape) > 1:
            yield plain_stats(elements, state.path, tensor, form="plain", dim=0, read=True)


def _folded(tree: Tree, state: StateDict) -> dict[str, int | None]:
    """Layers that the record says were folded and that are there as it says: weight and dim."""
    tensors = state.tensors
    found: dict[str, int | None] = {}
    for step in tree.record:
        for layer in step["state_dicts"].get(state.path, ()) if step["verb"] == "fold" else ():
            name, dim, v = (
                (layer.get(key) for key in ("name", "dim", "v")) if isinstance(layer, dict) else ("",) * 3
            )
            stored = tensors.get(name) if isinstance(name, str) else None
            if stored is None or not isinstance(v, dict) or v.get("shape") != list(stored.info.shape):
                continue
            if dim is None or (isinstance(dim, int) and 0 <= dim < len(stored.info.shape)):
                found[str(name)] = dim
    return found


def _kinds(tree: Tree) -> Iterator[KindSummary]:
    for state in tree.state_dicts:
        for found in find_kinds(tensor.info for tensor in state.tensors.values()):
            kind = found.kind
            yield KindSummary(state.path, kind.name, found.count, found.example, kind.folds, kind.how)


def _with_pickle(found: Inspection, checkpoint: Checkpoint) -> Inspection:
    """What only a pickle tells: sizes of siblings, optimizers, devices of all storages, names of classes."""
    opened = checkpoint.torch
    if opened is None:
        # safetensors names none
        devices = () if checkpoint.container is Container.SAFETENSORS else found.devices
        return replace(found, devices=devices)
    siblings = [*opened.contents.siblings, *((item.path, item.node) for item in opened.contents.optimizers)]
    kinds = {item.path: item.kind for item in checkpoint.tree.siblings}
    kinds |= dict.fromkeys(checkpoint.tree.optimizers, "optimizer")
    storages = [read_storage(value) for value in walk(opened.pickle.root) if isinstance(value, PersistentId)]
    script = checkpoint.container is Container.TORCHSCRIPT
    return replace(
        found,
        version=f"{opened.version}, pickle protocol {opened.pickle.protocol}",
        siblings=tuple(
            SiblingSummary(path, kinds.get(path, ""), _tensor_bytes(value) + len(dump(value, 2)))
            for path, value in siblings
        ),
        devices=tuple(dict.fromkeys(storage.location for storage in storages if storage)),
        foreign=() if script else tuple(foreign_names(opened.pickle.root)),
        dangerous=() if script else tuple(dangerous_names(opened.pickle.root)),
    )


def _tensor_bytes(value: Value) -> int:
    storages = (read_storage(item) for item in walk(value) if isinstance(item, PersistentId))
    return sum({storage.key: storage.nbytes for storage in storages if storage}.values())


def inspect_state_dict(
    state_dict: Mapping[str, Any],
    *,
    layers: Iterable[str] = (),
    full: bool = False,
    all_weights: bool = False,
) -> Inspection:
    """Inspect a state dict in memory: its layers, their magnitudes, what folding it would do.

    Values and options as for ``fold_state_dict`` and ``inspect_file``. Raises ``ArgumentError`` where there
    is no tensor in ``state_dict``, but in a mapping inside it.

    >>> import numpy as np
    >>> found = inspect_state_dict({"weight_g": np.float32([[10]]), "weight_v": np.float32([[3, 4]])})
    >>> found.layers[0].g.mean, found.fold
    (10.0, 'would make 1 plain weight')
    """
    with options_as_python():
        tree, values = tree_of(state_dict)
        return inspect_tree(tree, InMemory(values), layers=layers, full=full, all_weights=all_weights)
