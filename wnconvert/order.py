"""Where the keys of a state dict stand: torch's order, a recorded one, that of another state dict.

Pure functions on lists of names. torch's order: a module's own parameters, its buffers, its children; a
legacy pair is among the parameters, and ``parametrizations`` is the last child.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["as_in", "before_children", "behind_module", "is_buffer", "restored"]

# Buffers that torch's own norms register. Of other names a state dict does not tell what they are.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def is_buffer(name: str) -> bool:
    """Whether a key is known to be a buffer, which no optimizer counts."""
    return name.rpartition(".")[2] in _BUFFERS


def behind_module(names: Sequence[str], moved: Mapping[str, str]) -> list[str]:
    """Move keys behind all others of their module and its children, as ``register_parametrization`` does.

    ``moved`` holds for each key that moves the prefix of its module (``""`` or one that ends in a dot).

    >>> behind_module(["a.weight_g", "a.bias", "a.sub.bias", "b"], {"a.weight_g": "a."})
    ['a.bias', 'a.sub.bias', 'a.weight_g', 'b']
    """
    last: dict[str, int] = {}
    for at, name in enumerate(names):
        for prefix in _prefixes(name):
            last[prefix] = at

    def place(item: tuple[int, str]) -> tuple[int, ...]:
        at, name = item
        if name not in moved:
            return at, 0, 0, at
        # Of two modules that end together the inner one ends first.
        return last[moved[name]], 1, -moved[name].count("."), at

    return [name for _, name in sorted(enumerate(names), key=place)]


def before_children(names: Sequence[str], moved: Mapping[str, str]) -> list[str]:
    """Move keys behind the parameters of their module itself, before its children (and known buffers).

    That is where ``torch.nn.utils.weight_norm`` registers g and v. ``moved`` as for ``behind_module``.

    >>> before_children(["a.bias", "a.sub.bias", "a.weight_g", "b"], {"a.weight_g": "a."})
    ['a.bias', 'a.weight_g', 'a.sub.bias', 'b']
    """
    first: dict[str, int] = {}  # the first key of each module
    child: dict[str, int] = {}  # the first key of a child of it
    own: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        *above, owner = _prefixes(name)
        if name not in moved and not is_buffer(name):
            own.setdefault(owner, []).append(at)
        for prefix in (*above, owner):
            first.setdefault(prefix, at)
        for prefix in above if name not in moved else ():
            child.setdefault(prefix, at)

    def place(item: tuple[int, str]) -> tuple[int, ...]:
        at, name = item
        if name not in moved:
            return at, 0, 0, at
        prefix = moved[name]
        before = own.get(prefix, [])
        count = bisect(before, child.get(prefix, len(names)))
        if count:
            return before[count - 1], 1, prefix.count("."), at
        return first[prefix], -1, prefix.count("."), at

    return [name for _, name in sorted(enumerate(names), key=place)]


def restored(names: Iterable[str], places: Mapping[str, int]) -> list[str]:
    """Put the keys of ``places`` at these indices of the list, the others around them in their order.

    >>> restored(["bias", "g", "v", "b"], {"g": 0, "v": 2})
    ['g', 'bias', 'v', 'b']
    """
    found = [name for name in names if name not in places]
    for name in sorted(places, key=lambda name: places[name]):
        found.insert(places[name], name)
    return found


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


def _prefixes(name: str) -> list[str]:
    """The prefixes of a key's modules, outermost first: ``a.b.weight`` has ``""``, ``a.``, ``a.b.``."""
    parts = name.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts) + 1)]
