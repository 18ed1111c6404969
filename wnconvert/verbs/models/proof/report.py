"""The report of an export or a check, and its steps with their times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, field
from typing import TYPE_CHECKING, Any

from wnconvert.frozen import dataclass
from wnconvert.messages import counted, short_repr
from wnconvert.plan.plan import ComputedWeight, PlannedConstant
from wnconvert.shown import Drawn, Paged
from wnconvert.verbs.models.proof.outputs import OutputProof
from wnconvert.verbs.models.proof.proof import Proof

if TYPE_CHECKING:  # which loads torch
    from wnconvert.verbs.models.proof.handed import HandedProof

__all__ = ["ExportReport", "TimedStep", "TimedSteps", "as_json", "proof_data"]


@dataclass(frozen=True, slots=True)
class TimedStep:
    """A step: its name, its result in a few words, and its wall time.

    A step that begins has no ``seconds`` yet, and ``detail`` says what it is about to do.
    """

    name: str
    detail: str
    seconds: float | None = None


@dataclass(slots=True)
class _Doing:
    """A step under way; its code sets ``detail``, the result in a few words."""

    detail: str = ""


class TimedSteps:
    """The finished steps; ``progress`` is called with each as it begins, and again as it ends.

    >>> steps = TimedSteps(lambda step: print(step.name, step.detail))
    >>> with steps("fold", "a copy") as step:
    ...     step.detail = "3 layers"
    fold a copy
    fold 3 layers
    """

    def __init__(self, progress: Callable[[TimedStep], None]) -> None:
        self.progress = progress
        self.every: list[TimedStep] = []

    @contextmanager
    def __call__(self, name: str, what: str) -> Iterator[_Doing]:
        """Time a block as a step, which is about to do ``what``; a block that fails is not finished."""
        self.progress(TimedStep(name, what))
        began, doing = time.perf_counter(), _Doing()
        yield doing
        self.every.append(TimedStep(name, doing.detail, time.perf_counter() - began))
        self.progress(self.every[-1])


@dataclass(frozen=True, slots=True, repr=False)
class ExportReport(Paged, Drawn):
    """The result of an export or a check; true if the model is equal to its reference.

    ``model`` is the path of the model, ``size`` its bytes with external data, and ``reference`` describes
    the module. ``computed`` are the weights that the model computes of stored tensors at every run,
    ``constants`` those that an export evaluated in float64 and stored.
    ``sha256`` has that of each file that was proven, by its name, and ``reference_sha256`` that of the
    module's parameters and buffers: of name, dtype, shape and bytes of each, by their names. ``remedy`` is
    what to do where the exporter is at fault. Only an export sets the exporter,
    ``nodes_exported``, the numbers of layers that were folded in the module and in the graph, and the number
    of initializers that were named; a check leaves them None. Only the check of a checkpoint has the
    ``layers``, whose weights it compares.
    """

    model: str
    size: int
    reference: str
    proof: Proof
    opset: int | None = None
    residual_weight_norm: int | None = None
    computed: tuple[ComputedWeight, ...] = ()
    constants: tuple[PlannedConstant, ...] = ()
    exporter: str | None = None
    nodes_exported: int | None = None
    nodes: int | None = None
    folded_in_module: int | None = None
    folded_in_graph: int | None = None
    initializers_named: int | None = None
    layers: tuple[HandedProof, ...] = ()
    steps: tuple[TimedStep, ...] = ()
    notes: tuple[str, ...] = ()
    remedy: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    reference_sha256: str = ""

    def __bool__(self) -> bool:
        return bool(self.proof) and all(layer.passed for layer in self.layers)

    def __repr__(self) -> str:
        return short_repr(
            f"ExportReport: {self.model} {'equals' if self else 'does not equal'} {self.reference}",
            [f"{output.name} {'equal' if output.passed else 'different'}" for output in self.outputs],
            f"{self.size:,} bytes",
            counted(len(self.notes), "note") if self.notes else "",
        )

    @property
    def outputs(self) -> tuple[OutputProof, ...]:
        """The outputs, one by one."""
        return self.proof.outputs

    @property
    def advice(self) -> str:
        """What would have made the proof pass, in words; empty if it passed."""
        return self.remedy or self.proof.advice

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data; docs/json.md documents it. What is not finite is null."""
        mine = {key: value for key, value in asdict(self).items() if key not in ("proof", "model", "remedy")}
        return {
            "schema": 1,
            "model": self.model,
            "equal": bool(self),
            **as_json(mine),
            **proof_data(self.proof),
            "advice": self.advice,
        }


def proof_data(proof: Proof) -> dict[str, Any]:
    """A proof as JSON-able data."""
    return {
        "rtol": proof.rtol,
        "atol": proof.atol,
        "min_snr": proof.leniency.min_snr,
        "outliers": proof.leniency.outliers,
        "tolerance": proof.tolerance,
        "measured": proof.measured,
        "wobble": proof.wobble,
        "advice": proof.advice,
        "fixed": dict(proof.fixed),
        "samples": [
            {"seed": sample.seed, "sizes": dict(sample.sizes), "source": sample.source or None}
            for sample in proof.samples
        ],
        "outputs": [_output_data(output) for output in proof.outputs],
        "mismatches": list(proof.mismatches),
        "reference_seconds": proof.reference_seconds,
        "candidate_seconds": proof.candidate_seconds,
    }


def _output_data(output: OutputProof) -> dict[str, Any]:
    plain: dict[str, Any] = as_json(asdict(output))
    del plain["pair"]  # elements are no part of a report
    return plain | {"passed": output.passed}


def as_json(value: Any) -> Any:
    """A value as JSON has it: sequences are lists, and numbers that are not finite are None."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
