"""The order of keys in a state dict: torch's, a recorded one, or that of another state dict.

Pure functions on lists of names. torch's order: a module's own parameters, its buffers, its children; a
legacy pair is among the parameters, and ``parametrizations`` is the last child. The modules in ``_metadata``
stand in the same order, and come and go with their keys.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import Spectral
from wnconvert.layers.schemes import Layer, owner_of
from wnconvert.plan.plan import PlannedStateDict

__all__ = [
    "NEW_ENTRY",
    "SPECTRAL_VERSIONS",
    "Versions",
    "as_in",
    "before_children",
    "behind_module",
    "is_buffer",
    "metadata_keys",
    "restored",
    "versions_moved",
]


# Buffers that torch's own norms register, and the key of a module's extra state, which stands with them. A
# state dict does not show whether other names are buffers.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "_extra_state")


def is_buffer(name: str) -> bool:
    """Whether a key is known to be a buffer, which no optimizer counts."""
    return name.rpartition(".")[2] in _BUFFERS


def behind_module(names: Sequence[str], moved: Mapping[str, str]) -> list[str]:
    """Move keys behind all others of their module and its children, as ``register_parametrization`` does.

    ``moved`` holds for each key that moves the prefix of its module (``""`` or one that ends in a dot), in
    the order in which those of one module are to stand.

    >>> behind_module(["a.weight_g", "a.bias", "a.sub.bias", "b"], {"a.weight_g": "a."})
    ['a.bias', 'a.sub.bias', 'a.weight_g', 'b']
    """
    rank = {name: at for at, name in enumerate(moved)}
    last = {prefix: at for at, _, above in _below(names, moved.values()) for prefix in above}

    def place(item: tuple[int, str]) -> tuple[int, ...]:
        at, name = item
        if name not in moved:
            return at, 0, 0, at
        # Of two modules that end together the inner one ends first.
        return last[moved[name]], 1, -moved[name].count("."), rank[name]

    return [name for _, name in sorted(enumerate(names), key=place)]


def before_children(
    names: Sequence[str], moved: Mapping[str, str], passed: Callable[[str], bool] = is_buffer
) -> list[str]:
    """Move keys behind the parameters of their module itself, before its children (and known buffers).

    That is where ``torch.nn.utils.weight_norm`` registers g and v. ``moved`` as for ``behind_module``;
    ``passed`` tells the keys before which they stand.

    >>> before_children(["a.bias", "a.sub.bias", "a.weight_g", "b"], {"a.weight_g": "a."})
    ['a.bias', 'a.weight_g', 'a.sub.bias', 'b']
    """
    rank = {name: at for at, name in enumerate(moved)}
    first: dict[str, int] = {}  # the first key of each module
    child: dict[str, int] = {}  # the first key of a child of it
    own: dict[str, list[int]] = {}
    for at, name, above in _below(names, moved.values()):
        for prefix in above:
            first.setdefault(prefix, at)
            if name in moved:
                continue
            if "." in name[len(prefix) :]:
                child.setdefault(prefix, at)
            elif not passed(name):
                own.setdefault(prefix, []).append(at)

    def place(item: tuple[int, str]) -> tuple[int, ...]:
        at, name = item
        if name not in moved:
            return at, 0, 0, at
        prefix = moved[name]
        before = own.get(prefix, [])
        count = bisect(before, child.get(prefix, len(names)))
        if count:
            return before[count - 1], 1, prefix.count("."), rank[name]
        return first[prefix], -1, prefix.count("."), rank[name]

    return [name for _, name in sorted(enumerate(names), key=place)]


def restored(names: Sequence[str], places: Mapping[str, int]) -> list[str]:
    """Put the keys of ``places`` at these indices of the list, the others around them in their order.

    Places are a record's, which may say anything: keys that are not there, places behind the last.

    >>> restored(["bias", "g", "v", "b"], {"g": 0, "v": 2})
    ['g', 'bias', 'v', 'b']
    """
    found: list[str] = []
    staying = iter([name for name in names if name not in places])
    for name in sorted((name for name in names if name in places), key=lambda name: places[name]):
        found += islice(staying, max(places[name] - len(found), 0))
        found.append(name)
    return [*found, *staying]


def as_in(names: Sequence[str], moved: Iterable[str], reference: Sequence[str]) -> list[str]:
    """Put the ``moved`` keys where they stand in ``reference``: behind the key that they follow there.

    >>> as_in(["g", "v", "bias", "other"], ["g", "v"], ["bias", "g", "v"])
    ['bias', 'g', 'v', 'other']
    """
    moving = set(moved)
    staying = [name for name in names if name not in moving]
    place = {name: at for at, name in enumerate(staying)}
    behind: dict[int, list[str]] = {}
    anchor = None  # before the first key that both have: before its place, not at the very beginning
    for name in reference:
        if name in place:
            if anchor is None and -1 in behind:
                behind[place[name] - 1] = behind.pop(-1) + behind.get(place[name] - 1, [])
            anchor = place[name]
        elif name in moving:
            behind.setdefault(-1 if anchor is None else anchor, []).append(name)
    found = behind.get(-1, [])
    for at, name in enumerate(staying):
        found += [name, *behind.get(at, [])]
    return found


def _below(names: Sequence[str], prefixes: Iterable[str]) -> Iterator[tuple[int, str, list[str]]]:
    """Each key with its index and those of these prefixes that it stands below, outermost first.

    No other prefix is cut out: those of a key of very many dots would take the square of its length.
    """
    known = set(prefixes)
    lengths = sorted({len(prefix) for prefix in known})
    for at, name in enumerate(names):
        cuts = lengths[: bisect(lengths, len(name))]
        yield at, name, [name[:cut] for cut in cuts if name[:cut] in known]


#: The entry of torch for a module that states no version of its own.
NEW_ENTRY = {"version": 1}
_MARK = "parametrizations"


def metadata_keys(planned: PlannedStateDict, keys: Sequence[str]) -> list[str]:
    """The keys of ``_metadata`` in the output, in torch's order, from those in the source.

    New keys are only those below modules that the source's ``_metadata`` has. Their entry is ``NEW_ENTRY``.
    """
    gone = {*_modules_of(change.before for change in planned.changes), *_norms_gone(planned)}
    come = _modules_of(change.after for change in planned.changes)
    left = {
        step.name[: step.name.rindex(f"{_MARK}.") + len(_MARK)]
        for step in planned.steps
        if f"{_MARK}." in step.name
    }
    kept = [key for key in keys if key not in gone or key in left or key in come]
    there = set(keys)
    new: dict[str, list[str]] = {}
    for key, owner in come.items():
        if key not in there:
            new.setdefault(owner, []).append(f"{key}.")
    # As keys of a state dict: a module stands behind all that is below the modules before it.
    prefixes = (f"{key}." if key else "" for key in kept)
    at_home = [name for prefix in prefixes for name in (prefix, *new.get(prefix, ()))]
    order = behind_module(at_home, {name: owner for owner, of_owner in new.items() for name in of_owner})
    return [key.removesuffix(".") for key in order]


def _norms_gone(planned: PlannedStateDict) -> set[str]:
    """The modules of norms that are folded into other layers, and of which nothing is left."""
    norms = {change.before.norm for change in planned.changes if change.before and change.before.norm}
    return norms - {owner_of(step.name).removesuffix(".") for step in planned.steps} if norms else norms


#: Where torch's hook of spectral norm notes its version, in the entry of its module in ``_metadata``.
SPECTRAL_VERSIONS = "spectral_norm"


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of spectral norm that leave the entry of a module, and those that come."""

    gone: tuple[str, ...] = ()
    come: tuple[str, ...] = ()


def versions_moved(planned: PlannedStateDict) -> dict[str, Versions]:
    """The versions that leave and come with layers of torch's hook, by module."""
    gone = _versions(change.before for change in planned.changes)
    come = _versions(change.after for change in planned.changes)
    return {module: Versions(gone.get(module, ()), come.get(module, ())) for module in gone | come}


def _versions(layers: Iterable[Layer | None]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        if layer is not None and layer.form == "legacy" and Spectral.kind in layer.rule.kinds:
            owner = owner_of(layer.name)
            module = owner.removesuffix(".")
            found[module] = (*found.get(module, ()), f"{layer.name[len(owner) :]}.version")
    return found


def _modules_of(layers: Iterable[Layer | None]) -> dict[str, str]:
    """The modules that parametrized layers have of their own, each with the prefix of the owner."""
    found: dict[str, str] = {}
    for layer in layers:
        if layer is not None and layer.form == "parametrize":
            owner = owner_of(layer.name)
            of_weight = f"{owner}{_MARK}.{layer.name[len(owner) :]}"
            tails = (part.name[len(of_weight) + 1 :].partition(".")[0] for part in layer.of_weight)
            numbers = dict.fromkeys(["0", *(tail for tail in tails if tail.isdecimal())])
            own = (f"{of_weight}.{number}" for number in numbers)
            found |= dict.fromkeys((owner + _MARK, of_weight, *own), owner)
    return found
