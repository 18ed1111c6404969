"""Layers of other kinds than weight norm alone, by the rows of ``kinds`` that fold by their keys.

As for weight norm, a group of keys is not yet a layer: the tensors must be floats, and their shapes must fit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.conventions import CONVENTIONS
from wnconvert.layers.dims import dim_of, refuse_large, spectral_dim
from wnconvert.layers.evidence import EMPTY, EMPTY_FIX
from wnconvert.layers.kinds.table import KINDS, WORDS, Kind, in_words, stems_of
from wnconvert.layers.rules import ORIGINAL, G, Mask, Norm, Operation, Rule, Spectral, SpectralStep, Stored
from wnconvert.layers.schemes import FORMS, Layer, Refused, Selection, in_form, is_pair, owner_of
from wnconvert.messages import counted, option
from wnconvert.tensors.tree import TensorInfo

__all__ = ["NO_OTHERS", "FoundOthers", "along", "as_form", "has_form", "hints_on", "other_layers"]


@dataclass(frozen=True, slots=True)
class FoundOthers:
    """Layers of other kinds than weight norm alone.

    ``layers`` and ``refused`` are of the kinds that are asked for, ``left`` of others. ``unwanted`` are
    weights that the selection leaves alone.
    """

    layers: tuple[Layer, ...] = ()
    refused: tuple[Refused, ...] = ()
    left: tuple[Layer, ...] = ()
    unwanted: tuple[str, ...] = ()


NO_OTHERS = FoundOthers()

#: The rows that fold by their keys.
_FOLDING = tuple(kind for kind in KINDS if kind.parts)


def _telling(kind: Kind) -> str:
    """A key without which a kind is not there, and that weight norm alone has not."""
    others = (key for role, key in kind.parts.items() if role not in (ORIGINAL, G))
    return next(others, kind.keys[0])


#: Ends of names of which each row has one.
_TELLING = tuple({_telling(kind) for kind in _FOLDING})

_Parts = Mapping[str, TensorInfo]


def other_layers(
    infos: Iterable[TensorInfo], selection: Selection, parametrized: Mapping[str, Sequence[str]]
) -> FoundOthers:
    """Find the layers of other kinds among the tensors of one state dict; ``parametrized`` as in it.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> shapes = {"conv.weight_orig": (8, 4, 3), "conv.weight_u": (8,), "conv.weight_v": (12,)}
    >>> found = other_layers(
    ...     (TensorInfo(name, dtype_named("float32"), shape) for name, shape in shapes.items()),
    ...     Selection(kinds=("spectral",)), {})
    >>> [(layer.name, layer.rule.kinds, layer.dim) for layer in found.layers]
    [('conv.weight', ('spectral',), 0)]
    """
    every = {info.name: info for info in infos}
    if not any(name.endswith(_TELLING) for name in every):
        return NO_OTHERS
    layers: list[Layer] = []
    refused: list[Refused] = []
    left: list[Layer] = []
    unwanted: list[str] = []
    for group in _groups(every):
        asked = set(group.kinds) <= set(selection.kinds)
        if not group.is_one:
            continue
        if not selection.wants(group.name):
            unwanted += [group.name] if asked else []
            continue
        try:
            found = next(_against(group, every, selection, parametrized), None) or _layer(
                group, selection, parametrized
            )
        except LayerError as error:
            found = Refused(group.name, error.what, error.fix)
        if isinstance(found, Layer):
            (layers if asked else left).append(found)
        elif asked or (group.kind.varies and Spectral.kind in selection.kinds):
            refused.append(found)
    refused += _stacks_in(every, selection)
    for name in (name for name, count in Counter(layer.name for layer in layers).items() if count > 1):
        layers = [layer for layer in layers if layer.name != name]
        refused.append(Refused(name, "it is there twice, and only one of them can be right"))
    return FoundOthers(tuple(layers), tuple(refused), tuple(left), tuple(unwanted))


@dataclass(frozen=True, slots=True)
class _Group:
    """The keys of one stem, which are those of a kind and perhaps more."""

    kind: Kind
    stem: str
    keys: Mapping[str, TensorInfo]

    @property
    def name(self) -> str:
        """The name of the weight."""
        return _weight_of(self.stem) if self.kind.form == "parametrize" else self.stem + self.kind.weight

    @property
    def kinds(self) -> tuple[str, ...]:
        """The words of ``--kinds`` that it needs."""
        return tuple(operation.kind for operation in self.kind.operations)

    @property
    def parts(self) -> dict[str, TensorInfo]:
        """The tensors by their roles."""
        return {role: self.keys[key] for role, key in self.kind.parts.items()}

    @property
    def more(self) -> list[TensorInfo]:
        """What stands behind the stem beside the keys of the kind."""
        own = {*self.kind.keys, "", "bias"}
        return [info for key, info in self.keys.items() if key not in own]

    @property
    def is_one(self) -> bool:
        """Whether the tensors, too, are such that they show the kind."""
        parts = self.parts
        if Spectral in self.kind.operations:
            return True
        if not all(info.dtype.foldable or info.dtype.is_float8 for info in parts.values()):
            return False
        if self.kind.form == "module":
            is_row = len(parts["u"].shape) == 2 and parts["u"].shape[0] == 1
            return is_row and len(parts[ORIGINAL].shape) > 1 and not self.more
        if self.kind.operations == (Stored,):
            return self.keys["_orig"].shape == parts[ORIGINAL].shape
        return True


def _weight_of(stem: str) -> str:
    """The name of the weight whose parametrizations have this stem."""
    owner, _, param = stem.rpartition("parametrizations.")
    return owner + param.removesuffix(".")


def _groups(every: Mapping[str, TensorInfo]) -> Iterator[_Group]:
    for stem, keys in stems_of(every.values()).items():
        kind = next((kind for kind in _FOLDING if kind.shows(keys)), None)
        if kind is not None:
            yield _Group(kind, stem, keys)


# The index of a parametrization is in the key of its u.
_U = re.compile(r"\d+\._u")


def _stacks_in(every: _Parts, selection: Selection) -> Iterator[Refused]:
    """The refusals of weights with spectral norm on a parametrization that no row knows."""
    if Spectral.kind not in selection.kinds:
        return
    for stem, keys in stems_of(every.values()).items():
        u = next(filter(_U.fullmatch, keys), None)
        if u is None or any(kind.shows(keys) for kind in _FOLDING):
            continue
        name = _weight_of(stem)
        if selection.wants(name):
            yield Refused(name, f"{keys[u].name} shows spectral norm stacked on another parametrization")


def _pruned_g(group: _Group, every: _Parts) -> bool:
    """Whether what is pruned is the g of weight norm."""
    if group.kind.operations != (Mask,) or not group.name.endswith("_g"):
        return False
    v = next((every[name] for end in ("_v", "_v_orig") if (name := group.name[:-2] + end) in every), None)
    if v is None or len(v.shape) < 2:
        return False
    try:
        dim_of(group.parts[ORIGINAL].shape, v.shape)
    except LayerError:
        return False
    return True


def _against(
    group: _Group, every: _Parts, selection: Selection, parametrized: Mapping[str, Sequence[str]]
) -> Iterator[Refused]:
    """The refusals of a layer for what its names and dtypes show."""
    name, kind, parts = group.name, group.kind, group.parts
    if kind.varies and SpectralStep.kind not in selection.kinds:
        remedy = f"{option('kinds', SpectralStep.kind)} takes the σ of the first forward"
        yield Refused(name, f"{parts['u'].name} shows spectral norm that {kind.varies}", remedy)
    if group.more:
        yield Refused(name, f"{group.more[0].name} beside it shows another reparameterization stacked on it")
    if stacked := _stacked(group, parametrized):
        yield Refused(name, f"{stacked} shows another parametrization stacked on it")
    if Norm.kind in selection.kinds and _pruned_g(group, every):
        remedy = f"fold with {option('kinds', Mask.kind)} first, and then what that writes"
        yield Refused(name, "weight norm and prune of its g are stacked", remedy)
    if name in every and every[name] not in parts.values():
        yield Refused(name, "the plain weight of that name is there too, and only one of them can be right")
    for info in parts.values():
        if not info.dtype.foldable:
            scale = " without its scale" if info.dtype.is_float8 else ""
            yield Refused(name, f"{info.name} is {info.dtype}, which cannot be folded{scale}")
    if not all(info.numel for info in parts.values()):
        yield Refused(name, EMPTY, EMPTY_FIX)


def _stacked(group: _Group, parametrized: Mapping[str, Sequence[str]]) -> str:
    """A parametrization that is not one of the kind's own; it may have no tensors."""
    if group.kind.form != "parametrize" or group.name not in parametrized:
        return ""
    own = [str(number) for number in range(sum(each is not Mask for each in group.kind.operations))]
    others = (number for number in parametrized[group.name] if number not in own)
    return next((group.stem + number for number in others), "")


def _layer(group: _Group, selection: Selection, parametrized: Mapping[str, Sequence[str]]) -> Layer:
    """The layer of a group. Raises ``LayerError`` where its shapes do not fit."""
    parts, kind = group.parts, group.kind
    fitted = [_FITS[operation](parts, selection.dim) for operation in kind.operations]
    notes = [note for _, note in fitted] + [kind.note]
    if kind.form == "parametrize" and Spectral in kind.operations and group.name not in parametrized:
        notes.append("no _metadata shows whether a parametrization without tensors is stacked on it")
    refuse_large({role: info.numel for role, info in parts.items()})
    unread = tuple(group.keys[key] for key in kind.unread)
    rule = Rule(tuple(operation for operation, _ in fitted))
    return Layer(group.name, kind.form, rule, parts, "; ".join(filter(None, notes)), unread)


#: An operation, and a note if it is a guess.
_Fitted = tuple[Operation, str]


def _mask(parts: _Parts, _dim: int | str | None) -> _Fitted:
    mask, original = parts["mask"], parts[ORIGINAL]
    if mask.shape != original.shape:
        raise LayerError(f"mask {mask.shape} does not fit {original.shape}", fix="repair the checkpoint")
    return Mask(), ""


def _norm(parts: _Parts, dim: int | str | None) -> _Fitted:
    fit = dim_of(parts[G].shape, parts[ORIGINAL].shape, dim)
    return Norm(fit.dim), fit.note


def _spectral(parts: _Parts, dim: int | str | None) -> _Fitted:
    return Spectral(spectral_dim(parts[ORIGINAL].shape, parts["u"].shape, parts["v"].shape, dim)), ""


def _step(parts: _Parts, _dim: int | str | None) -> _Fitted:
    u, original = parts["u"], parts[ORIGINAL]
    if u.numel != original.shape[0]:
        raise LayerError(f"u {u.shape} does not fit {original.shape}", fix="repair the checkpoint")
    return SpectralStep(0), ""


def _stored(_parts: _Parts, _dim: int | str | None) -> _Fitted:
    return Stored(), ""


#: How an operation is read from the shapes of its parts.
_FITS: Mapping[type[Operation], Callable[[_Parts, int | str | None], _Fitted]] = {
    Mask: _mask,
    Norm: _norm,
    Spectral: _spectral,
    SpectralStep: _step,
    Stored: _stored,
}


def along(layer: Layer, dim: int | None) -> Layer:
    """A layer with the dim that its module states. Raises ``LayerError`` where its shapes do not fit that."""
    fitted = (
        _FITS[type(operation)](layer.parts, dim)[0] if type(operation) in _FITS else operation
        for operation in layer.rule.operations
    )
    return replace(layer, rule=Rule(tuple(fitted)))


def as_form(layer: Layer, form: str) -> Layer | None:
    """A layer as another form spells it; None where that form has no such kind.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> shapes = {"conv.weight_orig": (8, 4, 3), "conv.weight_u": (8,), "conv.weight_v": (12,)}
    >>> (layer,) = other_layers(
    ...     (TensorInfo(name, dtype_named("float32"), shape) for name, shape in shapes.items()),
    ...     Selection(kinds=("spectral",)), {}).layers
    >>> [part.name for part in as_form(layer, "parametrize").parts.values()][1:]
    ['conv.parametrizations.weight.0._u', 'conv.parametrizations.weight.0._v']
    """
    if is_pair(layer):
        return in_form(layer, form)
    kind = _kind_of(layer, form)
    if kind is None:
        return None
    owner = owner_of(layer.name)
    inner = f"{owner}parametrizations.{layer.name[len(owner) :]}."
    stem = inner if form == "parametrize" else layer.name.removesuffix(kind.weight)
    parts = {role: replace(layer.parts[role], name=stem + key) for role, key in kind.parts.items()}
    return replace(layer, form=form, parts=parts, note="", unread=())


def has_form(layer: Layer, form: str) -> bool:
    """Whether another form has such a layer."""
    if not is_pair(layer):
        return _kind_of(layer, form) is not None
    if form in FORMS:  # which have a pair of any name and shape
        return CONVENTIONS[layer.form].keys is not None
    return in_form(layer, form) is not None


def _kind_of(layer: Layer, form: str) -> Kind | None:
    operations = tuple(map(type, layer.rule.operations))
    return next((each for each in _FOLDING if (each.form, each.operations) == (form, operations)), None)


def hints_on(
    left: Sequence[Layer], kinds: Iterable[str], found: Iterable[Layer], does: str = "folds"
) -> Iterator[str]:
    """A sentence on each kind of layers that is ``left``, with what folds it beside what is ``found``.

    ``kinds`` are those that were asked for, ``does`` what would be done with them.
    """
    there = {kind for layer in found for kind in layer.rule.kinds}
    asked = there.intersection(kinds)
    counts: dict[tuple[str, ...], int] = {}
    for layer in left:
        counts[layer.rule.kinds] = counts.get(layer.rule.kinds, 0) + 1
    for of_layer, count in counts.items():
        every = ",".join(kind for kind in WORDS if kind in asked.union(of_layer))
        them = "it" if count == 1 else "them"
        yield f"{counted(count, 'layer')} of {in_words(of_layer)}: {option('kinds', every)} {does} {them}"
