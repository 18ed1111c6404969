"""Folding inside a whole pickled ``nn.Module``, so that with its class at hand it loads and runs.

What ``torch.nn.utils.remove_weight_norm`` does to a live module, done to its record: the weight becomes a
Parameter in the place of g and v, the cached weight and the ``WeightNorm`` hook go, and an RNN's
``_flat_weights`` hold the same Parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from wnconvert.pickles import Value
from wnconvert.plan import Fold, Keep, PlannedStateDict
from wnconvert.torch_objects import FoundModule, get, mapping_pairs, weight_norm_hook, with_pairs

__all__ = ["module_edits"]


def module_edits(
    modules: Iterable[FoundModule], planned: PlannedStateDict, value_of: Callable[[Keep | Fold], Value]
) -> dict[int, Value]:
    """The records that stand in the place of old ones, by ``id``; ``value_of`` makes a step's tensor."""
    steps: dict[str, Keep | Fold] = {step.name: step for step in planned.steps if isinstance(step, Keep)}
    steps |= {half.name: fold for fold in planned.folds for half in (fold.layer.g, fold.layer.v)}
    edits: dict[int, Value] = {}
    for module in modules:
        state = module.node.state
        weights: dict[str, Value] = {}
        for kind in ("_parameters", "_buffers"):
            pairs: dict[Value, Value] = {}
            for key, value in mapping_pairs(get(state, kind)) or ():
                step = steps.get(f"{module.prefix}{key}")
                if isinstance(step, Fold):
                    key = step.name.removeprefix(module.prefix)  # noqa: PLW2901 - both halves become w
                    weights[key] = value_of(step)
                pairs[key] = value if step is None or value is None else value_of(step)
            if pairs:
                edits[id(get(state, kind))] = with_pairs(get(state, kind), list(pairs.items()))
        if weights:
            edits |= _attribute_edits(state, weights)
    return edits


def _attribute_edits(state: Value, weights: Mapping[str, Value]) -> dict[int, Value]:
    """A module's own record without cached weights, its hooks, and an RNN's flat weights."""
    edits: dict[int, Value] = {}
    edits[id(state)] = with_pairs(
        state, [pair for pair in mapping_pairs(state) or () if pair[0] not in weights]
    )
    hooks = get(state, "_forward_pre_hooks")
    if pairs := mapping_pairs(hooks):
        kept = [pair for pair in pairs if (weight_norm_hook(pair[1]) or ("",))[0] not in weights]
        edits[id(hooks)] = with_pairs(hooks, kept)
    flat, names = get(state, "_flat_weights"), get(state, "_flat_weights_names")
    if isinstance(flat, list) and isinstance(names, list) and len(flat) == len(names):
        edits[id(flat)] = [weights.get(name, value) for name, value in zip(names, flat, strict=True)]
    return edits
