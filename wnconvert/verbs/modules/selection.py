"""The layers of a live module that a verb is for, and the errors for those that it must not change."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn

from wnconvert.errors import ArgumentError, LayerError
from wnconvert.layers.schemes import Layer, Refused, Selection
from wnconvert.messages import counted, listed, raise_listed, short_repr
from wnconvert.verbs.modules.finding.live import Live, LiveFound

__all__ = ["ON_META", "TIED_FIX", "Layers", "first_wanted", "raise_refused", "refuse_in_ddp", "select"]


#: Why a layer on the meta device is refused, and what to do.
ON_META = ("it is on the meta device and has no numbers", "give the module its data first")
TIED_FIX = "choose both, or exclude both"


class Layers(tuple[Layer, ...]):
    """The layers that a verb changed, as a tuple; ``others`` holds weights that it left alone.

    Each of ``others`` is a weight under another reparameterization, with the name of that (spectral norm,
    prune, orthogonal, …).
    """

    others: Mapping[str, str]

    def __new__(cls, layers: Iterable[Layer] = (), others: Mapping[str, str] | None = None) -> Layers:
        """A tuple of layers."""
        made = super().__new__(cls, layers)
        made.others = dict(others or {})
        return made

    def __repr__(self) -> str:
        others = [f"{name} ({kind})" for name, kind in self.others.items()]
        return short_repr(
            f"Layers: {counted(len(self), 'layer')}",
            [layer.name for layer in self],
            f"left alone: {listed(others, 3)}" if others else "",
        )


def first_wanted(names: Iterable[str], selection: Selection) -> str | None:
    """The first of a weight's names that the selection wants; None if it excludes any of them."""
    every = tuple(names)
    if not all(Selection(exclude=selection.exclude).wants(name) for name in every):
        return None
    return next((name for name in every if selection.wants(name)), None)


def _check_globs(selection: Selection, names: Iterable[str]) -> None:
    """Raise ``ArgumentError`` for a glob that matches no layer: it is most likely a typing error."""
    every = list(dict.fromkeys(names))
    for glob in selection.layers if every else ():
        if not any(Selection(layers=(glob,)).wants(name) for name in every):
            raise ArgumentError(f"layers={glob!r} matches no layer", fix=f"the layers are: {listed(every)}")


def select(found: LiveFound, selection: Selection, done: str) -> tuple[tuple[Live, ...], dict[str, str]]:
    """The wanted layers, and the wanted weights under another reparameterization, with the name of that.

    Raises ``ArgumentError`` for a glob that matches nothing, and one ``LayerError`` for all wanted layers
    that are refused; ``done`` says what cannot be done to them (``"folded"``).
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
    """Raise one ``LayerError`` for all layers that are refused, if there are any."""
    every = list(items)
    fixes = {item.remedy for item in every}
    shared = fixes.pop() if len(fixes) == 1 else ""
    raise_listed(
        LayerError,
        f"{len(every)} layers cannot be {done}",
        [(f"layer {item.name}", item.reason) for item in every],
        fix=shared or _leave([item.name for item in every]),
    )


def _leave(names: Sequence[str]) -> str:
    """The advice to exclude some layers."""
    if len(names) == 1:
        return f"exclude={names[0]!r} leaves it as it is"
    return "exclude=… leaves them as they are"


def refuse_in_ddp(
    trained: Iterable[tuple[str, nn.Module, Iterable[Tensor]]], held: Collection[int], done: str, fix: str
) -> None:
    """Raise ``LayerError`` for layers in modules that DistributedDataParallel holds, by their ids.

    Each layer is given with its name, its module and its tensors; those that nobody trains are of no account.
    A new Parameter would be unknown to its reducer.
    """
    names = [
        name
        for name, module, tensors in trained
        if id(module) in held and any(tensor.requires_grad for tensor in tensors)
    ]
    if names:
        raise LayerError(
            f"{counted(len(names), 'layer')} cannot be {done} inside DistributedDataParallel, which would "
            "not know the new Parameters: ranks would drift apart, and no error would say so",
            items=[(f"layer {name}", "") for name in names],
            fix=fix,
        )
