"""Two ONNX models: whether they hold the same weights, and compute the same outputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wnconvert.errors import ArgumentError, InputError
from wnconvert.frozen import dataclass
from wnconvert.messages import counted, option, refuse_other_than_path
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.runtime.process import Opened, Runtime
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.files import local_path, located, unchanging
from wnconvert.storage.sources import Source
from wnconvert.storage.workers import Workers
from wnconvert.verbs.comparison.initializers import ROUNDED_SNR, Initializers, compare_initializers
from wnconvert.verbs.comparison.pairing import Side
from wnconvert.verbs.conversion.targets import StrPath
from wnconvert.verbs.export.pairs.fed import fed
from wnconvert.verbs.export.pairs.proposed import drawn_signature, given_signature, proposed_inputs
from wnconvert.verbs.export.pairs.result import OnnxComparison
from wnconvert.verbs.models.proof.inputs.texts import Range
from wnconvert.verbs.models.proof.outputs import Leniency
from wnconvert.verbs.models.proof.proof import ATOL, RTOL, Proof, prove
from wnconvert.verbs.models.proof.report import TimedSteps
from wnconvert.verbs.models.proof.samples import Sample, samples_of
from wnconvert.verbs.models.proof.signatures import Signature, signature_of
from wnconvert.verbs.shared.options import TIMEOUT, check_timeout
from wnconvert.verbs.shared.progress import StepsProgress, steps_progress

__all__ = ["compare_onnx"]


#: Of floats with fewer bits than float32 rounding adds up to more than the usual tolerance.
_SHORT = ("float16", "bfloat16")
_SHORT_LENIENCY = Leniency(min_snr=ROUNDED_SNR, outliers=1.0)
_SHORT_NOTE = (
    f"floats of 16 bits: outputs need an SNR of {ROUNDED_SNR:g} dB; "
    f"{option('rtol')} and {option('atol')} ask for another nearness"
)


def compare_onnx(
    a: StrPath,
    b: StrPath,
    *,
    inputs: Any = (),
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    data: StrPath | Mapping[str, Any] | Iterable[StrPath | Mapping[str, Any]] = (),
    rtol: float | None = None,
    atol: float | None = None,
    min_snr: float | None = None,
    outliers: float = 0.0,
    samples: int = 4,
    seed: int = 0,
    timeout: float = TIMEOUT,
    threads: int | None = None,
    progress: StepsProgress = False,
) -> OnnxComparison:
    """Compare two ONNX models: their weights, as folds would store them, and their outputs in onnxruntime.

    Forms, names and dtypes of floats may differ: a model and its fold, float32 and float16, files of other
    exporters. Both are run on ``samples`` drawn for the ``inputs`` (as for ``export_onnx``, with A's names;
    ``"mel:x=float32[1,80,T]"`` is A's ``mel``, which B calls ``x``), or for those that A declares, and on the
    user's ``data``; on that alone where it is given without ``inputs``. Equal means
    ``|b-a| <= atol + rtol·|a|``, with 1e-5 and 1e-3 unless others are given; ``min_snr`` and ``outliers`` are
    those of ``check_onnx``. Where a model has floats of 16 bits and none of the four is given, an SNR of
    45 dB is asked for instead, and of weights of one name too. With ``samples=0`` nothing is run, and the
    weights decide, each within 1 ulp of the coarser dtype.

    Raises ``InputError`` for a file that is no ONNX model, that onnxruntime cannot run, or whose outputs vary
    from run to run; ``ArgumentError`` for inputs that the models do not have.

    >>> found = compare_onnx("fixtures/tcn.onnx", "fixtures/tcn.onnx", samples=1)
    >>> bool(found), found.proof.measured, found.initializers.weights.layers
    (True, 'the same to the bit', 6)
    """
    check_timeout(timeout)
    leniency = Leniency(min_snr, outliers)
    steps = TimedSteps(steps_progress(progress))
    model_a, model_b = _Model.of(a), _Model.of(b)
    with unchanging(model_a.checkpoint.seen), unchanging(model_b.checkpoint.seen):
        initializers = _compared_weights(model_a, model_b, steps, Workers(threads))
        is_short = (rtol, atol, min_snr, outliers) == (None, None, None, 0.0) and any(
            model.has_short_floats for model in (model_a, model_b)
        )
        proof: Proof | None = None
        notes: tuple[str, ...] = ()
        if samples:
            asked = _Asked(
                inputs,
                ranges,
                tuple([data] if isinstance(data, (str, os.PathLike, Mapping)) else data),
                RTOL if rtol is None else rtol,
                ATOL if atol is None else atol,
                _SHORT_LENIENCY if is_short else leniency,
                samples,
                seed,
            )
            with Runtime(timeout) as runtime:
                proof, notes = _compared_outputs(model_a, model_b, asked, runtime, steps)
    weights = initializers.weights
    spoiled = [item.name for item in weights.differing if (item.snr_db or 0) < ROUNDED_SNR]
    return OnnxComparison(
        a=weights.a,
        b=weights.b,
        initializers=initializers,
        proof=proof,
        spoiled=tuple(spoiled) if is_short else (),
        steps=tuple(steps.every),
        notes=(*weights.notes, *notes),
    )


@dataclass(frozen=True, slots=True)
class _Model:
    """One of both models: how it was named, and opened."""

    label: str
    path: Path
    checkpoint: Checkpoint
    graph: OnnxFile

    @classmethod
    def of(cls, name: StrPath) -> _Model:
        """Open a model by its name. Raises ``InputError`` if it is none."""
        refuse_other_than_path(name, "an ONNX model")
        path = local_path(located(name), "onnxruntime reads it")
        checkpoint = open_checkpoint(path)
        if checkpoint.onnx is None:
            raise InputError(
                f"it is {checkpoint.container.facts.noun}, and no ONNX model",
                where=str(path),
                fix="compare two ONNX models or two checkpoints; check holds a model against its module",
            )
        return cls(os.fspath(name), path, checkpoint, checkpoint.onnx)

    @property
    def has_short_floats(self) -> bool:
        """Whether it stores floats of 16 bits."""
        states = self.checkpoint.tree.state_dicts
        return any(each.info.dtype.name in _SHORT for state in states for each in state.tensors.values())


@dataclass(frozen=True, slots=True)
class _Asked:
    """What to run both models on, and within which tolerance they are equal."""

    inputs: Any
    ranges: Any
    data: tuple[Any, ...]
    rtol: float
    atol: float
    leniency: Leniency
    samples: int
    seed: int

    @property
    def proposes(self) -> bool:
        """Whether the inputs are those that A declares."""
        return isinstance(self.inputs, (tuple, list)) and not self.inputs

    def signature(self, opened: Opened, graph: OnnxFile) -> tuple[Signature, tuple[Sample, ...]]:
        """The inputs, and the samples of them: drawn, unless there are only the user's."""
        if not self.proposes:
            names = [port.name for port in opened.inputs]
            signature = signature_of(self.inputs, self.ranges, names=names, data=self.data)
            return signature, samples_of(signature, self.samples, self.seed)
        proposed = proposed_inputs(opened.inputs, graph.model.graph)
        if self.data:
            signature = given_signature(proposed, self.data)
            return signature, tuple(sample for sample in samples_of(signature, 1, self.seed) if sample.source)
        signature = drawn_signature(opened, proposed, self.ranges)
        return signature, samples_of(signature, self.samples, self.seed)


def _compared_weights(a: _Model, b: _Model, steps: TimedSteps, workers: Workers) -> Initializers:
    with (
        steps("weights", "by name and by what they hold") as step,
        Source(a.checkpoint.sources, opener=a.checkpoint.reopen) as source_a,
        Source(b.checkpoint.sources, opener=b.checkpoint.reopen) as source_b,
    ):
        sides = Side(a.label, a.checkpoint.tree, source_a), Side(b.label, b.checkpoint.tree, source_b)
        found = compare_initializers(*sides, (a.graph, b.graph), workers)
        step.detail = counted(found.weights.compared, "weight") + " in both"
    return found


def _compared_outputs(
    a: _Model, b: _Model, asked: _Asked, runtime: Runtime, steps: TimedSteps
) -> tuple[Proof, tuple[str, ...]]:
    """Run both models and compare; the proof, and notes."""
    with steps("load", "both models in onnxruntime") as step:
        opened_a, opened_b = runtime.open(a.path), runtime.open(b.path)
        signature, every = asked.signature(opened_a, a.graph)
        step.detail = f"{counted(len(opened_a.inputs), 'input')}, {counted(len(opened_a.outputs), 'output')}"
    try:
        both = fed(opened_a, opened_b, signature)
    except ArgumentError as error:
        if not asked.proposes:  # it is the user's to say which input is which
            raise
        return Proof((), (error.heading,), every, asked.rtol, asked.atol), signature.notes
    with steps("run", counted(len(every), "sample")) as step:
        proof = prove(
            both.a,
            both.b,
            signature,
            samples=every,
            rtol=asked.rtol,
            atol=asked.atol,
            leniency=asked.leniency,
            who=a.label,
        )
        step.detail = f"{counted(len(every), 'sample')} in both"
    said = [_SHORT_NOTE] if asked.leniency is _SHORT_LENIENCY else []
    return proof, (*said, *signature.notes, *both.notes, *proof.notes)
