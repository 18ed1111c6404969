"""An ONNX model inspected: weight norm in its graph, plain weights, and the magnitudes of both."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from wnconvert.frozen import dataclass
from wnconvert.layers.kinds.formulas import formula_notes
from wnconvert.layers.kinds.others import hints_on
from wnconvert.layers.rules import ORIGINAL, G
from wnconvert.messages import counted, told
from wnconvert.onnx.file.model import Node
from wnconvert.onnx.file.reader import OnnxFile, stored_in
from wnconvert.onnx.graph.computed import GraphLayer
from wnconvert.onnx.graph.index import Index, ValueId, index_of
from wnconvert.onnx.graph.layers import GraphLayers, find_graph_layers
from wnconvert.onnx.graph.plan import weights_left
from wnconvert.plan.plan import ComputedWeight
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.files import status_of
from wnconvert.storage.sources import Source
from wnconvert.storage.workers import Workers
from wnconvert.tensors.blocks import Elements
from wnconvert.tensors.tree import StateDict, StoredTensor
from wnconvert.tensors.views.dequantized import Dequantized
from wnconvert.tensors.views.quantization import Quantize, ViewedTensor
from wnconvert.verbs.inspection.health import Fault, health_of
from wnconvert.verbs.inspection.magnitudes import LayerStats
from wnconvert.verbs.inspection.request import InspectRequest
from wnconvert.verbs.inspection.result import Inspection, StateDictSummary
from wnconvert.verbs.inspection.rows import (
    MadeRows,
    RowTask,
    computed_task,
    layer_task,
    plain_task,
    refused_task,
    rows_made,
)
from wnconvert.verbs.inspection.summaries.counts import bytes_held, counts_of

if TYPE_CHECKING:
    from wnconvert.onnx.file.reader import OnnxFile

__all__ = ["GraphInspection", "graph_layers", "inspect_onnx"]


@dataclass(frozen=True, slots=True)
class GraphInspection:
    """The rows of an inspection, by the paths of their scopes; ``fold`` is the forecast of folding.

    ``computed`` are the weights that would still be computed at every run after it.
    """

    made: MadeRows
    fold: str
    computed: tuple[ComputedWeight, ...] = ()
    notes: tuple[str, ...] = ()


def graph_layers(
    opened: OnnxFile, elements: Elements, request: InspectRequest, workers: Workers
) -> GraphInspection:
    """The normalized layers of an ONNX model, and its plain weights.

    Of weight norm g is read, and v for a full inspection. Of plain weights that convolutions, products and
    recurrent layers use, the norms of rows are computed; a request for all weights adds every other tensor
    of two and more dimensions.
    """
    found = find_graph_layers(opened.model)
    computed = weights_left(opened.model, found)
    halves = {(item.path, half.name) for item in found.layers for half in item.parts.values()}
    plain = _plain(opened, elements, request, halves)
    rows = (*_normed(elements, found, request), *_computed(computed, found, request), *plain)
    made = rows_made(rows, workers)
    refused = ((item.name, item.reason) for item in found.refused)
    notes = [*told(refused, " is refused: ", " are refused: "), *hints_on(found.others, (), ())]
    notes += [*opened.provenance.notes, *formula_notes(item.layer for item in found.layers)]
    notes += told(_schemes(found.layers), " has ", " have ")
    if opened.has_training:
        notes.append("the file has training graphs, which use weights too")
    return GraphInspection(made, _fold_in_words(found, computed, made.rows), computed, tuple(notes))


def _normed(elements: Elements, found: GraphLayers, request: InspectRequest) -> Iterator[RowTask]:
    for item in found.layers:
        g, v = (item.parts[role].tensor for role in (G, ORIGINAL))
        if request.selection.wants(item.layer.name) and g is not None and v is not None:
            yield layer_task(elements, item.path, item.layer, g, v, full=request.full)
    for refused in found.refused:
        if request.selection.wants(refused.name):
            yield refused_task("", refused.name)


def _computed(
    computed: Iterable[ComputedWeight], found: GraphLayers, request: InspectRequest
) -> Iterator[RowTask]:
    """The weights that are computed in a way that does not fold, but for those that are refused."""
    refused = {item.name for item in found.refused}
    for weight in computed:
        if weight.name not in refused and request.selection.wants(weight.name):
            yield computed_task(weight.state_dict, weight.name)


def _schemes(layers: Iterable[GraphLayer]) -> Iterator[tuple[str, str]]:
    """Which layers have tensors in codes, or are rounded to codes by the graph, and how."""
    for item in layers:
        for role, part in item.parts.items():
            made = part.tensor.made if isinstance(part.tensor, ViewedTensor) else None
            if isinstance(made, Dequantized):
                yield item.layer.name, f"{'v' if role == ORIGINAL else role} in codes ({made.how})"
        last = {weight.view.steps[-1] for weight in item.weights if weight.view.steps}
        for step in last:
            if isinstance(step, Quantize):
                yield item.layer.name, f"a weight that the graph rounds to codes at every run ({step.how})"


def _plain(
    opened: OnnxFile, elements: Elements, request: InspectRequest, halves: set[tuple[str, str]]
) -> Iterator[RowTask]:
    """Stored tensors that nodes use as weights, each along the axis of its outputs (or dim 0)."""
    index = index_of(opened.model)
    dims = dict(_weights(index))
    for scope in opened.model.scopes():
        for constant in stored_in(scope):
            stored, place = constant.tensor, (scope.path, constant.name)
            if stored is None or not _is_weight(stored) or place in halves:
                continue
            if (place in dims or request.all_weights) and request.selection.wants(constant.name):
                dim = dims.get(place, 0) % len(stored.info.shape)
                yield plain_task(elements, scope.path, stored, form="plain", dim=dim)


def _is_weight(stored: StoredTensor) -> bool:
    return stored.info.dtype.foldable and len(stored.info.shape) > 1


def _weights(index: Index) -> Iterator[tuple[ValueId, int]]:
    """The values that nodes use as weights, each with the axis whose places have a norm of their own."""
    for value, users in index.users.items():
        for _, node in users:
            dim = _dim(node, value[1])
            if dim is not None:
                yield value, dim


def _dim(node: Node, name: str) -> int | None:
    """The dim of a value as the weight of a node, as torch counts it; None if the node has no such weight."""
    if node.domain not in ("", "ai.onnx") or name not in node.inputs:
        return None
    position = node.inputs.index(name)
    if node.op in ("Conv", "ConvTranspose") and position == 1:
        return 0
    if node.op in ("RNN", "LSTM", "GRU") and position in (1, 2):
        return 1
    if node.op == "Gemm" and position == 1:
        transposed = node.attributes.get("transB")
        return 0 if transposed is not None and transposed.value else 1
    if node.op == "MatMul" and position in (0, 1):
        return -1 if position else -2
    return None


def _fold_in_words(found: GraphLayers, computed: Sequence[ComputedWeight], rows: Sequence[LayerStats]) -> str:
    bad = [row.name for row in rows if row.form == "onnx" and row.has_nonfinite]
    zero = [row.name for row in rows if row.form == "onnx" and row.zero_rows]
    if bad or zero:
        return f"would refuse the numbers of {(bad + zero)[0]} (see the flags)"
    if found.refused:
        first = found.refused[0]
        return f"would refuse {first.name}: {first.reason} ({first.fix})"
    if found.layers:
        return f"would make {counted(len(found.layers), 'plain weight')}"
    known = " that wnconvert knows" if computed else ""
    return f"nothing to fold: no weight norm{known} is left in the graph"


def inspect_onnx(checkpoint: Checkpoint, opened: OnnxFile, request: InspectRequest) -> Inspection:
    """Inspect an ONNX model: its state dicts are the scopes that store tensors."""
    tree = checkpoint.tree
    with Source(checkpoint.shards, opener=checkpoint.reopen) as source:
        workers = Workers(None if request.reads_weights else 1)
        found = graph_layers(opened, source, request, workers)
        faults = (
            Fault("zero rows", row.state_dict, row.name, row.zero_rows, weight=row.name)
            for row in found.made.rows
            if row.form == "onnx" and row.zero_rows
        )
        finite = found.made.finite
        health = health_of(tree, source, request.selection, faults, finite, workers) if request.full else None
    counts = counts_of(tree.state_dicts)
    return Inspection(
        source=os.fspath(checkpoint.path),
        container=str(checkpoint.container),
        version=opened.version,
        bytes=sum(status_of(path).size for path in checkpoint.shards),
        parameters=sum(counts.parameters.values()),
        parameters_by_name=counts.by_name,
        dtypes=counts.parameters,
        buffers=counts.buffers,
        devices=(),
        state_dicts=tuple(_summary(state, found.made.rows) for state in tree.state_dicts),
        siblings=(),
        layers=found.made.rows,
        kinds=(),
        fold=found.fold,
        split="",
        migrate="",
        notes=(*checkpoint.tree.notes, *found.notes),
        health=health,
        computed=found.computed,
    )


def _summary(state: StateDict, rows: Iterable[LayerStats]) -> StateDictSummary:
    counts, tensors = counts_of([state]), state.tensors
    return StateDictSummary(
        state.path,
        len(tensors),
        sum(counts.parameters.values()),
        sum(counts.buffers.values()),
        bytes_held(tensors.values()),
        dict(Counter(row.form for row in rows if row.state_dict == state.path)),
    )
