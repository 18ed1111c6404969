"""Weight norm of frameworks that wrap a layer, whose keys no common end shows: one row each.

A wrapper's g has a place of its own, from which that of v follows: so a name in parts tells them, joined by
dots or slashes. The weight has the name of its v. The names alone show nothing: shapes must fit, and
nothing beside the two may speak against them. PhysicsNeMo's ``WeightFactLinear``, which has a ``g`` and a
``v`` and no norm, is not among them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.conventions import EQUINOX, FLAX, KERAS, NNX, Convention
from wnconvert.layers.dims import AUTO, dim_of
from wnconvert.layers.evidence import EMPTY, EMPTY_FIX, MISFIT, NOT_FLOAT, PassedOver
from wnconvert.layers.schemes import Layer, Refused, Selection
from wnconvert.messages import listed, option
from wnconvert.tensors.tree import Shape, TensorInfo

__all__ = ["NO_WRAPPED", "FoundWrapped", "wrapped_layers"]


#: A name in parts, as any of these frameworks joins them.
_Parts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FoundWrapped:
    """The layers that wrappers show; the rest as in ``find.FoundPairs``."""

    layers: tuple[Layer, ...] = ()
    refused: tuple[Refused, ...] = ()
    unwanted: tuple[str, ...] = ()
    passed: tuple[PassedOver, ...] = ()
    halves: tuple[str, ...] = ()


NO_WRAPPED = FoundWrapped()


@dataclass(frozen=True, slots=True)
class _Wrapper:
    """How a framework names the g of a wrapper, and the names that v may have then.

    ``is_sure``: no other thing is named so, and one that does not fit is damaged.
    """

    convention: Convention
    vs_of: Callable[[_Parts], Iterable[_Parts]]
    is_sure: bool = False


_DEEPEST = 64  # a name may be made to have very many dots


def _flax(g: _Parts) -> Iterator[_Parts]:
    """``WeightNorm_0/Dense_0/kernel/scale``: the kernel is beside the scope of the wrapper."""
    if g[-1] == "scale" and 3 < len(g) <= _DEEPEST:
        for at in range(len(g) - 3):
            if g[-2] == "kernel" or _SCOPE.fullmatch(g[at]):
                yield (*g[:at], *g[at + 1 : -1])


_SCOPE = re.compile(r"WeightNorm_\d+")


def _nnx(g: _Parts) -> Iterator[_Parts]:
    """``scales/('kernel',)``: the key is the path of the kernel below the layer that is wrapped."""
    if len(g) > 1 and g[-2] == "scales" and (path := _PATH.fullmatch(g[-1])):
        yield (*g[:-2], "layer_instance", *(part.strip("' ") for part in path[1].split(",") if part.strip()))


_PATH = re.compile(r"\(([^()]+)\)")


def _equinox(g: _Parts) -> Iterator[_Parts]:
    if g[-1] == "g":
        yield (*g[:-1], "layer", "weight")


def _keras(g: _Parts) -> Iterator[_Parts]:
    """``g`` and ``kernel`` in one scope, or the kernel in that of the layer, the only one beside g."""
    if g[-1] == "g":
        yield (*g[:-1], "kernel")
        yield (*g[:-1], _ANY, "kernel")


_ANY = ""  # any one part: no part of a name that is looked for is empty

_WRAPPERS = (
    _Wrapper(FLAX, _flax, is_sure=True),
    _Wrapper(NNX, _nnx, is_sure=True),
    _Wrapper(EQUINOX, _equinox),
    _Wrapper(KERAS, _keras),
)
#: Ends of the names of g, of which each row has one; most state dicts have no key with one of them.
_ENDS = (".g", "/g", "/g:0", "/scale", ".scale", ",)", "')")
_ROOTS = ("g", "g:0")


def wrapped_layers(infos: Mapping[str, TensorInfo], selection: Selection) -> FoundWrapped:
    """Find the layers that wrappers of other frameworks show among the tensors of one state dict, by name.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> shapes = {"WeightNorm_0/Dense_0/kernel/scale": (4,), "Dense_0/kernel": (3, 4)}
    >>> infos = {name: TensorInfo(name, dtype_named("float32"), shape) for name, shape in shapes.items()}
    >>> [(layer.name, layer.form, layer.dim) for layer in wrapped_layers(infos, Selection()).layers]
    [('Dense_0/kernel', 'flax', 1)]
    """
    ends = [name for name in infos if name.endswith(_ENDS) or name in _ROOTS]
    if not ends:
        return NO_WRAPPED
    found = _Found(_There(infos), selection)
    for name in ends:
        found.take(infos[name])
    return found.all()


class _There:
    """The tensors of a state dict by the parts of their names."""

    def __init__(self, infos: Mapping[str, TensorInfo]) -> None:
        self.by_parts = {_parts(name): info for name, info in infos.items()}
        self.kernels: dict[_Parts, list[TensorInfo]] = {}
        self.beside: dict[_Parts, list[str]] = {}
        for parts, info in self.by_parts.items():
            self.beside.setdefault(parts[:-1], []).append(parts[-1])
            if parts[-1] == "kernel":
                self.kernels.setdefault(parts[:-2], []).append(info)

    def at(self, parts: _Parts) -> TensorInfo | None:
        """The tensor of this name; where a part of it may be any, the only one."""
        if _ANY not in parts:
            return self.by_parts.get(parts)
        found = self.kernels.get(parts[:-2], [])
        return found[0] if len(found) == 1 else None


class _Found:
    """The layers found so far."""

    def __init__(self, there: _There, selection: Selection) -> None:
        self.there = there
        self.selection = selection
        self.layers: dict[str, Layer] = {}
        self.refused: dict[str, Refused] = {}
        self.unwanted: list[str] = []
        self.passed: list[PassedOver] = []
        self.halves: list[str] = []
        self.later: list[tuple[_Wrapper, TensorInfo, TensorInfo]] = []

    def all(self) -> FoundWrapped:
        """What was found; a g of one number is one where others of its convention are."""
        for wrapper, g, v in self.later:
            self._pair(wrapper, g, v, at_last=True)
        layers = (layer for name, layer in self.layers.items() if name not in self.refused)
        return FoundWrapped(
            tuple(layers),
            tuple(self.refused.values()),
            tuple(self.unwanted),
            tuple(self.passed),
            tuple(self.halves),
        )

    def take(self, g: TensorInfo) -> None:
        """Take a tensor that has the name of a g, with its v, for what they are."""
        parts = _parts(g.name)
        for wrapper in _WRAPPERS:
            for candidate in wrapper.vs_of(parts):
                v = self.there.at(candidate)
                if v is not None:
                    self._pair(wrapper, g, v)
                    return
            if wrapper.convention is FLAX and any(_SCOPE.fullmatch(part) for part in parts[:-3]):
                self.halves.append(g.name)
                return

    def _has(self, convention: Convention) -> bool:
        return any(layer.form == convention.form for layer in self.layers.values())

    def _pair(self, wrapper: _Wrapper, g: TensorInfo, v: TensorInfo, *, at_last: bool = False) -> None:
        name, selection = v.name, self.selection
        if not selection.wants(name):
            self.unwanted.append(name)
            return
        if name in self.layers:
            self.refused[name] = Refused(name, f"{self.layers[name].g.name} and {g.name} both claim it")
            return
        against = next(_against(wrapper, g, v, self.there), None)
        if against is not None and against[0] == _NUMBER and not at_last:
            self.later.append((wrapper, g, v))
            return
        if against is not None and against[0] == _NUMBER and self._has(wrapper.convention):
            against = None
        if against is not None and (against[0] in _NO_LAYER or not selection.names(name)):
            self.passed.append(PassedOver(name, g.name, name, *against))
            return
        if not (g.numel and v.numel):
            self.refused[name] = Refused(name, EMPTY, EMPTY_FIX)
            return
        try:
            self.layers[name] = _layer(wrapper.convention, g, v, selection)
        except LayerError as error:
            if wrapper.is_sure or selection.dim != AUTO:
                self.refused[name] = Refused(name, error.what, error.fix)
            else:
                self.passed.append(PassedOver(name, g.name, name, MISFIT, error.what))


#: The weakness of a g of one number, which others of its convention outweigh.
_NUMBER = "number"
#: Weaknesses of what is no layer, whoever names it.
_NO_LAYER = (NOT_FLOAT, MISFIT)


def _against(wrapper: _Wrapper, g: TensorInfo, v: TensorInfo, there: _There) -> Iterator[tuple[str, str]]:
    """What speaks against a pair that has the names of one, each as a kind of reason and in words."""
    for info in (g, v):
        if not info.dtype.foldable:
            yield NOT_FLOAT, f"{info.name} is {info.dtype}, not a float that can be folded"
    if not _STATES.isdisjoint(_parts(g.name)):
        yield "state", "they are the state of an optimizer"
    if wrapper.is_sure:
        return
    if misfit := _misfit(wrapper.convention, g.shape, v.shape):
        yield MISFIT, misfit
    elif g.numel == 1 and v.shape[wrapper.convention.axes[0]] != 1:
        yield _NUMBER, f"{g.name} is one number, and may be a gain"
    of_g, of_v = (there.beside[_parts(info.name)[:-1]] for info in (g, v))
    own = "gb" if _parts(g.name)[:-1] == _parts(v.name)[:-1] else "g"  # beside its kernel, b is a bias
    if family := [name for name in of_g if len(name) == 1 and name not in own]:
        yield "family", f"it looks like one of a family, with {listed(family, 3)}"
    if own == "g" and wrapper.convention is KERAS and not any(map(_NORM.search, _parts(g.name)[:-1])):
        yield "gain", f"{g.name} may be the gain of a norm: no part of its name says weight norm"
    for name in (*of_g, *of_v):
        if name in _OTHERS:
            yield "other", f"it may belong to the {name} beside it"


#: Parts of names of an optimizer's moments, which have the names of what they are of.
_STATES = frozenset(("opt_state", "optimizer", "optimizer_state"))
#: The scope of a wrapper, as Keras calls it.
_NORM = re.compile(r"(?i)weight_?norm")
#: What a g may belong to in the place of the kernel: the other kernel of an RNN, or a norm.
_OTHERS = ("recurrent_kernel", "gamma")


def _misfit(convention: Convention, g: Shape, v: Shape) -> str:
    """Why a g has not the rank that the framework gives it; empty if it has."""
    if len(v) < 2:
        return f"v {v} is no kernel"
    if convention.g == "axes":
        return f"g {g} has not as many axes as v {v}" if len(g) != len(v) else ""
    return f"g {g} is not a vector" if len(g) != 1 else ""


def _layer(convention: Convention, g: TensorInfo, v: TensorInfo, selection: Selection) -> Layer:
    """The layer of a pair. Raises ``LayerError`` where g does not fit v."""
    if len(g.shape) > 1 and convention.g == "vector":
        raise LayerError(
            f"g {g.shape} belongs to several axes of v {v.shape}, and one can be folded",
            fix=f"fold it in {convention.library}",
        )
    fit = dim_of(g.shape, v.shape, selection.dim, axes=convention.axes)
    layer = Layer.of_pair(v.name, convention.form, fit.dim, g, v, selection.eps)
    return replace(layer, note="; ".join(filter(None, (fit.note, _eps_note(convention, selection)))))


def _eps_note(convention: Convention, selection: Selection) -> str:
    """Which eps is taken where none is given: no file has it."""
    if convention.guard is None or selection.eps is not None:
        return ""
    taken = f"eps {convention.guard.eps:g} is taken, as {convention.library} has it by default"
    return f"{taken} (else: fold {option('eps', metavar='E')})"


def _parts(name: str) -> _Parts:
    """The parts of a name, which dots or slashes join; TensorFlow's end in ``:0``.

    >>> _parts("weight_norm/g:0"), _parts("WeightNorm_0.Dense_0/kernel/scale")
    (('weight_norm', 'g'), ('WeightNorm_0', 'Dense_0', 'kernel', 'scale'))
    """
    return tuple(name.removesuffix(":0").replace("/", ".").split("."))
