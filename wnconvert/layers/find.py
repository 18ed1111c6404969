"""The layers among the names of a state dict.

A layer is recognised by its whole group of keys and by its shapes, never by a lone suffix: ``weight_v``
alone is spectral norm, ``emb_g.weight`` is a speaker embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wnconvert.errors import LayerError
from wnconvert.layers.dims import dim_of
from wnconvert.layers.schemes import SCHEMES, Layer, Refused, Selection
from wnconvert.tensors.tree import TensorInfo

__all__ = ["FoundPairs", "find_pairs"]


@dataclass(frozen=True, slots=True)
class FoundPairs:
    """The layers that names and shapes show in a state dict.

    ``layers`` in order of the first half of each pair; ``refused``; ``unwanted``, layers that the
    selection leaves alone; ``halves``, keys whose other half is not there.
    """

    layers: tuple[Layer, ...]
    refused: tuple[Refused, ...]
    unwanted: tuple[str, ...]
    halves: tuple[str, ...]


def find_pairs(
    infos: Iterable[TensorInfo],
    selection: Selection = Selection(),  # noqa: B008 - frozen
) -> FoundPairs:
    """Find the weight-normalized layers among the tensors of one state dict.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> f32 = dtype_named("float32")
    >>> g, v = TensorInfo("conv.weight_g", f32, (8, 1, 1)), TensorInfo("conv.weight_v", f32, (8, 4, 3))
    >>> found = find_pairs([g, v])
    >>> [(layer.name, layer.form, layer.dim) for layer in found.layers]
    [('conv.weight', 'legacy', 0)]
    """
    names = {info.name: info for info in infos}
    groups = _group(names)
    layers: list[Layer] = []
    refused: list[Refused] = []
    unwanted: list[str] = []
    halves: list[str] = []
    for group in groups.values():
        if group.g is None or group.v is None:
            halves += _lonely_half(group, names)
        elif not (_is_number(group.g) and _is_number(group.v)):
            continue  # integers called x_g and x_v are nobody's magnitude
        elif not selection.wants(group.weight):
            unwanted.append(group.weight)
        elif reason := _reason_against(group, names, groups):
            if any(other.name == group.weight for other in refused):
                continue  # there in both forms: reported once
            refused.append(Refused(group.weight, reason))
        else:
            try:
                fit = dim_of(group.g.shape, group.v.shape, selection.dim)
            except LayerError as error:
                refused.append(Refused(group.weight, error.what, error.fix))
            else:
                layers.append(Layer(group.weight, group.form, fit.dim, group.g, group.v, fit.note))
    return FoundPairs(tuple(layers), tuple(refused), tuple(unwanted), tuple(halves))


@dataclass(slots=True)
class _Group:
    """The keys of one weight in one scheme, as far as they are there."""

    form: str
    weight: str
    g: TensorInfo | None = None
    v: TensorInfo | None = None
    beside: TensorInfo | None = None


def _group(names: Mapping[str, TensorInfo]) -> dict[tuple[str, str], _Group]:
    groups: dict[tuple[str, str], _Group] = {}
    for info in names.values():
        for scheme in SCHEMES:
            for part in ("g", "v", "beside"):
                pattern: re.Pattern[str] = getattr(scheme, part)
                if match := pattern.fullmatch(info.name):
                    weight = match["owner"] + match["param"]
                    group = groups.setdefault((scheme.form, weight), _Group(scheme.form, weight))
                    if getattr(group, part) is None:
                        setattr(group, part, info)
    return groups


def _is_number(info: TensorInfo) -> bool:
    return info.dtype.foldable or info.dtype.is_float8 or info.dtype.name.startswith("complex")


def _reason_against(
    group: _Group, names: Mapping[str, TensorInfo], groups: Mapping[tuple[str, str], _Group]
) -> str:
    """Why a complete pair must not be converted, or nothing."""
    if group.beside:
        return f"{group.beside.name} beside it shows another reparameterization stacked on weight norm"
    if group.weight in names:
        return "the plain weight of that name is there too, and only one of them can be right"
    for scheme in SCHEMES:
        other = groups.get((scheme.form, group.weight))
        if other is not None and other is not group and other.g and other.v:
            return f"it is there twice, in the {group.form} and in the {scheme.form} form"
    for info in (group.g, group.v):
        if info is not None and not info.dtype.foldable:
            scale = " without its scale" if info.dtype.is_float8 else ""
            return f"{info.name} is {info.dtype}, which cannot be folded{scale}"
    return ""


def _lonely_half(group: _Group, names: Mapping[str, TensorInfo]) -> list[str]:
    """The key of a half whose partner seems to have been renamed.

    A lone v shows nothing: spectral norm has one (with u), attention has ``bias_v``; nor does a vector
    called ``x_g``. A tensor with the shape of a magnitude, or the name of a parametrization, counts.
    """
    half = group.g or group.v
    if half is None or group.weight in names or not half.dtype.foldable:
        return []
    if group.form == "parametrize":
        return [half.name]
    if half is group.g:
        long_axes = [size for size in half.shape if size != 1]
        return [half.name] if len(half.shape) > 1 and len(long_axes) <= 1 else []
    return [half.name] if group.weight.endswith("weight") and len(half.shape) > 1 and not group.beside else []
