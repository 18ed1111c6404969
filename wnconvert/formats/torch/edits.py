"""Records that take the place of old ones in a pickle: whole modules that are folded, optimizers renamed.

The record of a whole pickled ``nn.Module`` is changed as ``torch.nn.utils.remove_weight_norm`` changes a live
module: the weight becomes a Parameter in the place of g and v, the cached weight and the ``WeightNorm``
hook go, and an RNN's ``_flat_weights`` hold the same Parameter. So with its class at hand it loads and runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from wnconvert.formats.pickle.values import Dict, Object, Value
from wnconvert.formats.torch.contents import Contents, FoundModule
from wnconvert.formats.torch.records import get, mapping_pairs, weight_norm_hook, with_pairs
from wnconvert.plan.plan import Plan, PlannedStateDict
from wnconvert.plan.steps import Step

__all__ = ["Renames", "module_edits", "optimizer_edits", "renames"]


def module_edits(
    modules: Iterable[FoundModule], planned: PlannedStateDict, value_of: Callable[[Step], Value]
) -> dict[int, Value]:
    """The records that stand in the place of old ones, by ``id``; ``value_of`` makes a step's tensor."""
    steps = {source: step for step in planned.steps for source in step.sources}
    names: dict[int, list[str]] = {}  # a module that others share has several
    nodes: dict[int, Object] = {}
    for module in modules:
        names.setdefault(id(module.node), []).append(module.prefix)
        nodes[id(module.node)] = module.node
    edits: dict[int, Value] = {}
    for key, node in nodes.items():
        edits |= _module_edits(node.state, names[key], steps, value_of)
    return edits


def _module_edits(
    state: Value,
    prefixes: Sequence[str],
    steps: Mapping[str, Step],
    value_of: Callable[[Step], Value],
) -> dict[int, Value]:
    edits: dict[int, Value] = {}
    weights: dict[str, Value] = {}
    cast: dict[str, Value] = {}
    for kind in ("_parameters", "_buffers"):
        pairs: list[tuple[Value, Value]] = []
        for key, value in mapping_pairs(get(state, kind)) or ():
            step = _step_of(key, prefixes, steps)
            if step is not None and step.layer is not None:
                name = step.name.rpartition(".")[2]
                if name not in weights:  # all that it is computed from becomes w
                    weights[name] = value_of(step)
                    pairs.append((name, weights[name]))
            elif step is None or value is None:
                pairs.append((key, value))
            else:
                cast[key] = value_of(step)
                pairs.append((key, cast[key]))
        if pairs:
            edits[id(get(state, kind))] = with_pairs(get(state, kind), pairs)
    if weights:
        edits |= _attribute_edits(state, weights)
    return edits | _flat_edits(state, cast | weights)


def _step_of(key: Value, prefixes: Sequence[str], steps: Mapping[str, Step]) -> Step | None:
    """The step for a module's tensor: a fold if any of its names is folded."""
    found = [steps[name] for prefix in prefixes if isinstance(key, str) and (name := prefix + key) in steps]
    return next((step for step in found if step.layer is not None), found[0] if found else None)


def _attribute_edits(state: Value, weights: Mapping[str, Value]) -> dict[int, Value]:
    """A module's own record without cached weights, and its hooks."""
    edits: dict[int, Value] = {}
    kept = [pair for pair in mapping_pairs(state) or () if not _is_one_of(pair[0], weights)]
    edits[id(state)] = with_pairs(state, kept)
    hooks = get(state, "_forward_pre_hooks")
    if pairs := mapping_pairs(hooks):
        kept = [pair for pair in pairs if (weight_norm_hook(pair[1]) or ("",))[0] not in weights]
        edits[id(hooks)] = with_pairs(hooks, kept)
    return edits


def _flat_edits(state: Value, parameters: Mapping[str, Value]) -> dict[int, Value]:
    """An RNN's flat weights, which are its parameters once more."""
    flat, names = get(state, "_flat_weights"), get(state, "_flat_weights_names")
    if not (isinstance(flat, list) and isinstance(names, list) and len(flat) == len(names)):
        return {}
    both = zip(names, flat, strict=True)
    return {id(flat): [parameters[name] if _is_one_of(name, parameters) else value for name, value in both]}


def _is_one_of(name: Value, names: Collection[str]) -> bool:
    return isinstance(name, str) and name in names


@dataclass(frozen=True, slots=True)
class Renames:
    """The new names of the parameters that a plan renames, and all names that its state dicts had.

    A name that another state dict keeps is not among the first.
    """

    new: Mapping[str, str]
    known: Set[str]


def renames(plan: Plan, contents: Contents) -> Renames:
    """The names that a plan changes, or that were changed for it; the old ones are those in the pickle."""
    was = {state.path: state.names.old for state in contents.state_dicts if state.names}
    pairs = [
        (was[planned.path][step.kept] if planned.path in was else step.kept, step.name)
        for planned in plan.state_dicts
        for step in planned.steps
        if step.kept is not None
    ]
    kept = {old for old, new in pairs if old == new}
    new = {old: new for old, new in pairs if old != new and old not in kept}
    return Renames(new, {old for old, _ in pairs})


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


def _renamed(name: Value, names: Mapping[str, str]) -> Value:
    return names[name] if _is_one_of(name, names) else name
