"""A recipe on the tensors of one state dict: the layers that it tells there, or why it does not fit.

Names and shapes alone. A weight that is computed of several tensors (weight norm, spectral norm, prune) is
the layer that its keys show, and what the recipe tells of it comes on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from fractions import Fraction

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import Recipe, RecipeFold, named_tensors, names_digest
from wnconvert.layers.rules import (
    BIAS,
    ORIGINAL,
    AffineBefore,
    Equalized,
    Guard,
    Neighbour,
    NormBefore,
    NormBehind,
    Operation,
    Rule,
    Standardize,
    Stored,
    Unit,
)
from wnconvert.layers.schemes import Layer, Refused, Selection, owner_of
from wnconvert.messages import listed, option, printable
from wnconvert.tensors.tree import TensorInfo

__all__ = ["Keyed", "Matched", "matched", "neighbour_of"]


#: The form of a layer whose weight is stored as it is.
_PLAIN = "plain"
#: How many missing names are listed.
_MOST = 6


@dataclass(frozen=True, slots=True)
class Keyed:
    """What keys show in a state dict: all tensors, the layers of kinds that are asked for, and of others.

    ``refused`` are weights that are refused already.
    """

    tensors: Mapping[str, TensorInfo]
    asked: Mapping[str, Layer]
    left: Mapping[str, Layer]
    refused: frozenset[str] = frozenset()

    def original(self, weight: str) -> TensorInfo | None:
        """The tensor that has the shape of a weight, whatever it is computed of."""
        layer = self.asked.get(weight) or self.left.get(weight)
        return self.tensors.get(weight) if layer is None else layer.original


@dataclass(frozen=True, slots=True)
class Matched:
    """What a recipe tells of a state dict.

    ``layers`` stand in the place of those of the same names that keys show. ``misfit`` says why the recipe is
    not one of this state dict; then there are none. ``is_foreign``: nothing that it names is there.
    """

    layers: tuple[Layer, ...] = ()
    refused: tuple[Refused, ...] = ()
    unwanted: tuple[str, ...] = ()
    misfit: str = ""
    is_foreign: bool = False


def matched(recipe: Recipe, known: Keyed, selection: Selection) -> Matched:
    """Find what a recipe names in a state dict.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> shapes = {"conv.weight": (8, 4, 3), "bn.running_mean": (8,), "bn.running_var": (8,)}
    >>> tensors = {name: TensorInfo(name, dtype_named("float32"), shape) for name, shape in shapes.items()}
    >>> recipe = Recipe((RecipeFold("norm behind", "conv.weight", "bn", eps=1e-5),))
    >>> [(layer.name, layer.norm, layer.bias) for layer in
    ...     matched(recipe, Keyed(tensors, {}, {}), Selection()).layers]
    [('conv.weight', 'bn', 'conv.bias')]
    """
    folds = [fold for each in recipe.folds for fold in _without_globs(each, known)]
    missing = [name for fold in folds for name in _missing(fold, known)]
    if missing:
        there = sum(1 for fold in folds for _ in _present(fold, known))
        if not there and (prefix := _prefix(missing, known)):
            return Matched(misfit=f"its names have {printable(prefix)} before those that are told")
        return Matched(misfit=_misfit(missing, known), is_foreign=not there)
    if recipe.names and recipe.names != _digest(recipe, known):
        return Matched(misfit="the shapes of its tensors are not those of the model that the recipe is of")
    layers: list[Layer] = []
    refused: list[Refused] = []
    unwanted: list[str] = []
    by_weight: dict[str, list[RecipeFold]] = {}
    for fold in folds:
        by_weight.setdefault(fold.weight, []).append(fold)
    torn = dict(_torn_affines(folds, selection))
    for weight, of_weight in by_weight.items():
        if not selection.wants(weight):
            unwanted.append(weight)
        elif weight in known.refused:  # for what its keys show
            continue
        elif reason := next((torn[fold.norm] for fold in of_weight if fold.norm in torn), ""):
            refused.append(Refused(weight, reason))
        else:
            try:
                layers.append(_layer(weight, of_weight, known, recipe.grade))
            except LayerError as error:
                refused.append(Refused(weight, error.what, error.fix))
    claimed = [*layers, *(layer for name, layer in known.asked.items() if name not in by_weight)]
    twice = {item.name: item for item in _claimed_twice(claimed)}
    left = tuple(layer for layer in layers if layer.name not in twice)
    return Matched(left, (*refused, *twice.values()), tuple(unwanted))


def _claimed_twice(layers: Iterable[Layer]) -> Iterator[Refused]:
    """The refusals of layers whose tensors, or bias, are another's too.

    An affine is shared by all that it goes into.
    """
    owners: dict[str, str] = {}
    for layer in layers:
        shared = () if not isinstance(layer.rule.neighbour, AffineBefore) else ("gamma", "beta")
        for name, owner in (
            *((layer.parts[role].name, f"norm {layer.norm}") for role in shared if role in layer.parts),
            *((part.name, layer.name) for role, part in layer.parts.items() if role not in shared),
            *((part.name, layer.name) for part in layer.unread),
            *(((layer.bias, layer.name),) if layer.bias and BIAS not in layer.parts else ()),
        ):
            if owners.setdefault(name, owner) != owner:
                other = printable(owners[name])
                reason = f"{printable(name)} is a tensor of {other} too, and one number cannot be two"
                yield Refused(layer.name, reason)
                break


# -- whether it is a recipe of this state dict


def _without_globs(fold: RecipeFold, known: Keyed) -> Iterator[RecipeFold]:
    """A fold, or one for each weight that its glob matches."""
    if fold.has_norm or known.original(fold.weight) is not None:
        yield fold
        return
    names = dict.fromkeys((*known.asked, *known.left, *known.tensors))
    found = [name for name in names if fnmatchcase(name, fold.weight) and _may_be_weight(known, name)]
    yield from (replace(fold, weight=name) for name in found)
    if not found:
        yield fold


def _may_be_weight(known: Keyed, name: str) -> bool:
    """Whether a glob can mean a tensor: a bias beside the weights has one axis."""
    info = known.original(name)
    return info is not None and len(info.shape) > 1


def _needed(fold: RecipeFold) -> Iterator[str]:
    """The tensors beside the weight that a fold cannot do without."""
    if fold.kind in ("norm behind", "norm before"):
        yield from (f"{fold.norm}.running_mean", f"{fold.norm}.running_var")
    elif fold.kind == "affine before":
        yield f"{fold.norm}.weight"
    owner = owner_of(fold.weight)
    yield from (f"{owner}{name}" for name in (fold.gain, fold.shift) if name)


def _missing(fold: RecipeFold, known: Keyed) -> Iterator[str]:
    if known.original(fold.weight) is None:
        yield fold.weight
    yield from (name for name in _needed(fold) if name not in known.tensors)


def _present(fold: RecipeFold, known: Keyed) -> Iterator[str]:
    if known.original(fold.weight) is not None:
        yield fold.weight
    yield from (name for name in _needed(fold) if name in known.tensors)


def _prefix(missing: Sequence[str], known: Keyed) -> str:
    """What stands before all names that are missing, as a wrapper puts it there; empty if nothing does."""
    names = dict.fromkeys((*known.tensors, *known.asked, *known.left))
    found = (name.removesuffix(missing[0]) for name in names if name.endswith(f".{missing[0]}"))
    return next((prefix for prefix in found if all(f"{prefix}{each}" in names for each in missing)), "")


def _misfit(missing: Sequence[str], known: Keyed) -> str:
    """Why a recipe does not fit: norms without statistics if that is all, else the names."""
    owners = {name: name.rpartition(".")[0] for name in missing if name.endswith(_STATISTICS)}
    norms = [norm for norm in dict.fromkeys(owners.values()) if f"{norm}.weight" in known.tensors]
    if norms and all(owners.get(name) in norms for name in missing):
        has = "has" if len(norms) == 1 else "have"
        shown = listed(map(printable, norms), _MOST)
        return f"{shown} {has} no running statistics: without them a norm uses the batch's own"
    return f"it does not have {listed(map(printable, dict.fromkeys(missing)), _MOST)}"


_STATISTICS = (".running_mean", ".running_var")


def _digest(recipe: Recipe, known: Keyed) -> str:
    shapes = {name: info.shape for name, info in known.tensors.items()}
    shapes |= {name: layer.original.shape for name, layer in (known.left | known.asked).items()}  # type: ignore[operator]
    return names_digest(named_tensors(recipe.folds, shapes))


def _torn_affines(folds: Iterable[RecipeFold], selection: Selection) -> Iterator[tuple[str, str]]:
    """The norms whose affine some layers would take and others not, each with the reason."""
    takers: dict[str, list[str]] = {}
    for fold in folds:
        if fold.kind == "affine before":
            takers.setdefault(fold.norm, []).append(fold.weight)
    for norm, weights in takers.items():
        if len({selection.wants(weight) for weight in weights}) > 1:
            into = listed(map(printable, weights), _MOST)
            yield norm, f"the affine of {printable(norm)} goes into {into}: take all or exclude all of them"


# -- one layer


def _layer(weight: str, folds: Sequence[RecipeFold], known: Keyed, grade: str) -> Layer:
    """The layer of a weight, with all that is told of it. Raises ``LayerError``."""
    layer = _base(weight, known)
    for fold in sorted(folds, key=lambda fold: fold.has_norm):  # a norm beside it comes last
        layer = _with_norm(layer, fold, known) if fold.has_norm else _with_own(layer, fold, known)
    if sum(not fold.has_norm for fold in folds) > 1:
        raise LayerError("two folds say what its class makes of it", fix="leave one of them out")
    for part in layer.parts.values():
        if not part.dtype.foldable:
            scale = " without its scale" if part.dtype.is_float8 else ""
            raise LayerError(f"{printable(part.name)} is {part.dtype}, which cannot be folded{scale}")
        if not part.numel:
            raise LayerError(f"{printable(part.name)} is empty")
    return replace(layer, grade=grade)


def _base(weight: str, known: Keyed) -> Layer:
    """The layer as its keys show it, or the plain weight."""
    if weight in known.left:
        kinds = ",".join(known.left[weight].rule.kinds)
        raise LayerError(
            f"its keys show {kinds} beneath", fix=f"{option('kinds', kinds)} folds both in one rounding"
        )
    if weight in known.asked:
        layer = known.asked[weight]
        left = tuple(each for each in layer.rule.operations if not isinstance(each, Stored))
        return replace(layer, rule=Rule(left))
    beside = (f"{weight}{end}" for end in _OF_PARTS)
    if shown := next((name for name in beside if name in known.tensors), ""):
        raise LayerError(f"{printable(shown)} beside it shows that it is computed, and only one can be right")
    return Layer(weight, _PLAIN, Rule(()), {ORIGINAL: known.tensors[weight]})


#: Ends of names of what a weight is computed of.
_OF_PARTS = ("_g", "_v", "_orig", "_mask", "_u", "_bar")


def _with_own(layer: Layer, fold: RecipeFold, known: Keyed) -> Layer:
    """What a class makes of its weight."""
    shape, owner = layer.original.shape, owner_of(layer.name)
    if fold.dim >= len(shape):
        raise LayerError(f"a weight {shape} has no axis {fold.dim}", fix="another dim")
    parts = dict(layer.parts)
    for role, name in (("gain", fold.gain), ("shift", fold.shift)):
        if name:
            parts[role] = known.tensors[owner + name]
            if any(part is parts[role] for other, part in parts.items() if other != role):
                raise LayerError(f"{printable(owner + name)} is named twice", fix=f"another {role}")
            if owner + name == fold.bias_name:
                raise LayerError(f"{printable(owner + name)} is the bias of its layer, and no {role}")
            if parts[role].numel != shape[fold.dim]:
                raise LayerError(_does_not_fit(parts[role], shape), fix="another dim")
    return replace(layer, rule=Rule((*layer.rule.operations, _own(fold))), parts=parts)


def _own(fold: RecipeFold) -> Operation:
    eps = fold.eps or 0.0
    if fold.kind == "standardize":
        has = bool(fold.gain), bool(fold.shift)
        return Standardize(fold.dim, fold.std, fold.eps_at, eps, fold.scale, fold.fan, *has)
    if fold.kind == "unit":
        return Unit(fold.dim, Guard(eps) if eps else None, Fraction(fold.scale))
    return Equalized(fold.scale)


def _with_norm(layer: Layer, fold: RecipeFold, known: Keyed) -> Layer:
    """A norm beside the layer."""
    shape = layer.original.shape
    tensors = {name: known.tensors.get(f"{fold.norm}.{name}") for name in _OF_NORM}
    neighbour = neighbour_of(
        fold, shape, gain=tensors["weight"] is not None, shift=tensors["bias"] is not None
    )
    parts = dict(layer.parts)
    for name, role in _OF_NORM.items():
        info = tensors[name]
        if info is None or role not in (*neighbour.roles, *neighbour.offsets):
            continue
        if info.numel != neighbour.norms(shape):
            raise LayerError(_does_not_fit(info, shape, fold), fix="another op, or groups")
        parts[role] = info
    for name in _OF_SWITCHABLE:
        if (beside := f"{fold.norm}.{name}") in known.tensors:
            raise LayerError(
                f"{printable(beside)} shows a switchable norm, which uses statistics of its input, too"
            )
    if len({part.name for part in parts.values()}) < len(parts):
        raise LayerError(f"a tensor of {printable(fold.norm)} is the weight's own", fix="another norm")
    made = replace(
        layer,
        rule=Rule((*layer.rule.operations, neighbour)),
        parts=parts,
        norm=fold.norm,
        bias=fold.bias_name if neighbour.offsets else "",
        unread=(*layer.unread, *_counts(fold, known)),
    )
    bias = known.tensors.get(fold.bias_name)
    if bias is not None and made.bias:
        if any(bias.name == part.name for part in (*made.parts.values(), *made.unread)):
            raise LayerError(f"{printable(bias.name)} is no bias beside it, but what it is folded of")
        if bias.shape != made.bias_shape:
            raise LayerError(f"{printable(bias.name)} {bias.shape} does not fit {made.bias_shape}")
        made = replace(made, parts={**parts, BIAS: bias})
    return made


#: What switchable norms have beside the names of a norm with running statistics.
_OF_SWITCHABLE = ("mean_weight", "var_weight")
#: The roles of a norm's tensors.
_OF_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "variance"}


def _counts(fold: RecipeFold, known: Keyed) -> Iterator[TensorInfo]:
    """What goes away with a norm beside what it computes with."""
    count = known.tensors.get(f"{fold.norm}.num_batches_tracked")
    if count is not None and fold.kind != "affine before":
        yield count


def neighbour_of(fold: RecipeFold, shape: tuple[int, ...], *, gain: bool, shift: bool) -> Neighbour:
    """The operation, along the axis that the layer's op says."""
    if len(shape) < 2:
        raise LayerError(f"a weight {shape} has no channels beside a norm")
    eps, behind = fold.eps or 0.0, fold.kind == "norm behind"
    out_first = fold.op in ("conv", "linear")
    dim = 0 if out_first == behind else 1
    # Of a transposed convolution each group has output channels of its own, of another its input channels.
    groups = fold.groups if fold.op == ("conv_transpose" if behind else "conv") else 1
    if shape[0] % fold.groups or (fold.groups > 1 and fold.op in ("linear", "linear_transposed")):
        raise LayerError(f"a weight {shape} of a {fold.op} has no {fold.groups} groups")
    if fold.kind == "affine before":
        return AffineBefore(dim, groups, shift)
    return (NormBehind if behind else NormBefore)(dim, eps, groups, gain, shift)


def _does_not_fit(info: TensorInfo, shape: tuple[int, ...], fold: RecipeFold | None = None) -> str:
    how = f" of a {fold.op} {fold.kind.split()[-1]} it" if fold else ""
    return f"{printable(info.name)} {info.shape} does not fit a weight {shape}{how}"
