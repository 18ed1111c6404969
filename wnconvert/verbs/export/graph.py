"""The graph that an exporter wrote: its initializers named, the folded model written, both checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from wnconvert.errors import ArgumentError, InputError, UnfoldedError, VerifyError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.layers.kinds.table import ALL
from wnconvert.messages import counted, listed
from wnconvert.onnx.file.model import Graph
from wnconvert.onnx.file.provenance import made_step
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.graph.layers import find_graph_layers
from wnconvert.onnx.graph.plan import OnnxFold, weights_computed
from wnconvert.plan.plan import ComputedWeight, PlannedConstant
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.sources import Source
from wnconvert.storage.staging import check_target, free_name, staged_folder
from wnconvert.storage.workers import Workers
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.memory import array_of
from wnconvert.verbs.conversion.onnx.check import refused
from wnconvert.verbs.conversion.onnx.fold import model_layouts, own_data_of, remove_unused, write_model
from wnconvert.verbs.conversion.onnx.record import append_record
from wnconvert.verbs.conversion.state_dict import fold_state_dict
from wnconvert.verbs.export.names import biases_of, names_of
from wnconvert.verbs.models.proof.functions import Exportable
from wnconvert.verbs.models.proof.report import ExportReport

__all__ = [
    "check_exported",
    "check_folded",
    "check_given",
    "check_no_residual",
    "computed_in",
    "graph_of",
    "left_in_graph",
    "naming_of",
    "nodes_of",
    "parameters_of",
    "record_export",
    "residual_of",
    "take_out_data",
    "tensors_sha256",
    "with_reasons",
    "write_failed",
    "write_folded",
]


def graph_of(checkpoint: Checkpoint) -> OnnxFile:
    """The model in an opened file. Raises ``InputError`` if it does not hold one."""
    if checkpoint.onnx is None:
        raise InputError(
            f"a checkpoint ({checkpoint.container}), not an ONNX model",
            where=str(checkpoint.path),
            fix="give the .onnx file first, then MODEL",
        )
    return checkpoint.onnx


def nodes_of(graph: OnnxFile) -> int:
    """The number of nodes of a model, those in subgraphs and functions among them."""
    return sum(len(scope.nodes) for scope in graph.model.scopes())


def residual_of(graph: OnnxFile) -> tuple[str, ...]:
    """The names of layers whose weight norm the model still computes."""
    found = find_graph_layers(graph.model)
    return (*(item.layer.name for item in found.layers), *(refusal.name for refusal in found.refused))


def computed_in(graph: OnnxFile) -> tuple[ComputedWeight, ...]:
    """The weights that the model computes of stored tensors at every run, those of known layers too."""
    found = find_graph_layers(graph.model, ALL)
    return weights_computed(graph.model, found)


def left_in_graph(fold: OnnxFold) -> str:
    """What an exporter left in the graph and a fold takes out of it, in words."""
    layers = f"{counted(len(fold.layers), 'layer')} that the exporter left in the graph"
    said = layers if fold.layers else "no weight norm was left in the graph"
    return ", ".join([said, *PlannedConstant.counts(fold.plan.constants)])


def with_reasons(computed: Sequence[ComputedWeight], fold: OnnxFold | None) -> tuple[ComputedWeight, ...]:
    """Weights that a model computes, with the reasons of the fold that left them, if there was one.

    Names of tensors may be others since; the nodes that use them are the same.
    """
    known = () if fold is None else fold.plan.computed
    left = {(weight.state_dict, weight.node): weight for weight in known}
    found = ((weight, left.get((weight.state_dict, weight.node), weight)) for weight in computed)
    return tuple(replace(weight, reason=same.reason, fix=same.fix) for weight, same in found)


# -- names


#: Ops that a batch norm may be fused into; not Gemm, whose weight may be an embedding's.
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def parameters_of(model: Exportable) -> dict[str, Array]:
    """Parameters and buffers by name, each once, folded."""
    if isinstance(model, (ExportedProgram, torch.jit.ScriptModule)):
        values: dict[str, Any] = (
            dict(model.state_dict) if isinstance(model, ExportedProgram) else model.state_dict()
        )
        with suppress(WnconvertError):  # only names depend on it
            values = fold_state_dict(values)
    else:
        values = dict((*model.named_parameters(), *model.named_buffers()))
    return {name: array_of(value) for name, value in values.items() if isinstance(value, torch.Tensor)}


@dataclass(frozen=True, slots=True)
class NamedInitializers:
    """New names of initializers, by the old; how many weights had their names, and how many get none.

    A weight has more than one element: numbers of the graph are not counted.

    >>> print(NamedInitializers({"val_3": "lin.weight"}, 2, 1))
    1 initializer after layers
    >>> print(NamedInitializers({}, 3, 0))
    every weight had its layer's name
    >>> print(NamedInitializers({}, 3, 1))
    3 of 4 weights had their layers' names
    """

    new: Mapping[str, str]
    already: int
    others: int

    def __str__(self) -> str:
        if self.new:
            return f"{counted(len(self.new), 'initializer')} after layers"
        if self.already and self.others:
            return f"{self.already} of {self.already + self.others} weights had their layers' names"
        if self.already:
            return "every weight had its layer's name"
        return "no weight comes from one layer" if self.others else "no weight is an initializer"


def naming_of(exported: Checkpoint, fold: OnnxFold, parameters: Mapping[str, Array]) -> NamedInitializers:
    """New names for the initializers of floats that a fold keeps: the parameters' names, if they are free.

    Initializers that have a parameter's name already are not read.
    """
    graph = graph_of(exported).model.graph
    fixed = {port.name for port in graph.inputs} | set(graph.outputs)
    found: dict[str, Array] = {}
    with Source(exported.shards) as source:
        for constant in graph.constants:
            tensor = constant.tensor
            if constant.record.start in fold.edits.dropped or constant.name in fixed or tensor is None:
                continue
            if constant.name in parameters:
                found[constant.name] = parameters[constant.name]
            elif tensor.info.dtype.foldable:
                found[constant.name] = source.whole(tensor)
    taken = {tensor.name for tensor in fold.edits.tensors} | fixed
    for scope in graph_of(exported).model.scopes():
        taken |= {name for node in scope.nodes for name in node.outputs}
        if isinstance(scope, Graph) and scope is not graph:
            taken |= {constant.name for constant in scope.constants} | {port.name for port in scope.inputs}
    names = names_of(found, parameters)
    operands = [node.inputs[1:] for node in graph.nodes if node.op in _CONVOLUTIONS and len(node.inputs) == 3]
    free = {name: array for name, array in found.items() if name not in parameters}
    names |= biases_of([(weight, bias) for weight, bias in operands if bias in free], names)
    taken |= found.keys() - names.keys()
    new = {old: new for old, new in names.items() if new not in taken}
    others = [name for name, array in free.items() if name not in new and array.size > 1]
    return NamedInitializers(new, len(found) - len(free), len(others))


# -- files


def write_folded(exported: Checkpoint, fold: OnnxFold, folder: Path, target: Path) -> None:
    """Write an exported model into a folder as planned. It is proven later to compute the same.

    Raises ``OutputError`` if the disk is too full.
    """
    layouts = model_layouts(graph_of(exported), fold, target)
    check_target(target, force=True, size=sum(layout.size for layout in layouts.values()))
    write_model(exported, layouts, folder, target, workers=Workers(None))


def take_out_data(path: Path) -> None:
    """Move the weights of a model into a file beside it, for an exporter that cannot do so."""
    import onnx

    model = onnx.load(str(path))
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")


def record_export(path: Path, report: ExportReport, folded: Mapping[str, str]) -> int:
    """Write the record of an export behind the model that is proven; the bytes of the model then.

    ``folded`` are the kinds of the layers that were folded. The source is told by the SHA-256 of the module's
    tensors.
    """
    proof = report.proof
    tolerance: dict[str, float | None] = {
        "rtol": proof.rtol,
        "atol": proof.atol,
        "min_snr": proof.leniency.min_snr,
    }
    samples = f"{counted(len(proof.samples), 'sample')} in onnxruntime"
    step = made_step(
        "export",
        sha256=[report.reference_sha256],
        folded=folded,
        proof=f"{samples} beside {report.reference}",
        tolerance={**tolerance, "outliers": proof.leniency.outliers},
        constants=[item.name for item in report.constants],
    )
    return report.size + append_record(path, (), step)


def tensors_sha256(model: Exportable) -> str:
    """The SHA-256 of a module's tensors: of name, dtype, shape and bytes of each, by their names."""
    found = hashlib.sha256()
    named = dict((*model.named_parameters(), *model.named_buffers()))
    for name in sorted(named):
        value = named[name].detach()
        found.update(f"{name}:{value.dtype}:{list(value.shape)};".encode())
        if not value.is_meta and value.layout is torch.strided and not value.is_quantized:
            found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_failed(exported: Checkpoint, fold: OnnxFold, target: Path, *, force: bool) -> tuple[str, ...]:
    """Keep a model that failed the proof under a name that says so; returns notes.

    Without ``force`` the name is one that nothing has.
    """
    named = target.with_name(f"{target.name.removesuffix('.onnx')}.failed")
    failed = target.with_name(f"{named.name}.onnx" if force else free_name(named, ".onnx"))
    before = own_data_of(failed)
    with staged_folder(failed, force=force) as folder:
        write_folded(exported, fold, folder, failed)
    return (f"the model that failed is kept as {failed}", *remove_unused(before, failed, ()))


# -- checks


_REPORT = "please report it as a bug"


def check_given(graph: OnnxFile) -> None:
    """Raise ``InputError`` if onnx's checker refuses a model."""
    if said := refused(Path(graph.path), full_check=True):
        raise InputError(f"onnx.checker refuses it: {said}", where=str(graph.path), fix="export it again")


def check_exported(graph: OnnxFile, raw: OnnxFile, target: Path) -> None:
    """Check a model that was made of the exporter's ``raw`` graph with onnx's checker.

    Raises ``VerifyError`` if it refuses the model, or ``ArgumentError`` if it refuses ``raw`` too.
    """
    if said := refused(Path(graph.path), full_check=True):
        if refused(Path(raw.path), full_check=True):
            raise ArgumentError(
                f"torch's exporter wrote a model that onnx.checker refuses: {said}",
                where=str(target),
                fix="choose another --opset (22 for bfloat16) or --exporter, or export in float32",
            )
        raise VerifyError(f"onnx.checker refuses the export: {said}", where=str(target), fix=_REPORT)


def check_no_residual(names: Sequence[str], target: Path) -> None:
    """Raise ``VerifyError`` if layers of these names still have weight norm in a folded graph."""
    if names:
        raise VerifyError(
            f"weight norm is left in the graph: {listed(names)}", where=str(target), fix=_REPORT
        )


def check_folded(weights: Sequence[ComputedWeight], target: Path) -> None:
    """Raise ``UnfoldedError`` if a model computes weights at every run."""
    if weights:
        heading, *reasons = ComputedWeight.told(weights)
        raise UnfoldedError(heading, where=str(target), fix="; ".join(reasons))
