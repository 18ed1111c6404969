"""The question that an export or a check answers, and checks that the exporter did as it was asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, option, printable
from wnconvert.numerics.distance import Tolerance
from wnconvert.onnx.runtime.process import Opened
from wnconvert.storage.files import output_path
from wnconvert.tensors.containers import Container, container_of
from wnconvert.tensors.suffixes import check_true_name
from wnconvert.verbs.conversion.targets import StrPath, has_suffix
from wnconvert.verbs.export.exporters import AGES, EXPORTERS, Exporter, has_dynamo
from wnconvert.verbs.models.proof.causes.steady import NumericFunction, Run, steady_run
from wnconvert.verbs.models.proof.functions import (
    Exportable,
    function_of,
    tensors_of,
    unwrapped,
)
from wnconvert.verbs.models.proof.inputs.forwards import forward_of
from wnconvert.verbs.models.proof.inputs.texts import Range, check_outputs
from wnconvert.verbs.models.proof.outputs import Leniency
from wnconvert.verbs.models.proof.proof import Proof
from wnconvert.verbs.models.proof.samples import Sample, arrays, samples_of
from wnconvert.verbs.models.proof.signatures import Data, Signature, signature_of
from wnconvert.verbs.modules.finding.live import find_live
from wnconvert.verbs.shared.selections import texts_of

__all__ = [
    "ExporterOption",
    "Question",
    "Reference",
    "check_dynamic",
    "check_opset",
    "exporters_for",
    "model_path",
    "names_in",
    "output_names",
    "question_of",
    "remedy_of",
]


#: Which of torch's exporters: one of them, or the newer and, where that fails, the older.
ExporterOption: TypeAlias = Literal["auto", "dynamo", "torchscript"]
_ONNX = "-o OUT.onnx"


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a model computes the same as ``module``: on which inputs, and within which tolerance.

    ``outputs`` are the names that were asked for; with () the outputs keep their own.
    """

    module: Exportable
    signature: Signature
    samples: tuple[Sample, ...]
    outputs: tuple[str, ...]
    rtol: float
    atol: float
    leniency: Leniency

    @property
    def first(self) -> tuple[Sample, dict[str, Tensor]]:
        """The first sample, with its inputs as tensors."""
        return self.samples[0], tensors_of(arrays(self.signature, self.samples[0]))

    def first_run(self) -> Run:
        """The outputs of the module for the first sample. Raises as ``steady_run`` does."""
        function = function_of(self.module, self.outputs)
        tolerance = Tolerance(self.rtol, self.atol)
        return steady_run(function, self.signature, self.samples[0], tolerance=tolerance)


@dataclass(frozen=True, slots=True)
class Reference:
    """A module as a function whose outputs have the model's names, and its run on the first sample."""

    function: NumericFunction
    first: Run

    @classmethod
    def of(cls, question: Question, names: Sequence[str], first: Run) -> Reference:
        """The module of a question with ``names`` for its outputs, those of ``first`` too."""
        renamed = dict(zip(names, first.outputs.values(), strict=True))
        return cls(function_of(question.module, names), replace(first, outputs=renamed))


def model_path(out: StrPath) -> Path:
    """The path of a model to write. Raises ``ArgumentError`` if its suffix says that it is something else."""
    path, noun = output_path(out), Container.ONNX.facts.noun
    check_true_name(path.name, noun, _ONNX)
    if container_of(path) is not Container.ONNX and has_suffix(path.name):
        raise ArgumentError(f"{path.name} would not be a checkpoint, as its name says, but {noun}", fix=_ONNX)
    return path


def question_of(
    module: Exportable,
    *,
    inputs: Any,
    dynamic: Mapping[str, Mapping[int, str]] | None,
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]],
    outputs: Sequence[str],
    rtol: float,
    atol: float,
    samples: int,
    seed: int,
    data: Iterable[Data] = (),
    min_snr: float | None = None,
    outliers: float = 0.0,
) -> Question:
    """The question, from the arguments that ``export_onnx`` and ``check_onnx`` share.

    Raises ``ArgumentError`` for a module that is not a model, and for arguments that do not fit it.
    """
    module = unwrapped(module)
    if not isinstance(module, (nn.Module, ExportedProgram)):
        raise ArgumentError(
            f"{type(module).__name__} is not a model", fix="give an nn.Module or an ExportedProgram"
        )
    names = texts_of(outputs)
    check_outputs(names)
    signature = _signature(module, inputs, ranges, dynamic, data)
    return Question(
        module,
        signature,
        samples_of(signature, samples, seed),
        names,
        rtol,
        atol,
        Leniency(min_snr, outliers),
    )


def exporters_for(
    module: Exportable, exporter: ExporterOption
) -> tuple[tuple[Exporter, ...], tuple[str, ...]]:
    """The exporters to try for a model, in order, and a note if it is not the one that was asked for."""
    if exporter != "auto" and exporter not in EXPORTERS:
        choices = listed(("auto", *EXPORTERS))
        raise ArgumentError(f"no exporter is called {exporter!r}", fix=f"choose one of {choices}")
    if isinstance(module, torch.jit.ScriptModule) and exporter != "torchscript":
        return ("torchscript",), ("torch's newer exporter does not take TorchScript; the older one was used",)
    if exporter != "auto":
        return (exporter,), ()
    if isinstance(module, ExportedProgram):
        return ("dynamo",), ()
    if not has_dynamo():
        return ("torchscript",), ("onnxscript is not installed; torch's older exporter was used",)
    return tuple(AGES), ()


def _signature(
    model: Exportable,
    inputs: Any,
    ranges: Any,
    dynamic: Mapping[str, Mapping[int, str]] | None,
    data: Iterable[Data],
) -> Signature:
    """The signature, with its inputs in the order in which the model takes them."""
    forward = forward_of(model)
    signature = signature_of(inputs, ranges, dynamic=dynamic, names=forward.names, data=data)
    forward.check(signature.names)
    if isinstance(model, ExportedProgram):
        _check_program(model, signature)
    return signature.in_order(forward.names)


def _check_program(program: ExportedProgram, signature: Signature) -> None:
    """Raise ``ArgumentError`` for a letter in place of a size that the exported program has fixed."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    for spec in signature.inputs:
        shape = tuple(getattr(values.get(spec.name), "shape", ()))
        for axis, size in enumerate(spec.shape):
            span = signature.ranges.get(size) if isinstance(size, str) else None
            if span and axis < len(shape) and isinstance(shape[axis], int) and span.low < span.high:
                raise ArgumentError(
                    f"input {spec.name}: the exported program has {size} fixed at {shape[axis]}",
                    fix=f"give {shape[axis]} in place of {size}, or export the program with a dynamic {size}",
                )


def output_names(question: Question, first: Run) -> tuple[str, ...]:
    """The names of all outputs in the file, other than those of inputs and weights.

    Raises ``ArgumentError`` if a name that was asked for is taken.
    """
    inputs = [spec.called for spec in question.signature.inputs]
    taken = {*inputs, *_names_of_weights(question.module)}
    for name in question.outputs:
        if name in taken:
            what = "an input" if name in inputs else "a weight"
            raise ArgumentError(
                f"output {printable(name)}: {what} has this name", fix="choose another --output-name NAME"
            )
    found: list[str] = []
    for name in first.outputs:
        numbers = (f"{name}_out{at}" for at in ("", *range(2, len(taken) + 2)))
        found.append(next(each for each in (name, *numbers) if each not in taken))
        taken.add(found[-1])
    return tuple(found)


def _names_of_weights(model: Exportable) -> Iterator[str]:
    """The names that the initializers of an exported model may have."""
    for tensors in (model.named_parameters, model.named_buffers):
        yield from (name for name, _ in tensors())
    if not isinstance(model, (ExportedProgram, torch.jit.ScriptModule)):
        yield from (name for live in find_live(model).layers for name in live.names)


def names_in(opened: Opened, own: tuple[str, ...]) -> tuple[str, ...]:
    """The model's names for the outputs of a module: the module's own, or else those in the same place."""
    theirs = tuple(port.name for port in opened.outputs)
    return theirs if len(theirs) == len(own) and set(theirs) != set(own) else own


def check_opset(asked: int | None, made: int) -> None:
    """Raise ``ArgumentError`` if the exporter made another opset, which the newer one does silently."""
    if asked is not None and asked != made:
        older = "--exporter torchscript, or " if asked < made else ""
        raise ArgumentError(
            f"torch's exporter made opset {made}, not {asked}: it cannot convert this model",
            fix=f"choose {older}--opset {made}",
        )


def remedy_of(proof: Proof, model: Exportable, exporter: str | None) -> str:
    """What to do where the exporter has fixed sizes; empty if it has not. A check knows no ``exporter``."""
    if not proof.fixed:
        return ""
    numbers = listed(f"{size} in place of {letter}" for letter, size in proof.fixed.items())
    if isinstance(model, (ExportedProgram, torch.jit.ScriptModule)):  # only one exporter takes these
        return f"export the module itself, or give {numbers}"
    if exporter is None:
        return f"export it again with the other of torch's exporters, or give {numbers}"
    return f"try {option('exporter', _other(exporter))}, or give {numbers}"


def _other(exporter: str) -> str:
    return next(each for each in EXPORTERS if each != exporter)


def check_dynamic(opened: Opened, signature: Signature, exporter: str) -> None:
    """Raise ``ArgumentError`` if the exporter fixed a size that should be dynamic."""
    shapes = {port.name: port.shape for port in opened.inputs}
    for spec in signature.inputs:
        for letter, size in zip(spec.shape, shapes.get(spec.called, ()), strict=False):
            span = signature.ranges.get(letter) if isinstance(letter, str) else None
            if span and span.low < span.high and isinstance(size, int):
                raise ArgumentError(
                    f"torch's exporter fixed {letter} of the input {printable(spec.name)} at {size}: the "
                    "model does not take other sizes, or the exporter does not see that it does",
                    fix=f"try {option('exporter', _other(exporter))}, or give {size} in place of {letter}",
                )
