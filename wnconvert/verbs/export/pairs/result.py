"""The result of a comparison of two ONNX models: frozen data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.messages import counted, short_repr
from wnconvert.shown import Paged
from wnconvert.verbs.comparison.initializers import Initializers
from wnconvert.verbs.models.proof.proof import Proof
from wnconvert.verbs.models.proof.report import TimedStep, proof_data

__all__ = ["OnnxComparison"]


@dataclass(frozen=True, slots=True, repr=False)
class OnnxComparison(Paged):
    """Two ONNX models compared; true if they compute the same.

    ``initializers`` tell which weights are equal, which are only renamed, and how far the others are apart.
    ``proof`` compares the outputs of B with those of A on the same samples, and decides; without one (no
    samples) the weights decide. ``spoiled`` are names of weights that differ by more than rounding: they
    make models differ whose tolerance is no more than an SNR.
    """

    a: str
    b: str
    initializers: Initializers
    proof: Proof | None
    spoiled: tuple[str, ...] = ()
    steps: tuple[TimedStep, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        if self.proof is None:
            return bool(self.initializers.weights)
        return bool(self.proof) and not self.spoiled

    def __repr__(self) -> str:
        weights = self.initializers.weights
        return short_repr(
            f"OnnxComparison: {self.a} and {self.b} {'are equal' if self else 'differ'}",
            [item.name for item in weights.differing],
            f"{counted(weights.compared, 'weight')} in both, {len(self.initializers.renamed)} renamed",
            self.proof.measured if self.proof is not None else "outputs not compared",
        )

    @property
    def advice(self) -> str:
        """What would have made the comparison pass, in words; empty if it passed."""
        if self:
            return ""
        if self.spoiled:
            return "no tolerance would have passed: weights differ by more than rounding"
        return self.initializers.weights.advice if self.proof is None else self.proof.advice

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON-able data; docs/json.md documents it."""
        return {
            "schema": 1,
            "a": self.a,
            "b": self.b,
            "equal": bool(self),
            "advice": self.advice,
            "weights": self.initializers.weights.to_dict(),
            "renamed": [{"a": own, "b": other} for own, other in self.initializers.renamed],
            "spoiled": list(self.spoiled),
            "proof": None if self.proof is None else proof_data(self.proof),
            "steps": [asdict(step) for step in self.steps],
            "notes": list(self.notes),
        }
