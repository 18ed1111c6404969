"""Records that take the place of old ones in a pickle: whole modules that are folded, optimizers renamed.

The record of a whole pickled ``nn.Module`` is changed as ``torch.nn.utils.remove_weight_norm`` and its like
change a live module: the weight becomes a Parameter in the place of what it was computed from, the cached
weight and the hooks go, and an RNN's ``_flat_weights`` hold the same Parameter. So with its class at hand it
loads and runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set

from wnconvert.formats.pickle.values import Dict, Object, Value
from wnconvert.formats.torch.contents import Contents, FoundModule, computing_hook
from wnconvert.formats.torch.records import get, mapping_pairs, with_pairs
from wnconvert.frozen import dataclass
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
    taken: set[str] = set()
    for kind in ("_parameters", "_buffers"):
        pairs: list[tuple[Value, Value]] = []
        old = mapping_pairs(get(state, kind)) or ()
        for key, value in old:
            step = _step_of(key, prefixes, steps)
            if step is not None and step.layer is not None:
                name = step.name.rpartition(".")[2]
                taken |= {key} if isinstance(key, str) else set()
                if name not in weights:  # all that it is computed from becomes w
                    weights[name] = value_of(step)
                    pairs.append((name, weights[name]))
            elif step is None or value is None:
                pairs.append((key, value))
            else:
                cast[key] = value_of(step)
                pairs.append((key, cast[key]))
        if old:
            edits[id(get(state, kind))] = with_pairs(get(state, kind), pairs)
    if weights:
        edits |= _attribute_edits(state, weights, taken)
    return edits | _flat_edits(state, cast | weights)


def _step_of(key: Value, prefixes: Sequence[str], steps: Mapping[str, Step]) -> Step | None:
    """The step for a module's tensor: a fold if any of its names is folded."""
    found = [steps[name] for prefix in prefixes if isinstance(key, str) and (name := prefix + key) in steps]
    return next((step for step in found if step.layer is not None), found[0] if found else None)


def _attribute_edits(state: Value, weights: Mapping[str, Value], taken: Set[str]) -> dict[int, Value]:
    """A module's own record without cached weights, and its hooks; ``taken`` are the tensors that went."""
    hooks = [computing_hook(hook) for _, hook in mapping_pairs(get(state, "_forward_pre_hooks")) or ()]
    computed = {hook.name for hook in hooks if hook and not taken.isdisjoint(hook.inputs)}
    kept = [pair for pair in mapping_pairs(state) or () if not _is_one_of(pair[0], {*weights, *computed})]
    edits: dict[int, Value] = {id(state): with_pairs(state, kept)}
    for name in ("_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"):
        held = get(state, name)
        if pairs := mapping_pairs(held):
            edits[id(held)] = with_pairs(held, [pair for pair in pairs if _computes(pair[1]) not in computed])
    return edits


def _computes(hook: Value) -> str | None:
    """The weight that a hook computes; or the one of the hook that torch put it beside."""
    if found := computing_hook(hook):
        return found.name
    # torch wraps hooks on loading; spectral norm's helpers hold its hook.
    for name in ("hook", "fn"):
        inner = get(hook.state, name) if isinstance(hook, Object) else None
        if inner is not None:
            return _computes(inner)
    return None


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
