"""Two ONNX models as a page: their weights by name and by what they hold, and what both compute."""

from __future__ import annotations

from collections.abc import Iterator

from wnconvert.messages import counted
from wnconvert.reports.html.comparisons import ABOUT, shown_comparison, sides_text
from wnconvert.reports.html.outputs import shown_outputs
from wnconvert.reports.html.page import Page
from wnconvert.reports.html.proofs import package_versions
from wnconvert.reports.text.comparisons import models_more, models_verdict
from wnconvert.verbs.export.pairs.result import OnnxComparison

__all__ = ["models_page"]


_PACKAGES = ("onnx", "onnxruntime", "numpy")


def models_page(found: OnnxComparison) -> Page:
    """The page of a comparison of two ONNX models."""
    compared = shown_comparison(found.initializers.weights, "weight")
    outputs = None if found.proof is None else shown_outputs(found.proof, ("A", "B"))
    shown = {
        "found": found,
        "verdict": models_verdict(found),
        "why": models_more(found),
        "facts": list(_facts(found)),
        "compared": compared,
        "outputs": outputs,
        "versions": package_versions(_PACKAGES),
    }
    data = {"comparisons": [compared.data], **(outputs.data if outputs else {"outputs": [], "waves": []})}
    title = sides_text(found.a, found.b)
    return Page("models", title, ABOUT, shown, data, media=True, uses=("comparison", "proof"))


def _facts(found: OnnxComparison) -> Iterator[tuple[str, str]]:
    weights, renamed, proof = found.initializers.weights, len(found.initializers.renamed), found.proof
    yield "A", found.a
    yield "B", found.b
    matched = f"{weights.compared - renamed:,} by name, {renamed:,} by what they hold"
    yield "weights", f"{counted(weights.compared, 'weight')} in both: {matched}"
    computed = counted(weights.layers, "layer")
    yield "compared", f"as a fold stores them ({computed} computed), within {weights.tolerance}"
    apart = len(weights.differing)
    yield "of these", f"{weights.identical} the same to the bit, {weights.within} within, {apart} different"
    if proof is None:
        yield "outputs", "nothing was run: weights decide"
        return
    yield "equal outputs", f"within {proof.tolerance.replace('reference', 'A')}"
    yield "measured", proof.measured
