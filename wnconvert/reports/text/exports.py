"""Exports and checks as text: steps, outputs, the verdict in words; and what a model takes, as a list."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wnconvert.messages import counted, few, listed, printable
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.reports.tables import Table, bytes_text, distance_text, number_text
from wnconvert.verbs.models.proof.outputs import OutputProof, Worst
from wnconvert.verbs.models.proof.proof import Proof
from wnconvert.verbs.models.proof.report import ExportReport, TimedStep
from wnconvert.verbs.models.proof.samples import Sample

if TYPE_CHECKING:  # it loads torch
    from wnconvert.verbs.models.loading.prepared import ModelInputs

__all__ = [
    "inputs_line",
    "inputs_text",
    "proof_line",
    "proof_more",
    "proof_table",
    "proof_text",
    "reasons",
    "samples_text",
    "step_text",
]


_HEADS = ("output", "shape", "max abs", "max rel", "SNR dB", "worst at", "needs atol", "or rtol")
_RIGHT = frozenset(("max abs", "max rel", "SNR dB", "needs atol", "or rtol"))
_SPARE = ("or rtol", "max rel", "SNR dB", "worst at", "shape")
#: Formats in which two runtimes that round differently are seldom within the default tolerance.
_SHORT = ("float16", "bfloat16")


def step_text(step: TimedStep) -> str:
    """A step in one line: its name, seconds and result; as it begins, dots in place of the seconds.

    >>> print(step_text(TimedStep("export", "by torch's newer exporter")))
    export       ...  by torch's newer exporter
    >>> print(step_text(TimedStep("export", "opset 20, 412 nodes", 3.21)))
    export     3.2 s  opset 20, 412 nodes
    """
    seconds = "..." if step.seconds is None else f"{step.seconds:.1f} s"
    return printable(f"{step.name:<9}{seconds:>7}  {step.detail}").rstrip()


def inputs_text(found: ModelInputs, width: int | None = None) -> str:
    """The arguments of forward, with what is proposed for each; and what gives the needed ones."""
    rows = tuple(
        (printable(each.name), "yes" if each.needed else "no", printable(each.default), printable(each.text))
        for each in found.proposal.arguments
    )
    heads = ("argument", "needed", "default", "proposed --input")
    lines = [Table(heads, rows, elastic=("argument",), spare=("default",)).text(width)] if rows else []
    lines += ["inputs of any other name are taken too"] if found.takes_others and not rows else []
    if found.proposal.settings:
        said = json.dumps(dict(found.proposal.settings))
        lines.append(
            f"it draws noise: no two runs are the same, and nothing is proven, without --kwargs '{said}'"
        )
    if any("…" in text for text in found.proposal.inputs):
        lines.append("put a dtype and a shape in place of …, such as float32[1,80,T]")
    return "\n".join([*lines, inputs_line(found)])


def inputs_line(found: ModelInputs) -> str:
    """What gives the inputs that are needed, in one line."""
    return printable(f"{found.class_name}: {found.typed or 'no input is needed by name'}")


def proof_text(report: ExportReport, width: int | None = None, alarm: Callable[[str], str] = str) -> str:
    """The report without its steps: the outputs, the model, and whether it is equal to its reference.

    ``alarm`` marks a difference.
    """
    table = proof_table(report.proof)
    lines = [] if table is None else [table.text(width)]
    return "\n".join([*lines, *proof_more(report, alarm)])


def proof_more(report: ExportReport, alarm: Callable[[str], str] = str) -> list[str]:
    """The model, and the verdict: what was equal, or all that differs; each line is printable."""
    model = printable(_model(report))
    if report:
        return [model, proof_line(report)]
    why = [*few([*_weights(report), *reasons(report.proof)]), *filter(None, (report.advice,))]
    return [model, f"{_different(report, alarm)}:", *map(printable, why)]


def proof_table(proof: Proof) -> Table | None:
    """A row for each output, or None without any."""
    rows = tuple(map(_row, proof.outputs))
    return Table(_HEADS, rows, _RIGHT, elastic=("output",), spare=_SPARE) if rows else None


def proof_line(report: ExportReport, alarm: Callable[[str], str] = str) -> str:
    """The verdict in one line: what was equal within which tolerance, or which one would have passed."""
    proof = report.proof
    if not report:
        why = report.advice or f"{len(_weights(report))} layers have another weight"
        return f"{_different(report, alarm)}: {printable(why)}"
    return printable(
        f"equal to {report.reference} on {samples_text(proof)}, within {proof.tolerance}: {proof.measured}"
    )


def _different(report: ExportReport, alarm: Callable[[str], str]) -> str:
    places = ", ".join(_places(report.proof))
    return f"{alarm('different')} {printable(f'from {report.reference} on samples of {places}')}"


def _row(output: OutputProof) -> tuple[str, ...]:
    exact = output.needed_atol is None and output.needed_rtol is None
    none = "none" if exact and not output.passed else ""
    return (
        output.name,
        "×".join(map(str, output.shape)) or "()",
        distance_text(output.max_abs, output.unmatched),
        "" if output.unmatched else number_text(output.max_rel),
        "identical" if output.identical else number_text(output.snr_db),
        _place(output.worst),
        none or number_text(output.needed_atol),
        none or number_text(output.needed_rtol),
    )


def _place(worst: Worst | None) -> str:
    """The index of an element, and its sample."""
    if worst is None:
        return ""
    sample = Sample(worst.seed, worst.sizes, source=worst.source)
    return f"[{', '.join(map(str, worst.index))}], {sample}"


def _model(report: ExportReport) -> str:
    """The model in a line: bytes, opset, nodes, and which weights it still computes at every run."""
    parts = [bytes_text(report.size)]
    parts += [f"opset {report.opset}"] if report.opset is not None else []
    if report.nodes is not None:
        exported = f" ({report.nodes_exported} as exported)" if report.nodes_exported is not None else ""
        parts.append(f"{counted(report.nodes, 'node')}{exported}")
    if report.residual_weight_norm is not None:
        left, computed = report.residual_weight_norm, len(report.computed)
        none = f"no weight norm{' that wnconvert knows' if computed else ''} left"
        parts.append(f"{counted(left, 'layer')} of weight norm left" if left else none)
        parts += [f"{counted(computed, 'weight')} computed at every run"] if computed > left else []
    name = f"{report.model}, not written" if report.exporter and not report else report.model
    return f"{name}: {', '.join(parts)}"


def _weights(report: ExportReport) -> list[str]:
    """The layers that are handed another weight, a line each."""
    return [
        f"layer {layer.name}: its weight is off by {layer.distance:.3g} of the largest in a channel"
        for layer in report.layers
        if not layer.passed
    ]


def reasons(proof: Proof) -> list[str]:
    """What differs, a line each; empty if the proof passed."""
    said = [_failure(output, proof) for output in proof.outputs if not output.passed]
    said += [_failure(output, proof) for output in proof.outputs if proof.within and output.unproven]
    if proof.fixed:  # the samples fail all alike
        return [_fixed(proof), *[*proof.mismatches, *said][:1]]
    return [*proof.mismatches, *said]


def _fixed(proof: Proof) -> str:
    sizes = listed(f"{letter} at {size}" for letter, size in proof.fixed.items())
    return f"the exporter fixed {sizes}: the model runs at no other size"


def _failure(output: OutputProof, proof: Proof) -> str:
    if output.noisy and output.least_snr_db is not None and (output.few or not output.out_of_tolerance):
        return (
            f"output {output.name}: SNR {output.least_snr_db:.1f} dB, less than {proof.leniency.min_snr:g} dB"
        )
    if output.passed:
        return (
            f"output {output.name} is at most {output.largest:.3g}, so zeros would be within "
            f"{proof.tolerance} too, and it is off by {output.max_abs:.3g}"
        )
    count = f"{output.out_of_tolerance} of {counted(output.elements, 'element')}"
    odd = f" ({output.unmatched} NaN or infinite on one side only)" if output.unmatched else ""
    said = f"output {output.name}: {count} further off than {proof.tolerance}{odd}"
    said += "" if output.least_snr_db is None else f", SNR {output.least_snr_db:.1f} dB"
    worst = output.worst
    if output.dtype in _SHORT:
        bits = FLOAT_FORMATS[output.dtype].digits
        said += f" ({output.dtype} has {bits} bits: choose --rtol and --atol for that)"
    return f"{said}: {worst.candidate:.6g} for {worst.reference:.6g} at {_place(worst)}" if worst else said


def samples_text(proof: Proof) -> str:
    """How many samples were drawn, at which sizes, and which are the user's."""
    drawn = counted(sum(not sample.source for sample in proof.samples), "sample")
    at, *own = _places(proof)
    return listed([f"{drawn} ({at})", *own])


def _places(proof: Proof) -> list[str]:
    """The sizes of the drawn samples, or their seeds; then each of the user's samples."""
    drawn = [sample for sample in proof.samples if not sample.source]
    own = [sample for sample in proof.samples if sample.source]
    return [
        _sizes(drawn) or _seeds(drawn),
        *(f"{each.source} ({_sizes([each])})" if each.sizes else each.source for each in own),
    ]


def _sizes(samples: Sequence[Sample]) -> str:
    """The sizes of each letter in some samples; empty without letters."""
    return "; ".join(
        f"{letter} = {', '.join(str(sample.sizes[letter]) for sample in samples)}"
        for letter in samples[0].sizes
    )


def _seeds(samples: Sequence[Sample]) -> str:
    return f"seed{'s' if len(samples) > 1 else ''} {', '.join(str(sample.seed) for sample in samples)}"
