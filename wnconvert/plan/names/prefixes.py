"""The whole prefix by which the names of two sides differ: DataParallel's, torch.compile's, Lightning's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from wnconvert.frozen import dataclass
from wnconvert.messages import option, printable
from wnconvert.plan.names.wrappers import without_wrappers

__all__ = ["Apart", "prefixes_apart"]


# A name may be made to have very many, and very long ones.
_MOST = 8
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Apart:
    """The prefixes that names have on one side only (empty where that side has none)."""

    here: str
    there: str

    @property
    def fix(self) -> str:
        """The fix: the option that takes them off."""
        prefixes = [printable(prefix) for prefix in (self.here, self.there) if prefix]
        return f"the names differ by a prefix: {option('strip_prefix', *prefixes)} takes it off"


def prefixes_apart(names: Collection[str], others: Collection[str], *, least: int = 1) -> Apart | None:
    """The prefixes without which most of the ``names`` are among the ``others``, and at least so many.

    None where there are none, or where a name is among the others as it is.

    >>> prefixes_apart(["conv.weight", "conv.bias"], ["_orig_mod.module.conv.weight"])
    Apart(here='', there='_orig_mod.module.')
    >>> prefixes_apart(["conv.weight"], ["conv.weight", "module.conv.weight"]) is None
    True
    """
    return _apart(set(names), set(others), least) or _apart(_unwrapped(names), _unwrapped(others), least)


def _unwrapped(names: Iterable[str]) -> set[str]:
    return set(map(without_wrappers, names))


def _apart(names: set[str], others: set[str], least: int) -> Apart | None:
    if not names or not others or names & others:
        return None
    counts = {
        pair: _met(names, others, *pair)
        for pair in {*_candidates(names, others)}
        if 0 < len("".join(pair)) <= _LONGEST
    }
    best = max(counts, key=lambda pair: (counts[pair], -len("".join(pair)), pair), default=None)
    return Apart(*best) if best is not None and counts[best] >= least else None


def _met(names: set[str], others: set[str], here: str, there: str) -> int:
    """How many names are equal without these prefixes; of two prefixes, the last part alone shows nothing."""
    met = {name.removeprefix(here) for name in names} & {name.removeprefix(there) for name in others}
    return sum("." in name for name in met) if here and there else len(met)


def _candidates(names: set[str], others: set[str]) -> Iterator[tuple[str, str]]:
    """Prefixes that one side has before a name of the other, and those that all names of a side share."""
    yield from (("", prefix) for prefix in _before(min(names), others))
    yield from ((prefix, "") for prefix in _before(min(others), names))
    here, there = _common(names), _common(others)
    while here and there and here.split(".")[-2] == there.split(".")[-2]:  # a part that both have stays
        here, there = (prefix[: prefix.rfind(".", 0, -1) + 1] for prefix in (here, there))
    yield here, there


def _before(name: str, longer: Iterable[str]) -> Iterator[str]:
    found = (other.removesuffix(name) for other in longer if other.endswith(f".{name}"))
    return islice(found, _MOST)


def _common(names: Collection[str]) -> str:
    """The prefix of modules that all names share, with its last dot."""
    first, last = min(names), max(names)
    same = next(
        (at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return first[: first.rfind(".", 0, same) + 1]
