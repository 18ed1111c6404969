"""An existing ONNX model, proven equal to a torch module or exported program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from wnconvert.frozen import dataclass
from wnconvert.messages import counted, few, refuse_other_than_path
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.graph.plan import OnnxFold
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.plan.plan import ComputedWeight, PlannedConstant
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.files import local_path, located, status_of, unchanging
from wnconvert.verbs.conversion.onnx.check import check_installed
from wnconvert.verbs.conversion.targets import StrPath
from wnconvert.verbs.export.graph import (
    check_folded,
    check_given,
    computed_in,
    graph_of,
    nodes_of,
    residual_of,
    tensors_sha256,
    with_reasons,
)
from wnconvert.verbs.export.ports import Ports, ports_of
from wnconvert.verbs.export.request import Question, Reference, names_in, question_of, remedy_of
from wnconvert.verbs.models.proof.causes.steady import Run
from wnconvert.verbs.models.proof.functions import Exportable
from wnconvert.verbs.models.proof.inputs.texts import Range
from wnconvert.verbs.models.proof.proof import ATOL, RTOL, Proof, prove
from wnconvert.verbs.models.proof.report import ExportReport, TimedSteps
from wnconvert.verbs.models.proof.running import evaluating
from wnconvert.verbs.models.proof.signatures import Data
from wnconvert.verbs.modules.finding.live import find_live
from wnconvert.verbs.shared.digests import sha256_beside
from wnconvert.verbs.shared.options import TIMEOUT, check_timeout
from wnconvert.verbs.shared.progress import StepsProgress, steps_progress

__all__ = ["CheckedModel", "check_model", "check_onnx", "first_run", "prove_beside", "reference_text"]


def check_onnx(
    path: StrPath,
    reference: Exportable,
    *,
    inputs: Any,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    data: Iterable[Data] = (),
    outputs: Sequence[str] = (),
    rtol: float = RTOL,
    atol: float = ATOL,
    min_snr: float | None = None,
    outliers: float = 0.0,
    samples: int = 4,
    seed: int = 0,
    timeout: float = TIMEOUT,
    require_folded: bool = False,
    progress: StepsProgress = False,
) -> ExportReport:
    """Run an ONNX model in onnxruntime beside a module in torch, and compare.

    The arguments are those of ``export_onnx``. Inputs and outputs are paired by name, or in their order where
    the names of the module and the model differ; ``"mel:x=float32[1,80,T]"`` is the module's ``mel``, which
    the model calls ``x``. Returns a report that is true if all outputs are equal. Raises the errors of
    ``export_onnx``; nothing is run where ``require_folded`` is not met. The module is left as it was.
    ``export_onnx`` has an example.
    """
    check_installed()
    check_timeout(timeout)
    question = question_of(
        reference,
        inputs=inputs,
        dynamic=dynamic,
        ranges=ranges,
        outputs=outputs,
        rtol=rtol,
        atol=atol,
        samples=samples,
        seed=seed,
        data=data,
        min_snr=min_snr,
        outliers=outliers,
    )
    refuse_other_than_path(path, "an ONNX model")
    source = local_path(located(path), "onnxruntime reads it")
    steps = TimedSteps(steps_progress(progress))
    checkpoint = open_checkpoint(source)
    with unchanging(checkpoint.seen), sha256_beside(*checkpoint.shards) as digests:
        model = check_model(checkpoint, steps, check_given, require_folded=require_folded)
        ports, proof = _proven(source, question, steps, timeout)
        sha256 = dict(zip((path.name for path in checkpoint.shards), digests(), strict=True))
    return ExportReport(
        model=str(source),
        size=model.size,
        reference=reference_text(question.module),
        proof=proof,
        opset=model.opset,
        residual_weight_norm=len(model.residual),
        computed=model.computed,
        nodes=model.nodes,
        steps=tuple(steps.every),
        notes=(*question.signature.notes, *ports.notes, *proof.notes, *model.notes),
        remedy=remedy_of(proof, question.module, None),
        sha256=sha256,
        reference_sha256=tensors_sha256(question.module),
    )


def _proven(source: Path, question: Question, steps: TimedSteps, timeout: float) -> tuple[Ports, Proof]:
    """Run a model beside its module; how their inputs and outputs were paired, and what came of it."""
    with Runtime(timeout) as runtime, evaluating(question.module) as forget:
        opened = runtime.open(source)
        ports = ports_of(opened, question.signature)
        first = first_run(question, steps)
        names = question.outputs or names_in(opened, tuple(first.outputs))
        return ports, prove_beside(question, Reference.of(question, names, first), ports, steps, forget)


def first_run(question: Question, steps: TimedSteps) -> Run:
    """Run the module twice on the first sample, before anything that takes longer; the first of the runs."""
    with steps("try", f"the module in torch, twice, at {question.samples[0]}") as step:
        first = question.first_run()
        early = f" after a first run {first.wobble:.3g} off" if first.wobble else ""
        step.detail = f"{counted(len(first.outputs), 'output')}, the same twice{early}"
    return first


def reference_text(model: Exportable) -> str:
    """A description of the reference: its class and the version of torch."""
    if isinstance(model, torch.jit.ScriptModule):
        kind = f"the TorchScript {model.original_name}"
    elif isinstance(model, ExportedProgram):
        kind = "the exported program"
    else:
        cls = type(model)
        kind = (cls.__bases__[0] if cls.__name__.startswith("Parametrized") else cls).__name__
        kind += ", unfolded," if find_live(model).layers else ""
    return f"{kind} in torch {torch.__version__}"


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model that onnx's checker accepted, its bytes, and the layers whose weight norm is left in it.

    ``computed`` are all weights that it computes of stored tensors at every run, ``constants`` those that
    were evaluated.
    """

    graph: OnnxFile
    size: int
    residual: tuple[str, ...]
    computed: tuple[ComputedWeight, ...]
    constants: tuple[PlannedConstant, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the weights that were evaluated, and on those that it computes."""
        return (*few(map(str, self.constants)), *ComputedWeight.told(self.computed))

    @property
    def opset(self) -> int | None:
        """The opset of ONNX's own operators."""
        return self.graph.model.opsets.get("")

    @property
    def nodes(self) -> int:
        """The number of its nodes."""
        return nodes_of(self.graph)


def check_model(
    opened: Checkpoint,
    steps: TimedSteps,
    check: Callable[[OnnxFile], None],
    *,
    require_folded: bool,
    fold: OnnxFold | None = None,
) -> CheckedModel:
    """Run ``check``, which calls onnx's checker, on an opened model, and look for weight norm in it.

    ``fold`` is what made the model, which knows why it left weights to be computed. Raises ``UnfoldedError``
    with ``require_folded`` if it computes weights at every run.
    """
    with steps("check", "the file, with onnx.checker") as step:
        graph = graph_of(opened)
        check(graph)
        residual, computed = residual_of(graph), with_reasons(computed_in(graph), fold)
        step.detail = f"onnx.checker; {counted(len(residual), 'layer')} of weight norm left"
        if len(computed) > len(residual):
            step.detail += f", {counted(len(computed), 'weight')} computed at every run"
    if require_folded:
        check_folded(computed, Path(opened.path))
    size = sum(status_of(shard).size for shard in opened.shards)
    return CheckedModel(graph, size, residual, computed, () if fold is None else fold.plan.constants)


def prove_beside(
    question: Question, reference: Reference, ports: Ports, steps: TimedSteps, forget: Callable[[], None]
) -> Proof:
    """Run a model and its reference on the samples and compare; the model gets only inputs that it has."""
    what = f"{counted(len(question.samples), 'sample')}, torch and onnxruntime"
    with steps("run", what) as step:
        proof = prove(
            reference.function,
            ports.run,
            question.signature,
            samples=question.samples,
            rtol=question.rtol,
            atol=question.atol,
            leniency=question.leniency,
            first=reference.first,
            forget=forget,
        )
        step.detail = what
    return proof
