"""torch's ``_metadata`` of a state dict: a version for each module, as conversions let modules come and go.

Source: ``torch.nn.Module.state_dict``. A parametrized weight N of a module P adds the modules
``P.parametrizations``, ``P.parametrizations.N`` and ``P.parametrizations.N.0``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wnconvert.order import behind_module
from wnconvert.plan import PlannedStateDict
from wnconvert.schemes import Layer, owner_of

__all__ = ["NEW_ENTRY", "metadata_keys"]

#: What torch notes of a module that states no version of its own.
NEW_ENTRY = {"version": 1}
_MARK = "parametrizations"


def metadata_keys(planned: PlannedStateDict, keys: Sequence[str]) -> list[str]:
    """The keys of ``_metadata`` in the output, in torch's order, from those in the source.

    Keys that come are only those below modules that are in the source's. For each of them the entry is
    ``NEW_ENTRY``.
    """
    gone = _modules_of(change.before for change in planned.changes)
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


def _modules_of(layers: Iterable[Layer | None]) -> dict[str, str]:
    """The modules that parametrized layers have of their own, each with the prefix of the owner."""
    found: dict[str, str] = {}
    for layer in layers:
        if layer is not None and layer.form == "parametrize":
            owner = owner_of(layer.name)
            of_weight = f"{owner}{_MARK}.{layer.name[len(owner) :]}"
            found |= dict.fromkeys((owner + _MARK, of_weight, f"{of_weight}.0"), owner)
    return found
