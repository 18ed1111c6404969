"""A module exported to ONNX, folded, and proven equal to itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from wnconvert.errors import ArgumentError, LayerError, WnconvertError
from wnconvert.messages import counted
from wnconvert.onnx.graph.edits import renamed
from wnconvert.onnx.graph.plan import OnnxFold, plan_onnx
from wnconvert.onnx.runtime import open_model
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.staging import free_name, staged_folder
from wnconvert.verbs.conversion.onnx import own_data_of, remove_unused
from wnconvert.verbs.conversion.onnx_check import check_installed
from wnconvert.verbs.conversion.targets import StrPath
from wnconvert.verbs.export.check import checked_options, describe, proven_equal
from wnconvert.verbs.export.exporters import export_raw
from wnconvert.verbs.export.graph import (
    check_exported,
    graph_of,
    new_names,
    nodes_of,
    parameters_of,
    take_out_data,
    write_folded,
)
from wnconvert.verbs.export.graph import keep_failed as keep_failed_at
from wnconvert.verbs.export.request import (
    check_dynamic,
    check_opset,
    exporter_for,
    output_names,
    renamed_outputs,
    requested_signature,
    unused_inputs,
)
from wnconvert.verbs.modules.convert import folded
from wnconvert.verbs.modules.find import find_live
from wnconvert.verbs.options import texts_of
from wnconvert.verbs.proof.functions import Exportable, function_of, tensors_of, unwrapped
from wnconvert.verbs.proof.proof import ATOL, RTOL, steady_run
from wnconvert.verbs.proof.report import ExportReport, TimedStep, TimedSteps
from wnconvert.verbs.proof.running import evaluating
from wnconvert.verbs.proof.samples import export_arrays, samples_of
from wnconvert.verbs.proof.signatures import Range, Signature, check_outputs

__all__ = ["export_onnx"]


def export_onnx(
    module: Exportable,
    path: StrPath,
    *,
    inputs: Any,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    outputs: Sequence[str] = (),
    opset: int | None = None,
    exporter: str = "dynamo",
    external_data: bool = False,
    rtol: float = RTOL,
    atol: float = ATOL,
    samples: int = 4,
    seed: int = 0,
    keep_failed: bool = False,
    force: bool = False,
    progress: Callable[[TimedStep], None] = lambda step: None,
) -> ExportReport:
    """Export a module to ONNX with weight norm folded, and prove that the result computes the same.

    ``inputs`` are texts (``"mel=float32[1,80,T]"``, ``"ids=int64[1,L]<100"``) or example tensors, by name
    or in the order of ``forward``; ``dynamic`` gives axes of examples a letter (``{"mel": {2: "T"}}``) and
    ``ranges`` the sizes of letters (``"T=16..400"``). ``outputs`` are names of the outputs, flattened. A
    copy is folded and exported by torch (``exporter``: ``"dynamo"`` or ``"torchscript"``) in eval mode; what
    weight norm the exporter left is folded in the graph. The module itself, unfolded and in eval mode, is
    then run beside the file in onnxruntime, on ``samples`` of other values and sizes than were exported, and
    is left as it was. ``progress`` is told each step when it is done.

    Returns a report that is true where all outputs are equal within ``atol + rtol·|module's|``. Only then is
    there a file at ``path``; else ``keep_failed`` keeps it as ``model.failed.onnx``.

    Raises ``WnconvertError``: ``ArgumentError`` for inputs that the module does not have, or what the
    exporter refuses; ``InputError`` for a module that is stochastic; ``LayerError``, ``OutputError``,
    ``VerifyError``. Nothing is written then. Source of the exporters: ``torch.onnx.export``.

    >>> from tempfile import TemporaryDirectory
    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> module = weight_norm(torch.nn.Linear(3, 2))
    >>> with TemporaryDirectory() as folder:
    ...     path = f"{folder}/m.onnx"
    ...     report = export_onnx(module, path, inputs="input=float32[B,3]", exporter="torchscript")
    ...     again = check_onnx(path, module, inputs="input=float32[B,3]")
    >>> bool(report), report.residual_weight_norm, [output.name for output in report.outputs], bool(again)
    (True, 0, ['output'], True)
    """
    target, module = Path(path), unwrapped(module)
    check_installed()
    exporter, notes = exporter_for(module, exporter)
    steps, outputs = TimedSteps(progress), texts_of(outputs)
    check_outputs(outputs)
    signature = requested_signature(module, inputs, ranges, dynamic)
    drawn = samples_of(signature, samples, seed)
    old = own_data_of(target) if force else ()
    with evaluating(module) as forget:
        # Before an export, which takes longer: whether the module runs, and gives the same again.
        first = steady_run(function_of(module, outputs), signature, drawn[0], rtol=rtol, atol=atol)
        forget()
        names = output_names(module, signature, first, outputs)
        first = renamed_outputs(first, names)
        reference = function_of(module, names)
        try:
            with staged_folder(target, force=force) as folder, errors_name(folder, target):
                copy, layers = _copy(module, steps)
                raw = folder / "raw"
                raw.mkdir()
                exported = _exported(
                    copy,
                    signature,
                    raw / "raw.onnx",
                    steps,
                    exporter=exporter,
                    outputs=names,
                    opset=opset,
                    external_data=external_data,
                )
                graph = graph_of(exported)
                fold, named = _planned(exported, copy, steps)
                write_folded(exported, fold, folder / target.name, free_name(target))
                size, written, left = checked_options(
                    folder / target.name, steps, partial(check_exported, raw=graph, target=target)
                )
                opened = replace(open_model(folder / target.name), path=target)  # as it is told
                check_dynamic(opened, signature, exporter)
                proof = proven_equal(
                    reference,
                    opened,
                    signature,
                    drawn,
                    steps,
                    first=first,
                    forget=forget,
                    rtol=rtol,
                    atol=atol,
                )
                report = ExportReport(
                    model=str(target),
                    size=size,
                    reference=describe(module),
                    proof=proof,
                    opset=written.model.opsets.get(""),
                    residual_weight_norm=left,
                    exporter=exporter,
                    nodes_exported=nodes_of(graph),
                    nodes=nodes_of(written),
                    folded_in_module=layers,
                    folded_in_graph=len(fold.layers),
                    initializers_named=named,
                    notes=(*notes, *signature.notes, *unused_inputs(opened, signature), *proof.notes),
                )
                if not proof:
                    # Out of the block, which else would put the model in place.
                    raise _UnequalError(
                        replace(report, notes=(*report.notes, *keep_failed_at(exported, fold, target)))
                        if keep_failed
                        else report
                    )
                shutil.rmtree(raw)
        except _UnequalError as unequal:
            return replace(unequal.report, steps=tuple(steps.every))
    deleted = tuple(remove_unused(old, target, ()))
    return replace(report, steps=tuple(steps.every), notes=(*report.notes, *deleted))


class _UnequalError(Exception):
    """The export computes something else."""

    def __init__(self, report: ExportReport) -> None:
        super().__init__()
        self.report = report


@contextmanager
def errors_name(folder: Path, target: Path) -> Iterator[None]:
    """Errors name the file that was asked for, not the place where it is made."""
    try:
        yield
    except WnconvertError as error:
        for made in (folder / target.name, folder / "raw" / "raw.onnx"):
            error.where = error.where.replace(str(made), str(target))
        raise


# -- the parts


def _copy(module: Exportable, steps: TimedSteps) -> tuple[Exportable, int]:
    """What is exported: a folded copy, or what cannot be folded but in the graph."""
    if isinstance(module, (ExportedProgram, torch.jit.ScriptModule)):
        return module, 0
    with steps("fold") as step:
        layers = len(find_live(module).layers)
        try:
            copy = folded(module).to("cpu")
        except ArgumentError as error:
            if "copied" in error.what:  # what is advised there, to fold in place, does not help here
                error.fix = "take what cannot be copied off the module before the export"
            raise
        except LayerError as error:  # as above: these are arguments of a fold
            error.fix = f"fold before the export, a checkpoint or by fold_module: {error.fix}"
            raise
        for each in copy.modules():
            each.training = False
        step.detail = f"{counted(layers, 'layer')} in a copy"
    return copy, layers


def _exported(
    copy: Exportable,
    signature: Signature,
    path: Path,
    steps: TimedSteps,
    *,
    exporter: str,
    outputs: Sequence[str],
    opset: int | None,
    external_data: bool,
) -> Checkpoint:
    """What torch's exporter makes of a copy, opened."""
    with steps("export") as step:
        export_raw(
            copy,
            tensors_of(export_arrays(signature)),
            signature,
            path,
            exporter=exporter,
            outputs=outputs,
            opset=opset,
            external_data=external_data,
        )
        if external_data and exporter == "torchscript":
            take_out_data(path)
        exported = open_checkpoint(path)
        graph = graph_of(exported)
        made = graph.model.opsets.get("", 0)
        check_opset(opset, made)
        step.detail = f"opset {made}, {counted(nodes_of(graph), 'node')}"
    return exported


def _planned(exported: Checkpoint, copy: Exportable, steps: TimedSteps) -> tuple[OnnxFold, int]:
    """What is edited in the exported graph: the weight norm that is left in it, and names."""
    graph = graph_of(exported)
    with steps("fold") as step:
        fold = plan_onnx(graph)
        step.detail = f"{counted(len(fold.layers), 'layer')} that the exporter left in the graph"
    with steps("name") as step:
        new = new_names(exported, fold, parameters_of(copy))
        step.detail = f"{counted(len(new), 'initializer')} after layers"
    return replace(fold, edits=renamed(graph.model, fold.edits, new)), len(new)
