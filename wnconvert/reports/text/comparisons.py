"""Comparisons as text: a row for each difference, names on one side only, then counts and the tolerance."""

from __future__ import annotations

from collections.abc import Callable

from wnconvert.messages import counted, few, listed, printable
from wnconvert.reports.tables import Table, distance_text, number_text
from wnconvert.reports.text.exports import proof_table, reasons, samples_text
from wnconvert.verbs.comparison.result import Comparison, Difference, Operand
from wnconvert.verbs.export.pairs.result import OnnxComparison

__all__ = [
    "comparison_line",
    "comparison_more",
    "comparison_table",
    "comparison_text",
    "models_line",
    "models_more",
    "models_text",
    "models_verdict",
]


_NUMBERS = ("different", "max abs", "max rel", "ulps", "cosine", "SNR dB", "worst at")

_SPARE = ("cosine", "max rel", "worst at", "different", "SNR dB")


def comparison_text(found: Comparison, width: int | None = None, alarm: Callable[[str], str] = str) -> str:
    """The output of ``compare``; names are shortened to fit ``width``, and ``alarm`` marks a difference."""
    table = comparison_table(found)
    lines = [] if table is None else [table.text(width)]
    return "\n".join([*lines, *map(printable, comparison_more(found)), comparison_line(found, alarm)])


def comparison_table(found: Comparison) -> Table | None:
    """The tensors that differ, or None without any."""
    several = len(found.pairs) > 1
    heads = ("name", "tensor", *_NUMBERS)
    rows = tuple(_row(item, several=several) for item in found.differing)
    return Table(heads, rows, frozenset(_NUMBERS), elastic=("name", "tensor"), spare=_SPARE) if rows else None


def comparison_more(found: Comparison) -> list[str]:
    """Names on one side only, and what would have passed."""
    lines = [f"only in {found.a}: {listed(found.only_in_a)}"] if found.only_in_a else []
    lines += [f"only in {found.b}: {listed(found.only_in_b)}"] if found.only_in_b else []
    return [*lines, *filter(None, (found.advice,))]


def comparison_line(found: Comparison, alarm: Callable[[str], str] = str) -> str:
    """The last line of ``compare``: the verdict, and what was counted."""
    counts = [f"{found.identical} the same to the bit", f"{found.within} within {found.tolerance}"]
    counts += [f"{len(found.differing)} different"] if found.differing else []
    compared = f"{counted(found.compared, 'tensor')} compared, {counted(found.layers, 'layer')} among them"
    verdict = "equal" if found else alarm("different")
    return f"{verdict}: {compared}: {', '.join(counts)}"


# -- ONNX models


def models_text(found: OnnxComparison, width: int | None = None, alarm: Callable[[str], str] = str) -> str:
    """The output of ``compare`` of two ONNX models: weights, outputs, and what decides."""
    weights, proof = found.initializers.weights, found.proof
    differing = comparison_table(weights)
    lines = [] if differing is None else [differing.text(width)]
    lines += map(printable, _weights(found))
    if proof is None:
        return "\n".join([*lines, models_line(found, alarm)])
    table = proof_table(proof)
    lines += [] if table is None else [table.text(width)]
    if found:
        return "\n".join([*lines, models_line(found, alarm)])
    return "\n".join([*lines, f"{models_verdict(found, alarm)}:", *map(printable, models_more(found))])


def models_line(found: OnnxComparison, alarm: Callable[[str], str] = str) -> str:
    """The last line of ``compare`` of two ONNX models: the verdict, and what would have changed it."""
    advice = f": {printable(found.advice)}" if found.advice else ""
    return f"{models_verdict(found, alarm)}{advice}"


def models_verdict(found: OnnxComparison, alarm: Callable[[str], str] = str) -> str:
    """Whether two ONNX models are equal, and on what."""
    proof = found.proof
    if proof is None:
        return f"{'equal in their weights' if found else alarm('different')}; nothing was run"
    if not found:
        return f"{alarm('different')} on {printable(samples_text(proof))}"
    return printable(f"equal on {samples_text(proof)}, within {proof.tolerance}: {proof.measured}")


def models_more(found: OnnxComparison) -> list[str]:
    """Why two ONNX models differ, and what would have changed that; empty if they are equal."""
    if found:
        return []
    spoiled = [f"weight {name} differs by more than rounding" for name in found.spoiled]
    why = few([*spoiled, *(reasons(found.proof) if found.proof is not None else ())])
    return [*why, *filter(None, (found.advice,))]


def _weights(found: OnnxComparison) -> list[str]:
    """The weights of two models, in a few lines."""
    weights = found.initializers.weights
    lines = [f"only in {weights.a}: {listed(weights.only_in_a)}"] if weights.only_in_a else []
    lines += [f"only in {weights.b}: {listed(weights.only_in_b)}"] if weights.only_in_b else []
    if found.initializers.renamed:
        lines.append(f"renamed: {listed(f'{a} is {b}' for a, b in found.initializers.renamed)}")
    counts = [f"{weights.identical} the same to the bit", f"{weights.within} within {weights.tolerance}"]
    counts += [f"{len(weights.differing)} different"] if weights.differing else []
    both = f"{counted(weights.compared, 'weight')} in both, {counted(weights.layers, 'layer')} computed"
    return [*lines, f"{both}: {', '.join(counts)}"]


def _row(item: Difference, *, several: bool) -> tuple[str, ...]:
    name = f"{item.state_dict}: {item.name}" if several and item.state_dict else item.name
    if item.why in ("shape", "dtype"):
        return (name, f"{_tensor(item.a)} | {_tensor(item.b)}", *("" for _ in _NUMBERS))
    worst = "" if item.worst is None else f"[{', '.join(map(str, item.worst))}]"
    shape = "×".join(map(str, item.a.shape)) or "()"
    ulps = "" if item.ulps is None else str(item.ulps)
    before, after = (
        (distance_text(item.max_abs, item.unmatched), number_text(item.max_rel)),
        map(number_text, (item.cosine, item.snr_db)),
    )
    return (name, shape, str(item.different), *before, ulps, *after, worst)


def _tensor(operand: Operand) -> str:
    return f"{operand.dtype} {'×'.join(map(str, operand.shape)) or '()'}"
