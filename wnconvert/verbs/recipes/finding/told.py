"""What one forward of a module tells: its layers and its norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from torch import nn
from torch.fx import GraphModule

from wnconvert.frozen import dataclass
from wnconvert.layers.kinds.table import ALL
from wnconvert.layers.recipes import RecipeFold
from wnconvert.verbs.modules.finding.live import find_live
from wnconvert.verbs.recipes.finding.layers import Linear, Weights, linears_in
from wnconvert.verbs.recipes.finding.norms import Normed, norms_in
from wnconvert.verbs.recipes.tracing.trace import Trace

__all__ = ["Told", "told_of"]


@dataclass(frozen=True, slots=True)
class Told:
    """What one forward told: the trace, its layers, the uses of its norms, and what weights are computed by.

    ``unexplained`` are weights that are computed and stay, each with the reason.
    """

    trace: Trace
    linears: tuple[Linear, ...]
    norms: tuple[Normed, ...]
    computed: tuple[RecipeFold, ...] = ()
    unexplained: Mapping[str, str] = field(default_factory=dict)


def told_of(module: nn.Module, trace: Trace) -> Told:
    """The layers and the norms in a trace of a module; what its weights are computed by is not told here."""
    return Told(trace, linears_in(trace, _known_weights(module)), norms_in(trace))


def _known_weights(module: nn.Module) -> Weights:
    """What the modules tell of weights: those that are computed in a known way, and places for biases."""
    made = {}
    for live in find_live(module, ALL).layers:
        parts = frozenset(part.name for part in live.layer.parts.values())
        made[parts] = live.layer.name
    # The modules of a program hold tensors alone: whether theirs had a place for a bias is not in it.
    are_all = isinstance(module, GraphModule)
    biases = [
        f"{name}.bias" if name else "bias"
        for name, each in module.named_modules()
        if "bias" in each._parameters or getattr(each, "bias", 0) is None or are_all
    ]
    return Weights(made, frozenset(biases))
