"""What an export or a check found, and the steps that it took, each told as it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from wnconvert.verbs.proof.outputs import OutputProof
from wnconvert.verbs.proof.proof import Proof

__all__ = ["ExportReport", "TimedStep", "TimedSteps"]


@dataclass(frozen=True, slots=True)
class TimedStep:
    """A step that was done: its name, what came of it in a few words, and its wall time."""

    name: str
    detail: str
    seconds: float


@dataclass(slots=True)
class _Doing:
    """A step under way; what came of it is told when it is done."""

    detail: str = ""


class TimedSteps:
    """The steps that are done, each told as it ends.

    >>> steps = TimedSteps(lambda step: print(step.name, step.detail))
    >>> with steps("fold") as step:
    ...     step.detail = "3 layers"
    fold 3 layers
    """

    def __init__(self, progress: Callable[[TimedStep], None]) -> None:
        self.progress = progress
        self.every: list[TimedStep] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[_Doing]:
        """A step of that name, which is not told where the block fails."""
        began, doing = time.perf_counter(), _Doing()
        yield doing
        self.every.append(TimedStep(name, doing.detail, time.perf_counter() - began))
        self.progress(self.every[-1])


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export or a check of a model did and found; true where the model is equal to its reference.

    ``model`` is its path and ``size`` its bytes, external data among them; ``reference`` says in words what
    it is equal to. What ``check_onnx`` does not do is None: the exporter, nodes as exported and now,
    layers that were folded in the module and in the graph, and how many initializers were named after them.
    """

    model: str
    size: int
    reference: str
    proof: Proof
    opset: int | None = None
    residual_weight_norm: int | None = None
    exporter: str | None = None
    nodes_exported: int | None = None
    nodes: int | None = None
    folded_in_module: int | None = None
    folded_in_graph: int | None = None
    initializers_named: int | None = None
    steps: tuple[TimedStep, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.proof)

    @property
    def outputs(self) -> tuple[OutputProof, ...]:
        """The outputs, one by one."""
        return self.proof.outputs

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data; docs/rules.md documents it. What is not finite is null."""
        proof = self.proof
        mine = {key: value for key, value in asdict(self).items() if key not in ("proof", "model")}
        return {
            "schema": 1,
            "model": self.model,
            "equal": bool(self),
            **_plain(mine),
            "rtol": proof.rtol,
            "atol": proof.atol,
            "tolerance": proof.tolerance,
            "advice": proof.advice,
            "samples": [{"seed": sample.seed, "sizes": dict(sample.sizes)} for sample in proof.samples],
            "outputs": [{**_plain(asdict(output)), "passed": output.passed} for output in proof.outputs],
            "mismatches": list(proof.mismatches),
            "reference_seconds": proof.reference_seconds,
            "candidate_seconds": proof.candidate_seconds,
        }


def _plain(value: Any) -> Any:
    """A value as JSON has them: sequences as lists, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
