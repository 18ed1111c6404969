"""Which of a live module's layers a verb is for, and what is said of those that it must not touch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wnconvert.errors import ArgumentError, LayerError
from wnconvert.layers.schemes import Layer, Refused, Selection
from wnconvert.messages import listed
from wnconvert.verbs.modules.find import Live, LiveFound

__all__ = ["ON_META", "TIED_FIX", "Layers", "first_wanted", "raise_refused", "select"]


#: Why a layer on the meta device is refused, and what to do.
ON_META = ("it is on the meta device and has no numbers", "give the module its data first")
TIED_FIX = "choose both, or exclude both"


class Layers(tuple[Layer, ...]):
    """The layers that a verb changed, as a tuple; ``others`` names what it left alone.

    ``others`` holds weights under another reparameterization (spectral norm, prune, orthogonal, …), each
    with what that is.
    """

    others: Mapping[str, str]

    def __new__(cls, layers: Iterable[Layer] = (), others: Mapping[str, str] | None = None) -> Layers:
        """A tuple of layers."""
        made = super().__new__(cls, layers)
        made.others = dict(others or {})
        return made


def first_wanted(names: Iterable[str], selection: Selection) -> str | None:
    """The first of a weight's names that is wanted, if none of them is excluded."""
    every = tuple(names)
    if not all(Selection(exclude=selection.exclude).wants(name) for name in every):
        return None
    return next((name for name in every if selection.wants(name)), None)


def _check_globs(selection: Selection, names: Iterable[str]) -> None:
    """A glob that was meant to choose among layers and chose none is a slip of the pen."""
    every = list(dict.fromkeys(names))
    for glob in selection.layers if every else ():
        if not any(Selection(layers=(glob,)).wants(name) for name in every):
            raise ArgumentError(f"layers={glob!r} matches no layer", fix=f"the layers are: {listed(every)}")


def select(found: LiveFound, selection: Selection, done: str) -> tuple[tuple[Live, ...], dict[str, str]]:
    """The wanted layers, and by name what else of the wanted is under another reparameterization.

    Raises ``ArgumentError`` for a glob that matches nothing and one ``LayerError`` for all wanted layers
    that are refused; ``done`` is what cannot be done to them (``"folded"``).
    """
    _check_globs(selection, [*found.names, *(name for names in found.others for name in names)])
    raise_refused(
        [
            Refused(name, item.reason, item.fix)
            for item in found.refused
            if (name := first_wanted(item.names, selection)) is not None
        ],
        done,
    )
    wanted = [(live, first_wanted(live.names, selection)) for live in found.layers]
    others = {first_wanted(names, selection): kind for names, kind in found.others.items()}
    return (
        tuple(live.named(name) for live, name in wanted if name is not None),
        {name: kind for name, kind in others.items() if name is not None},
    )


def raise_refused(items: Iterable[Refused], done: str) -> None:
    """Raise one ``LayerError`` for all layers that are refused; or nothing."""
    every = list(items)
    if not every:
        return
    first = every[0]
    if len(every) == 1:
        raise LayerError(first.reason, where=f"layer {first.name}", fix=first.remedy or _leave(first.name))
    lines = "".join(f"\n  layer {item.name}: {item.reason}" for item in every[:10])
    more = f"\n  and {len(every) - 10} more" if len(every) > 10 else ""
    fixes = {item.remedy for item in every}
    fix = fixes.pop() if len(fixes) == 1 else ""
    raise LayerError(
        f"{len(every)} layers cannot be {done}:{lines}{more}", fix=fix or "exclude=… leaves them as they are"
    )


def _leave(name: str) -> str:
    return f"exclude={name!r} leaves it as it is"
