"""An ONNX model that is there already, proven equal to a module or to another model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from wnconvert.messages import counted
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.runtime import Opened, open_model, run
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.tensors.blocks import Array
from wnconvert.verbs.conversion.onnx_check import check_installed
from wnconvert.verbs.conversion.targets import StrPath
from wnconvert.verbs.export.exporters import EXPORTERS
from wnconvert.verbs.export.graph import check_given, graph_of, nodes_of, residual_of
from wnconvert.verbs.export.request import (
    exporter_for,
    names_in,
    renamed_outputs,
    requested_signature,
    unused_inputs,
)
from wnconvert.verbs.modules.find import find_live
from wnconvert.verbs.options import texts_of
from wnconvert.verbs.proof.functions import Exportable, function_of, unwrapped
from wnconvert.verbs.proof.proof import ATOL, RTOL, NumericFunction, Proof, prove, steady_run
from wnconvert.verbs.proof.report import ExportReport, TimedStep, TimedSteps
from wnconvert.verbs.proof.running import evaluating
from wnconvert.verbs.proof.samples import Sample, samples_of
from wnconvert.verbs.proof.signatures import Range, Signature, check_outputs

__all__ = ["check_onnx", "checked_options", "describe", "proven_equal"]


def check_onnx(
    path: StrPath,
    reference: Exportable,
    *,
    inputs: Any,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    outputs: Sequence[str] = (),
    rtol: float = RTOL,
    atol: float = ATOL,
    samples: int = 4,
    seed: int = 0,
    progress: Callable[[TimedStep], None] = lambda step: None,
) -> ExportReport:
    """Run an ONNX model in onnxruntime beside a module in torch, and compare.

    Arguments as for ``export_onnx``. Outputs of the module that are not called as the model's are compared
    in their order. Returns a report that is true where all outputs are equal. Raises as ``export_onnx``
    does; the module is left as it was. There is an example at ``export_onnx``.
    """
    source, reference = Path(path), unwrapped(reference)
    check_installed()
    exporter_for(reference, EXPORTERS[0])
    steps, outputs = TimedSteps(progress), texts_of(outputs)
    check_outputs(outputs)
    signature = requested_signature(reference, inputs, ranges, dynamic)
    drawn = samples_of(signature, samples, seed)
    size, written, left = checked_options(source, steps, partial(check_given, target=source))
    opened = open_model(source)
    with evaluating(reference) as forget:
        first = steady_run(function_of(reference, outputs), signature, drawn[0], rtol=rtol, atol=atol)
        names = outputs or names_in(opened, tuple(first.outputs))
        function, first = function_of(reference, names), renamed_outputs(first, names)
        proof = proven_equal(
            function, opened, signature, drawn, steps, first=first, forget=forget, rtol=rtol, atol=atol
        )
    return ExportReport(
        model=str(source),
        size=size,
        reference=describe(reference),
        proof=proof,
        opset=written.model.opsets.get(""),
        residual_weight_norm=left,
        nodes=nodes_of(written),
        steps=tuple(steps.every),
        notes=(*signature.notes, *unused_inputs(opened, signature), *proof.notes),
    )


def describe(model: Exportable) -> str:
    """The reference in words."""
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        kind = f"the TorchScript {model.original_name}"
    elif isinstance(model, ExportedProgram):
        kind = "the exported program"
    else:
        cls = type(model)
        kind = (cls.__bases__[0] if cls.__name__.startswith("Parametrized") else cls).__name__
        kind += ", unfolded," if find_live(model).layers else ""
    return f"{kind} in torch {torch.__version__}"


def checked_options(
    path: Path, steps: TimedSteps, check: Callable[[OnnxFile], None]
) -> tuple[int, OnnxFile, int]:
    """Have onnx's checker read a model; its bytes, the model, and the layers of weight norm in it."""
    with steps("check") as step:
        opened = open_checkpoint(path)
        graph = graph_of(opened)
        check(graph)
        left = residual_of(graph)
        step.detail = f"onnx.checker; {counted(left, 'layer')} of weight norm left"
    return sum(shard.stat().st_size for shard in opened.shards), graph, left


def proven_equal(
    reference: NumericFunction,
    opened: Opened,
    signature: Signature,
    drawn: Sequence[Sample],
    steps: TimedSteps,
    **options: Any,
) -> Proof:
    """The model against its reference; what the exporter left out of the inputs is not fed."""
    there = {port.name for port in opened.inputs}

    def candidate(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return run(opened, {name: array for name, array in feeds.items() if name in there})

    with steps("run") as step:
        proof = prove(reference, candidate, signature, samples=drawn, **options)
        step.detail = f"{counted(len(drawn), 'sample')}, torch and onnxruntime"
    return proof
