"""A module exported to ONNX and proven equal to itself; or an ONNX model that is there already."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from wnconvert.atomic import free_name, staged_folder
from wnconvert.blocks import Array
from wnconvert.callables import Exportable, check_inputs, function_of, input_names, tensors_of, unwrapped
from wnconvert.checkpoint import Checkpoint, open_checkpoint
from wnconvert.errors import ArgumentError, WnconvertError
from wnconvert.exported_graph import (
    check_exported,
    check_given,
    graph_of,
    new_names,
    nodes_of,
    parameters_of,
    residual_of,
    take_out_data,
    write_folded,
)
from wnconvert.exported_graph import keep_failed as keep_failed_at
from wnconvert.exporters import EXPORTERS, export_raw
from wnconvert.files import StrPath
from wnconvert.live import find_live
from wnconvert.module_state import evaluating
from wnconvert.modules import folded
from wnconvert.onnx_check import check_installed
from wnconvert.onnx_data import own_data_of, remove_unused
from wnconvert.onnx_file import OnnxFile
from wnconvert.onnx_plan import OnnxFold, plan_onnx
from wnconvert.onnx_surgery import renamed
from wnconvert.proof import ATOL, RTOL, ExportReport, Function, Proof, Run, Step, prove, steady_run
from wnconvert.runtime import Opened, open_model, run
from wnconvert.signatures import Range, Sample, Signature, check_outputs, export_arrays, signature_of
from wnconvert.signatures import samples as samples_of
from wnconvert.words import counted, listed, printable

__all__ = ["check_onnx", "export_onnx"]


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
    progress: Callable[[Step], None] = lambda step: None,
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
    ``VerifyError``. Nothing is written then.
    """
    target, module = Path(path), unwrapped(module)
    check_installed()
    exporter, notes = _exporter_for(module, exporter)
    steps = _Steps(progress)
    check_outputs(outputs)
    signature = _signature(module, inputs, ranges, dynamic)
    drawn = samples_of(signature, samples, seed)
    old = own_data_of(target) if force else ()
    with evaluating(module) as forget:
        # Before an export, which takes longer: whether the module runs, and gives the same again.
        first = steady_run(function_of(module, outputs), signature, drawn[0], rtol=rtol, atol=atol)
        forget()
        names = _output_names(module, signature, first, outputs)
        first = _renamed(first, names)
        reference = function_of(module, names)
        try:
            with staged_folder(target, force=force) as folder, _told_as(folder, target):
                raw = folder / "raw"
                raw.mkdir()
                copy, layers = _copy(module, steps)
                with steps("export") as step:
                    export_raw(
                        copy,
                        tensors_of(export_arrays(signature)),
                        signature,
                        raw / "raw.onnx",
                        exporter=exporter,
                        outputs=names,
                        opset=opset,
                        external_data=external_data,
                    )
                    if external_data and exporter == "torchscript":
                        take_out_data(raw / "raw.onnx")
                    exported = open_checkpoint(raw / "raw.onnx")
                    graph = graph_of(exported)
                    opset_made = graph.model.opsets.get("", 0)
                    _check_opset(opset, opset_made, exporter)
                    step.detail = f"opset {opset_made}, {counted(nodes_of(graph), 'node')}"
                fold, named = _planned(exported, copy, steps)
                write_folded(exported, fold, folder / target.name, free_name(target))
                size, written = _checked(folder / target.name, target, steps)
                opened = replace(open_model(folder / target.name), path=target)  # as it is told
                _check_dynamic(opened, signature, exporter)
                proof = _proven(
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
                    reference=_said(module),
                    proof=proof,
                    opset=written.model.opsets.get(""),
                    residual_weight_norm=0,
                    exporter=exporter,
                    nodes_exported=nodes_of(graph_of(exported)),
                    nodes=nodes_of(written),
                    folded_in_module=layers,
                    folded_in_graph=len(fold.layers),
                    initializers_named=named,
                    notes=(*notes, *signature.notes, *_unused(opened, signature)),
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
    progress: Callable[[Step], None] = lambda step: None,
) -> ExportReport:
    """Run an ONNX model in onnxruntime beside a module in torch, and compare.

    Arguments as for ``export_onnx``. Outputs of the module that are not called as the model's are compared
    in their order. Returns a report that is true where all outputs are equal. Raises as ``export_onnx``
    does; the module is left as it was.
    """
    source, reference = Path(path), unwrapped(reference)
    check_installed()
    steps = _Steps(progress)
    check_outputs(outputs)
    signature = _signature(reference, inputs, ranges, dynamic)
    drawn = samples_of(signature, samples, seed)
    size, written = _checked(source, source, steps, given=True)
    opened = open_model(source)
    with evaluating(reference) as forget:
        first = steady_run(function_of(reference, outputs), signature, drawn[0], rtol=rtol, atol=atol)
        names = outputs or _names_in(opened, tuple(first.outputs))
        function, first = function_of(reference, names), _renamed(first, names)
        proof = _proven(
            function, opened, signature, drawn, steps, first=first, forget=forget, rtol=rtol, atol=atol
        )
    return ExportReport(
        model=str(source),
        size=size,
        reference=_said(reference),
        proof=proof,
        opset=written.model.opsets.get(""),
        residual_weight_norm=residual_of(written),
        nodes=nodes_of(written),
        steps=tuple(steps.every),
        notes=(*signature.notes, *_unused(opened, signature)),
    )


class _UnequalError(Exception):
    """The export computes something else."""

    def __init__(self, report: ExportReport) -> None:
        super().__init__()
        self.report = report


@contextmanager
def _told_as(folder: Path, target: Path) -> Iterator[None]:
    """Errors name the file that was asked for, not the place where it is made."""
    try:
        yield
    except WnconvertError as error:
        for made in (folder / target.name, folder / "raw" / "raw.onnx"):
            error.where = error.where.replace(str(made), str(target))
        raise


# -- steps


@dataclass(slots=True)
class _Doing:
    """A step under way; what came of it is told when it is done."""

    detail: str = ""


class _Steps:
    """The steps that are done, each told as it ends."""

    def __init__(self, progress: Callable[[Step], None]) -> None:
        self.progress = progress
        self.every: list[Step] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[_Doing]:
        began, doing = time.perf_counter(), _Doing()
        yield doing
        self.every.append(Step(name, doing.detail, time.perf_counter() - began))
        self.progress(self.every[-1])


# -- what is asked


def _exporter_for(module: Exportable, exporter: str) -> tuple[str, tuple[str, ...]]:
    """The exporter that takes such a model, and a note where it is another than was asked for."""
    if exporter not in EXPORTERS:
        raise ArgumentError(f"no exporter is called {exporter!r}", fix=f"one of {listed(EXPORTERS)}")
    if isinstance(module, torch.jit.ScriptModule) and exporter == "dynamo":
        return "torchscript", ("torch's newer exporter takes no TorchScript; the older one was used",)
    return exporter, ()


def _signature(
    model: Exportable,
    inputs: Any,
    ranges: Any,
    dynamic: Mapping[str, Mapping[int, str]] | None,
) -> Signature:
    """What is fed, in the order in which the model takes it."""
    known, _, _ = input_names(model)
    signature = signature_of(inputs, ranges, dynamic=dynamic, names=known)
    check_inputs(model, signature.names)
    if isinstance(model, ExportedProgram):
        _check_program(model, signature)
    order = {name: at for at, name in enumerate(known)}
    ordered = sorted(signature.inputs, key=lambda spec: order.get(spec.name, len(order)))
    return replace(signature, inputs=tuple(ordered))


def _check_program(program: ExportedProgram, signature: Signature) -> None:
    """What an exported program has fixed is no letter's."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    for spec in signature.inputs:
        shape = tuple(getattr(values.get(spec.name), "shape", ()))
        for axis, size in enumerate(spec.shape):
            span = signature.ranges.get(size) if isinstance(size, str) else None
            if span and axis < len(shape) and isinstance(shape[axis], int) and span.low < span.high:
                raise ArgumentError(
                    f"input {spec.name}: the exported program has {size} fixed at {shape[axis]}",
                    fix=f"{shape[axis]} in place of {size}; or export the program with a dynamic {size}",
                )


def _output_names(
    model: Exportable, signature: Signature, first: Run, asked: Sequence[str]
) -> tuple[str, ...]:
    """The names of all outputs in the file, where inputs and weights have theirs.

    Raises ``ArgumentError`` where one that was asked for is taken.
    """
    taken = {*signature.names, *_names_of_weights(model)}
    for name in asked:
        if name in taken:
            what = "an input" if name in signature.names else "a weight"
            raise ArgumentError(f"output {printable(name)}: {what} is called so", fix="another --output NAME")
    found: list[str] = []
    for name in first.outputs:
        numbers = (f"{name}_out{at}" for at in ("", *range(2, len(taken) + 2)))
        found.append(next(each for each in (name, *numbers) if each not in taken))
        taken.add(found[-1])
    return tuple(found)


def _names_of_weights(model: Exportable) -> Iterator[str]:
    """The names that initializers of a model may have."""
    for tensors in (model.named_parameters, model.named_buffers):
        yield from (name for name, _ in tensors())
    if not isinstance(model, (ExportedProgram, torch.jit.ScriptModule)):
        yield from (name for live in find_live(model).layers for name in live.names)


def _renamed(run: Run, names: Sequence[str]) -> Run:
    return replace(run, outputs=dict(zip(names, run.outputs.values(), strict=True)))


def _names_in(opened: Opened, own: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a module's outputs as a model calls them: its own, or those in the same place."""
    theirs = tuple(port.name for port in opened.outputs)
    return theirs if len(theirs) == len(own) and set(theirs) != set(own) else own


def _check_opset(asked: int | None, made: int, exporter: str) -> None:
    """Raise ``ArgumentError`` where the exporter gave another opset: the newer one does so silently."""
    if asked is not None and asked != made:
        other = next(each for each in EXPORTERS if each != exporter)
        raise ArgumentError(
            f"torch's exporter made opset {made}, not {asked}: it cannot bring this model to that one",
            fix=f"--exporter {other}, or --opset {made}",
        )


def _check_dynamic(opened: Opened, signature: Signature, exporter: str) -> None:
    """Raise ``ArgumentError`` where the exporter fixed a size that was to be dynamic."""
    shapes = {port.name: port.shape for port in opened.inputs}
    for spec in signature.inputs:
        for letter, size in zip(spec.shape, shapes.get(spec.name, ()), strict=False):
            span = signature.ranges.get(letter) if isinstance(letter, str) else None
            if span and span.low < span.high and isinstance(size, int):
                other = next(each for each in EXPORTERS if each != exporter)
                raise ArgumentError(
                    f"torch's exporter fixed {letter} of the input {printable(spec.name)} at {size}: the "
                    "model does not take other sizes, or the exporter does not see that it does",
                    fix=f"--exporter {other}, or {size} in place of {letter}",
                )


def _unused(opened: Opened, signature: Signature) -> tuple[str, ...]:
    there = {port.name for port in opened.inputs}
    unused = [printable(name) for name in signature.names if name not in there]
    return (f"inputs that the model does not use are not in the file: {listed(unused)}",) if unused else ()


def _said(model: Exportable) -> str:
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


# -- the parts


def _copy(module: Exportable, steps: _Steps) -> tuple[Exportable, int]:
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
        for each in copy.modules():
            each.training = False
        step.detail = f"{counted(layers, 'layer')} in a copy"
    return copy, layers


def _planned(exported: Checkpoint, copy: Exportable, steps: _Steps) -> tuple[OnnxFold, int]:
    """What is edited in the exported graph: the weight norm that is left in it, and names."""
    graph = graph_of(exported)
    with steps("fold") as step:
        fold = plan_onnx(graph)
        step.detail = f"{counted(len(fold.layers), 'layer')} that the exporter left in the graph"
    with steps("name") as step:
        new = new_names(exported, fold, parameters_of(copy))
        step.detail = f"{counted(len(new), 'initializer')} after layers"
    return replace(fold, edits=renamed(graph.model, fold.edits, new)), len(new)


def _checked(path: Path, target: Path, steps: _Steps, *, given: bool = False) -> tuple[int, OnnxFile]:
    """Have onnx's checker read a model and count the weight norm in it; its bytes, and the model."""
    with steps("check") as step:
        opened = open_checkpoint(path)
        graph = graph_of(opened)
        (check_given if given else check_exported)(graph, target)
        step.detail = f"onnx.checker; {counted(residual_of(graph), 'layer')} of weight norm left"
    return sum(shard.stat().st_size for shard in opened.shards), graph


def _proven(
    reference: Function,
    opened: Opened,
    signature: Signature,
    drawn: Sequence[Sample],
    steps: _Steps,
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
