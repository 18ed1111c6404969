"""What the weights of layers are computed by, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wnconvert.layers.rules import Guard, Mask, Norm, NormBehind, Operation, Rule, Spectral, Standardize, Unit
from wnconvert.layers.schemes import Layer
from wnconvert.messages import listed, printable

__all__ = ["formula_in_words", "formula_notes"]


#: How many layers of a formula are named.
_MOST = 6
_IN_WORDS: dict[type[Operation], str] = {
    Spectral: "w/σ",
    Mask: "w·mask",
    Standardize: "(w - mean)·γ/d",
    NormBehind: "w·γ/√(v + eps)",
}


def formula_in_words(rule: Rule) -> str:
    """What a rule computes.

    >>> formula_in_words(Rule((Mask(), Norm(0))))
    'g·v/‖v‖ of w·mask'
    >>> formula_in_words(Rule((Unit(0, Guard(1e-12)),)))
    'w/max(‖w‖, 1e-12)'
    """
    return " of ".join(map(_operation, reversed(rule.operations)))


def formula_notes(layers: Iterable[Layer]) -> Iterator[str]:
    """A sentence on each formula with an eps that divides rows by their norms, and on unit rows.

    Weight norm as torch has it is not said.
    """
    named: dict[str, list[str]] = {}
    for layer in layers:
        norm = next((each for each in layer.rule.operations if isinstance(each, (Norm, Unit))), None)
        if isinstance(norm, Unit) or (norm is not None and norm.guard is not None):
            named.setdefault(formula_in_words(layer.rule), []).append(printable(layer.name))
    for formula, names in named.items():
        yield f"{listed(names, _MOST)} {'is' if len(names) == 1 else 'are'} {formula}"


def _operation(operation: Operation) -> str:
    match operation:
        case Norm(guard=guard):
            return f"g·v/{_divisor(guard, '‖v‖')}"
        case Unit(guard=guard, scale=scale):
            return f"{float(scale):.6g}·" * (scale != 1) + f"w/{_divisor(guard, '‖w‖')}"
    return _IN_WORDS[type(operation)]


def _divisor(guard: Guard | None, norm: str) -> str:
    """What rows are divided by."""
    if guard is None:
        return norm
    by_squares = "squares" in guard.at
    inside = f"{float(guard.share):.6g}·" * (guard.share != 1) + (f"{norm}²" if by_squares else norm)
    eps = f"{guard.eps:.6g}"
    if guard.is_least:
        found = f"max({inside}, {eps})"
    else:
        found = f"({inside} + {eps})" if guard.eps else f"({inside})"
    return f"√{found}" if by_squares else found
