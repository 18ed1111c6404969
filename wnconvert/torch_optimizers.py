"""Optimizer state that names parameters, as distributed checkpoints and named optimizers write it.

Most optimizer state is by position and need not know of a migration. Where it is by name, the names change
with those of the parameters. Sources: ``torch.optim.Optimizer.state_dict`` (``param_names``),
``torch.distributed.checkpoint.state_dict`` (names as keys of ``state`` and in ``params``).
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from wnconvert.pickle_values import Dict, Object, Value
from wnconvert.plan import Keep, Plan
from wnconvert.torch_objects import get, mapping_pairs, with_pairs

__all__ = ["Renames", "optimizer_edits", "renames"]


@dataclass(frozen=True, slots=True)
class Renames:
    """The new names of the parameters that a plan renames, and all names that its state dicts had.

    A name that another state dict keeps is not among the first.
    """

    new: Mapping[str, str]
    known: Set[str]


def renames(plan: Plan) -> Renames:
    """What a plan renames."""
    keeps = [step for planned in plan.state_dicts for step in planned.steps if isinstance(step, Keep)]
    kept = {step.name for step in keeps if step.name == step.source}
    new = {step.source: step.name for step in keeps if step.name != step.source and step.source not in kept}
    return Renames(new, {step.source for step in keeps})


def optimizer_edits(node: Value, names: Renames) -> dict[int, Value]:
    """The records that stand in the place of old ones, by ``id``, where an optimizer names parameters."""
    mapping = node.state if isinstance(node, Object) and isinstance(node.state, Dict) else node
    state = get(mapping, "state")
    pairs = mapping_pairs(state) or []
    groups = get(mapping, "param_groups")
    lists = [
        listed
        for group in (groups if isinstance(groups, list) else ())
        for key in ("params", "param_names")
        if isinstance(listed := get(group, key), list)
    ]
    texts = (*(key for key, _ in pairs), *(name for each in lists for name in each))
    new = _with_prefix({name for name in texts if isinstance(name, str)}, names)
    edits: dict[int, Value] = {}
    if any(_is_one_of(key, new) for key, _ in pairs):
        edits[id(state)] = with_pairs(state, [(_renamed(key, new), value) for key, value in pairs])
    for each in lists:
        if any(_is_one_of(name, new) for name in each):
            edits[id(each)] = [_renamed(name, new) for name in each]
    return edits


def _with_prefix(texts: Set[str], names: Renames) -> Mapping[str, str]:
    """The new names as an optimizer spells them, which may be those of a wrapper: with one prefix more."""
    others = texts - names.known
    first = min(others, key=len, default="")
    for known in names.known if first else ():
        prefix = first.removesuffix(known)
        if prefix.endswith(".") and all(
            text.startswith(prefix) and text[len(prefix) :] in names.known for text in others
        ):
            return {**names.new, **{prefix + old: prefix + new for old, new in names.new.items()}}
    return names.new


def _is_one_of(name: Value, names: Mapping[str, str]) -> bool:
    return isinstance(name, str) and name in names


def _renamed(name: Value, names: Mapping[str, str]) -> Value:
    return names[name] if _is_one_of(name, names) else name
