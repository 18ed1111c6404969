"""A module exported to ONNX, folded, and proven equal to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from wnconvert.errors import ArgumentError, UnfoldedError, VerifyError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.layers.kinds.table import ALL
from wnconvert.layers.rules import Unit
from wnconvert.layers.schemes import Selection
from wnconvert.messages import counted, listed, refuse_other_than_path
from wnconvert.onnx.graph.edits import renamed
from wnconvert.onnx.graph.plan import OnnxFold
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.staging import put_in_place, scratch_folder
from wnconvert.storage.stores.temporary import mark_replaced
from wnconvert.tensors.containers import Container
from wnconvert.verbs.conversion.onnx.check import check_installed
from wnconvert.verbs.conversion.onnx.fold import own_data_of, plan_graph_fold, remove_unused
from wnconvert.verbs.conversion.targets import StrPath, clean_beside
from wnconvert.verbs.conversion.verify.structure import check_structure
from wnconvert.verbs.export.cards import check_card, write_card
from wnconvert.verbs.export.check import CheckedModel, check_model, first_run, prove_beside, reference_text
from wnconvert.verbs.export.exporters import AGES, EXPORTERS, Exporter, export_raw, folded_copy
from wnconvert.verbs.export.graph import (
    check_exported,
    check_no_residual,
    graph_of,
    left_in_graph,
    naming_of,
    nodes_of,
    parameters_of,
    record_export,
    take_out_data,
    tensors_sha256,
    write_failed,
    write_folded,
)
from wnconvert.verbs.export.ports import ports_of
from wnconvert.verbs.export.request import (
    ExporterOption,
    Question,
    Reference,
    check_dynamic,
    check_opset,
    exporters_for,
    model_path,
    output_names,
    question_of,
    remedy_of,
)
from wnconvert.verbs.models.proof.functions import Exportable, tensors_of, unwrapped
from wnconvert.verbs.models.proof.inputs.texts import Range
from wnconvert.verbs.models.proof.proof import ATOL, RTOL, Proof
from wnconvert.verbs.models.proof.report import ExportReport, TimedSteps
from wnconvert.verbs.models.proof.running import evaluating
from wnconvert.verbs.models.proof.samples import export_arrays
from wnconvert.verbs.models.proof.signatures import Data
from wnconvert.verbs.shared.digests import files_below, sha256_of_each
from wnconvert.verbs.shared.leftovers import named_leftovers
from wnconvert.verbs.shared.options import TIMEOUT, check_timeout
from wnconvert.verbs.shared.progress import StepsProgress, steps_progress

__all__ = ["export_onnx"]


def export_onnx(
    module: Exportable,
    path: StrPath,
    *,
    inputs: Any,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    data: Iterable[Data] = (),
    outputs: Sequence[str] = (),
    opset: int | None = None,
    exporter: ExporterOption = "auto",
    external_data: bool = False,
    rtol: float = RTOL,
    atol: float = ATOL,
    min_snr: float | None = None,
    outliers: float = 0.0,
    samples: int = 4,
    seed: int = 0,
    timeout: float = TIMEOUT,
    constants: bool = False,
    require_folded: bool = False,
    keep_failed: bool = False,
    record: bool = True,
    force: bool = False,
    clean: bool = False,
    card: StrPath | None = None,
    progress: StepsProgress = False,
) -> ExportReport:
    """Export a module to ONNX with weight norm folded, and prove that the result computes the same.

    ``inputs`` are texts (``"mel=float32[1,80,T]"``, ``"ids=int64[1,L]<100"``) or example tensors, by name
    or in the order of ``forward``; ``dynamic`` names axes of examples by a letter (``{"mel": {2: "T"}}``),
    and ``ranges`` gives the sizes of letters (``"T=16..400"``). ``outputs`` are the names of the outputs,
    flattened. A copy of the module is folded, and torch exports it in eval mode (``exporter``: ``"dynamo"``,
    ``"torchscript"``, or ``"auto"``, the first and, where that fails, the second, which a note says); weight
    norm that is left in the graph is folded there. ``constants`` evaluates other weights that it computes at
    every run, in float64. Then the module itself, unfolded and in eval mode, is compared with the file in
    onnxruntime, on ``samples`` of other values and sizes than the exported ones; onnxruntime may work for
    ``timeout`` seconds in all. The module is left as it was. ``progress`` is called with each step as it
    begins, and again, with its seconds, as it ends; or True for a bar.

    Returns a report that is true if all outputs are equal within ``atol + rtol·|module's|``: all elements but
    a share of ``outliers``, which needs ``min_snr``, the least SNR of each sample in decibels. ``data`` are
    files of arrays, or arrays by name, to prove on beside drawn samples. Only then is a file written to
    ``path``, and to ``card`` a model card for the hub in Markdown: its weights, SHA-256 and proof; otherwise
    ``keep_failed`` keeps it as ``model.failed.onnx``. What killed runs left beside it is named in notes;
    ``clean`` deletes it. ``force`` replaces the files that are there. The metadata of the model have a record
    unless ``record`` is false: the SHA-256 of the module's weights, the layers folded, and the proof.

    Raises ``WnconvertError``: ``ArgumentError`` for inputs that the module does not have, or if the exporter
    refuses the module; ``InputError`` for a stochastic module; ``LayerError``, ``OutputError``,
    ``VerifyError``, and with ``require_folded`` ``UnfoldedError`` where a weight of stored tensors would be
    computed at every run. Nothing is written then. Source of the exporters: ``torch.onnx.export``.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> from wnconvert import check_onnx
    >>> module = weight_norm(torch.nn.Linear(3, 2))
    >>> with TemporaryDirectory() as folder:
    ...     path = f"{folder}/m.onnx"
    ...     report = export_onnx(module, path, inputs="input=float32[B,3]", exporter="torchscript")
    ...     again = check_onnx(path, module, inputs="input=float32[B,3]")
    >>> bool(report), report.residual_weight_norm, [output.name for output in report.outputs], bool(again)
    (True, 0, ['output'], True)
    """
    target = _target(path, timeout, card, force=force)
    exporters, notes = exporters_for(unwrapped(module), exporter)
    question = question_of(
        module,
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
    left = (clean_beside if clean else named_leftovers)(target)
    other = next((each for each in EXPORTERS if each not in exporters), None)
    asked = (opset, external_data, timeout, constants, require_folded, (*left, *notes))
    export = _Export(question, target, exporters[0], other, *asked, TimedSteps(steps_progress(progress)))
    old = own_data_of(export.target) if force else ()
    with evaluating(question.module) as forget:
        reference = export.reference(forget)
        with scratch_folder(export.target, force=force) as folder, _errors_name(folder, export.target):
            report, made, written = _first_good(export, exporters, reference, folder, forget)
            if report:
                report = _recorded(report, made, written) if record else report
                mark_replaced(folder, old)
                report = _in_place(report, written, export.target, old, card, force=force)
            elif keep_failed:
                report = _noted(report, write_failed(made.exported, written.fold, export.target, force=force))
    return report


def _in_place(
    report: ExportReport,
    written: _Written,
    target: Path,
    old: Sequence[Path],
    card: StrPath | None,
    *,
    force: bool,
) -> ExportReport:
    """Put an equal model in place of ``old`` files, then its card; the report with hashes and notes."""
    report = replace(report, sha256=sha256_of_each(files_below(written.path.parent)))
    put_in_place(written.path.parent, target, force=force)
    report = _noted(report, remove_unused(old, target, ()))
    return report if card is None else _noted(report, write_card(card, report, force=force))


def _target(path: StrPath, timeout: float, card: StrPath | None, *, force: bool) -> Path:
    """The path of the model to write. Raises for what can be said before anything is run."""
    check_installed()
    check_timeout(timeout)
    refuse_other_than_path(path, "an output")
    if card is not None:
        check_card(card, model_path(path), force=force)
    return model_path(path)


@contextmanager
def _errors_name(folder: Path, target: Path) -> Iterator[None]:
    """Errors raised inside name the target, not the scratch file."""
    try:
        yield
    except WnconvertError as error:
        for exporter in EXPORTERS:
            for made in (_raw(folder / exporter), _written(folder / exporter, target)):
                error.where = error.where.replace(str(made), str(target))
        raise


def _raw(folder: Path) -> Path:
    return folder / "raw" / "raw.onnx"


def _written(folder: Path, target: Path) -> Path:
    return folder / "folded" / target.name


def _recorded(report: ExportReport, made: _Made, written: _Written) -> ExportReport:
    """Write the record of an export behind its model; the report, with its size then."""
    kinds = made.folded | {item.layer.name: item.layer.rule.kind for item in written.fold.layers}
    return replace(report, size=record_export(written.path, report, kinds))


def _noted(report: ExportReport, notes: Iterable[str]) -> ExportReport:
    return replace(report, notes=(*report.notes, *notes))


# -- the stages


@dataclass(frozen=True, slots=True)
class _Made:
    """The file of torch's exporter, opened; the copy that was exported, and the kinds of its layers."""

    exported: Checkpoint
    copy: Exportable
    folded: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Written:
    """The folded model at ``path``, its initializers named; and the fold that made it of the exported one."""

    path: Path
    fold: OnnxFold
    named: int
    model: CheckedModel


#: A report, and the files of which it speaks: as exported, and as written.
_Done: TypeAlias = tuple[ExportReport, _Made, _Written]


@dataclass(frozen=True, slots=True)
class _Export:
    """An export as it was asked for; its methods are the stages after that, in their order."""

    question: Question
    target: Path
    exporter: Exporter
    other: Exporter | None  # the one that is not tried, which advice may name
    opset: int | None
    external_data: bool
    timeout: float
    constants: bool
    require_folded: bool
    notes: tuple[str, ...]
    steps: TimedSteps

    def reference(self, forget: Callable[[], None]) -> Reference:
        """The module as a function, run once: if it fails, that shows before the export, which takes long."""
        first = first_run(self.question, self.steps)
        forget()
        return Reference.of(self.question, output_names(self.question, first), first)

    def run(self, reference: Reference, folder: Path, forget: Callable[[], None]) -> _Done:
        """Export, fold, and compare in onnxruntime with the module; files go into a folder of their own."""
        signature = self.question.signature
        with Runtime(self.timeout) as runtime:  # it starts while torch exports
            made = self.make(reference, folder)
            written = self.fold_and_name(made, folder)
            opened = replace(runtime.open(written.path), path=self.target)  # the path that errors name
            check_dynamic(opened, signature, self.exporter)
            ports = ports_of(opened, signature)
            proof = prove_beside(self.question, reference, ports, self.steps, forget)
        return self.report(made, written, proof, (*signature.notes, *ports.notes)), made, written

    def make(self, reference: Reference, folder: Path) -> _Made:
        """Export a folded copy of the module with torch, and open the file."""
        copy, in_copy = folded_copy(self.question.module, self.steps)
        path = _raw(folder)
        path.parent.mkdir(parents=True)
        with self.steps("export", f"by torch's {AGES[self.exporter]} exporter") as step:
            export_raw(
                copy,
                tensors_of(export_arrays(self.question.signature)),
                self.question.signature,
                path,
                exporter=self.exporter,
                outputs=tuple(reference.first.outputs),
                opset=self.opset,
                external_data=self.external_data,
                other=self.other,
                sample=self.question.first,
            )
            if self.external_data and self.exporter == "torchscript":
                take_out_data(path)
            exported = open_checkpoint(path)
            graph = graph_of(exported)
            opset = graph.model.opsets.get("", 0)
            check_opset(self.opset, opset)
            step.detail = f"opset {opset}, {counted(nodes_of(graph), 'node')}"
        return _Made(exported, copy, in_copy)

    def fold_and_name(self, made: _Made, folder: Path) -> _Written:
        """Fold what is left in the graph of weight norm and all other kinds, name the initializers, write."""
        graph, path = graph_of(made.exported), _written(folder, self.target)
        with self.steps("fold", "weight norm that the exporter left in the graph") as step:
            fold = plan_graph_fold(graph, Selection(kinds=(*ALL, Unit.kind)), constants=self.constants)
            step.detail = left_in_graph(fold)
        with self.steps("name", "initializers after layers") as step:
            naming = naming_of(made.exported, fold, parameters_of(made.copy))
            new, step.detail = naming.new, str(naming)
        fold = replace(fold, edits=renamed(graph.model, fold.edits, new))
        path.parent.mkdir()
        write_folded(made.exported, fold, path.parent, self.target)
        check = partial(check_exported, raw=graph, target=self.target)
        opened, required = check_structure(path, Container.ONNX), self.require_folded
        model = check_model(opened, self.steps, check, require_folded=required, fold=fold)
        check_no_residual(model.residual, self.target)
        return _Written(path, fold, len(new), model)

    def report(self, made: _Made, written: _Written, proof: Proof, notes: Iterable[str]) -> ExportReport:
        """The report of all stages, with notes on ports and samples."""
        return ExportReport(
            model=str(self.target),
            size=written.model.size,
            reference=reference_text(self.question.module),
            proof=proof,
            opset=written.model.opset,
            residual_weight_norm=len(written.model.residual),
            computed=written.model.computed,
            constants=written.model.constants,
            exporter=self.exporter,
            nodes_exported=nodes_of(graph_of(made.exported)),
            nodes=written.model.nodes,
            folded_in_module=len(made.folded),
            folded_in_graph=len(written.fold.layers),
            initializers_named=written.named,
            steps=tuple(self.steps.every),
            notes=(*self.notes, *notes, *proof.notes, *written.model.notes),
            remedy=remedy_of(proof, self.question.module, self.exporter),
            reference_sha256=tensors_sha256(self.question.module),
        )


def _first_good(
    export: _Export,
    exporters: Sequence[Exporter],
    reference: Reference,
    folder: Path,
    forget: Callable[[], None],
) -> _Done:
    """Export with the first exporter; where it fails or fixes a size, with the next, which a note says.

    Where both fail, the first one's report or error is the one that counts.
    """
    exporter, *others = exporters
    forget()
    try:
        done = replace(export, exporter=exporter).run(reference, folder / exporter, forget)
    except (ArgumentError, UnfoldedError, VerifyError) as error:
        if not others:
            raise
        try:
            return _first_good(_followed(export, others[0], error.what), others, reference, folder, forget)
        except WnconvertError as second:
            if second.what != error.what:
                too = f"torch's {AGES[others[0]]} exporter failed too: {second.what}"
                error.fix = "; ".join(filter(None, (error.fix, too)))
            raise error from second
    if done[0] or not done[0].proof.fixed or not others:
        return done
    fixed = listed(f"{letter} at {size}" for letter, size in done[0].proof.fixed.items())
    try:
        second_try = _followed(export, others[0], f"it fixed {fixed}")
        again = _first_good(second_try, others, reference, folder, forget)
    except WnconvertError:
        return done
    return again if again[0] else done


def _followed(export: _Export, by: Exporter, why: str) -> _Export:
    """The export with a note that it is by this exporter, and why."""
    note = f"torch's {AGES[by]} exporter was used, since the newer one failed: {why}"
    return replace(export, notes=(*export.notes, note))
