"""Names that are the same but for the wrappers that torch puts around modules, anywhere in a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from wnconvert.frozen import dataclass
from wnconvert.layers.schemes import owner_of
from wnconvert.messages import printable

__all__ = ["WRAPPERS", "SeenThrough", "seen_through", "without_wrappers"]


#: The modules that torch.compile, FSDP and activation checkpointing put around others.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def without_wrappers(name: str) -> str:
    """A name without the wrappers in it.

    >>> without_wrappers("model.decoder._orig_mod.conv.weight"), without_wrappers("_orig_mod.")
    ('model.decoder.conv.weight', '')
    """
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


@dataclass(frozen=True, slots=True)
class SeenThrough:
    """Modules whose names on the other side differ by wrappers alone: the prefix there, by that here."""

    owners: Mapping[str, str]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.owners)

    def __call__(self, name: str) -> str:
        """The name that a tensor has on the other side."""
        owner = owner_of(name)
        return self.owners.get(owner, owner) + name[len(owner) :]

    def notes(self, label: str = "") -> tuple[str, ...]:
        """A note for the user, if there are any."""
        if not self.owners:
            return ()
        pairs = self.owners.items()
        there = [wrapper for wrapper in WRAPPERS if any(wrapper in owner for pair in pairs for owner in pair)]
        here, other = (printable(owner.rstrip(".")) or "." for owner in next(iter(pairs)))
        before = f"{label}: " if label else ""
        return (f"{before}{', '.join(there)} in names is seen through ({here} is {other})",)


def seen_through(names: Iterable[str], others: Iterable[str]) -> SeenThrough:
    """The modules of ``names`` that ``others`` have with other wrappers around them, or with none.

    A module is left as it is where two of a side would become one.

    >>> seen_through(["a._orig_mod.conv.weight"], ["a.conv.weight"])("a._orig_mod.conv.bias")
    'a.conv.bias'
    """
    here, there = dict.fromkeys(map(owner_of, names)), dict.fromkeys(map(owner_of, others))
    if not any(wrapper in owner for wrapper in WRAPPERS for owner in (*here, *there)):
        return SeenThrough({})
    count_here, count_there = (Counter(map(without_wrappers, owners)) for owners in (here, there))
    known = {without_wrappers(owner): owner for owner in there}
    return SeenThrough(
        {
            owner: known[short]
            for owner in here
            if owner not in there and (short := without_wrappers(owner)) in known
            if count_here[short] == count_there[short] == 1
        }
    )
