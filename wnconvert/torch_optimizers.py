"""Optimizer state that names parameters, as distributed checkpoints and named optimizers write it.

Most optimizer state is by position and need not know of a migration. Where it is by name, the names change
with those of the parameters. Sources: ``torch.optim.Optimizer.state_dict`` (``param_names``),
``torch.distributed.checkpoint.state_dict`` (names as keys of ``state`` and in ``params``).
"""

from __future__ import annotations

from collections.abc import Mapping

from wnconvert.pickles import Dict, Object, Value
from wnconvert.plan import Keep, Plan
from wnconvert.torch_objects import get, mapping_pairs, with_pairs

__all__ = ["optimizer_edits", "renames"]


def renames(plan: Plan) -> dict[str, str]:
    """The new names of the parameters that a plan renames, less those that another state dict keeps."""
    keeps = [step for planned in plan.state_dicts for step in planned.steps if isinstance(step, Keep)]
    kept = {step.name for step in keeps if step.name == step.source}
    return {step.source: step.name for step in keeps if step.name != step.source and step.source not in kept}


def optimizer_edits(node: Value, names: Mapping[str, str]) -> dict[int, Value]:
    """The records that stand in the place of old ones, by ``id``, where an optimizer names parameters."""
    mapping = node.state if isinstance(node, Object) and isinstance(node.state, Dict) else node
    edits: dict[int, Value] = {}
    state = get(mapping, "state")
    pairs = mapping_pairs(state) or []
    if any(_is_one_of(key, names) for key, _ in pairs):
        edits[id(state)] = with_pairs(state, [(_renamed(key, names), value) for key, value in pairs])
    groups = get(mapping, "param_groups")
    for group in groups if isinstance(groups, list) else ():
        for key in ("params", "param_names"):
            listed = get(group, key)
            if isinstance(listed, list) and any(_is_one_of(name, names) for name in listed):
                edits[id(listed)] = [_renamed(name, names) for name in listed]
    return edits


def _is_one_of(name: Value, names: Mapping[str, str]) -> bool:
    return isinstance(name, str) and name in names


def _renamed(name: Value, names: Mapping[str, str]) -> Value:
    return names[name] if _is_one_of(name, names) else name
