"""Layers as they were before a step, and the rows of a record that hold them.

A row holds all layers of one form, dim, shape and dtype: ``{"form": …, "dim": …, "names": [pattern, …],
"g": {"shape": …, "dtype": …, "places": [run, …]}, "v": {…}}``; the names of g and v follow from the form.
Earlier versions wrote a row for each layer, ``{"name": …, "form": …, "dim": …, "g": {"name": …, "shape": …,
"dtype": …, "place": …}, "v": {…}}``, which are read too, and written of layers whose names do not follow
from their form. ``"eps"`` is that of a norm whose form has another by default. Layers of other kinds cannot
be given back; a row has their names, ``{"kinds": ["prune", "spectral"], "names": [pattern, …]}``. Rows are
input like any other: one that makes no sense holds no layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from wnconvert.frozen import dataclass
from wnconvert.layers.conventions import CONVENTIONS, norm_of
from wnconvert.layers.kinds.table import WORDS
from wnconvert.layers.schemes import Layer, is_pair, spelled
from wnconvert.plan.record.patterns import (
    count_names,
    count_numbers,
    packed_names,
    packed_numbers,
    skeleton,
    unpacked_names,
    unpacked_numbers,
)
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.tensors.tree import TensorInfo

__all__ = [
    "Origin",
    "Row",
    "count_layers",
    "gone_in",
    "origin_of",
    "origins_in",
    "record_rows",
    "rows_of_gone",
    "rows_of_names",
]


#: A row of a record: input, which may be anything.
Row: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Origin:
    """A layer as it was before a step: the pair, and the places of g and v among all keys."""

    layer: Layer
    places: tuple[int, int]


def origin_of(layer: Layer, place: Mapping[str, int]) -> Origin:
    """A layer as it stands now; ``place`` holds the index of every key."""
    return Origin(layer, (place[layer.g.name], place[layer.v.name]))


def record_rows(origins: Iterable[Origin]) -> list[Row]:
    """The rows that hold these layers."""
    every = list(origins)
    alone = [_row_of_one(origin) for origin in every if not _is_spelled(origin.layer)]
    return [*_rows_of_spelled(origin for origin in every if _is_spelled(origin.layer)), *alone]


def _is_spelled(layer: Layer) -> bool:
    """Whether the names of g and v follow from the form and the name of the weight."""
    return spelled(layer.form, layer.name) == (layer.g.name, layer.v.name)


def _row_of_one(origin: Origin) -> Row:
    layer = origin.layer
    halves = {
        half: {"name": info.name, "shape": list(info.shape), "dtype": str(info.dtype), "place": place}
        for half, info, place in zip("gv", layer.halves, origin.places, strict=True)
    }
    return {"name": layer.name, "form": layer.form, "dim": layer.dim, **_eps_of(layer), **halves}


def _eps_of(layer: Layer) -> dict[str, float]:
    """The eps of a layer where it is not its form's own, as a part of a row."""
    if layer.guard == norm_of(layer.form, layer.dim).guard:
        return {}
    return {"eps": layer.guard.eps if layer.guard else 0.0}


def _rows_of_spelled(origins: Iterable[Origin]) -> list[Row]:
    kinds: dict[tuple[object, ...], dict[tuple[str, ...], list[tuple[tuple[int, ...], Origin]]]] = {}
    for origin in origins:
        layer = origin.layer
        kind = (layer.form, layer.dim, layer.guard, *((half.shape, half.dtype.name) for half in layer.halves))
        texts, numbers = skeleton(layer.name)
        kinds.setdefault(kind, {}).setdefault(texts, []).append((numbers, origin))
    return [_row(alike) for alike in kinds.values()]


def _row(alike: Mapping[tuple[str, ...], Sequence[tuple[tuple[int, ...], Origin]]]) -> Row:
    names: list[Any] = []
    every: list[Origin] = []
    for texts, layers in alike.items():
        columns = [numbers for numbers, _ in layers]
        names += _packed(texts, columns)
        every += (origin for _, origin in layers)
    layer = every[0].layer
    halves = {
        half: {
            "shape": list(info.shape),
            "dtype": str(info.dtype),
            "places": packed_numbers([origin.places[at] for origin in every]),
        }
        for at, (half, info) in enumerate((("g", layer.g), ("v", layer.v)))
    }
    return {"form": layer.form, "dim": layer.dim, **_eps_of(layer), "names": names, **halves}


def rows_of_gone(layers: Iterable[Layer]) -> list[Row]:
    """The rows that name those of these layers which are no pairs."""
    return rows_of_names({layer.name: layer.rule.kinds for layer in layers if not is_pair(layer)})


def rows_of_names(kinds: Mapping[str, tuple[str, ...]]) -> list[Row]:
    """The rows of weights that cannot be given back, each with the kinds of its layer."""
    rows: dict[tuple[str, ...], dict[tuple[str, ...], list[tuple[int, ...]]]] = {}
    for name, its in kinds.items():
        texts, numbers = skeleton(name)
        rows.setdefault(its, {}).setdefault(texts, []).append(numbers)
    return [
        {"kinds": list(its), "names": [name for each in alike.items() for name in _packed(*each)]}
        for its, alike in rows.items()
    ]


def _packed(texts: tuple[str, ...], columns: Sequence[tuple[int, ...]]) -> list[Any]:
    """The names of one pattern: each, or all as one."""
    return [texts[0]] * len(columns) if len(texts) == 1 else [packed_names(texts, columns)]


def gone_in(rows: Iterable[Row]) -> dict[str, tuple[str, ...]]:
    """The weights in these rows that cannot be given back, with the kinds of their layers.

    >>> gone_in(rows_of_names({"convs.0.weight": ("spectral",), "convs.1.weight": ("spectral",)}))
    {'convs.0.weight': ('spectral',), 'convs.1.weight': ('spectral',)}
    """
    found: dict[str, tuple[str, ...]] = {}
    for row in rows:
        kinds, names = (row.get("kinds"), row.get("names")) if isinstance(row, dict) else (None, None)
        if isinstance(kinds, list) and isinstance(names, list) and all(map(_is_kind, kinds)):
            with suppress(ValueError):
                every = [name for packed in names for name in unpacked_names(packed)]
                found |= dict.fromkeys(every, tuple(kinds))
    return found


def _is_kind(word: Any) -> bool:
    return isinstance(word, str) and word in WORDS


def origins_in(rows: Iterable[Row]) -> tuple[Origin, ...]:
    """The layers of these rows, in the order in which they stood; rows that make no sense have none."""
    found: list[Origin] = []
    is_sorted = True
    for row in rows:
        if isinstance(row, dict) and "names" in row:
            found += _of_row(row)
            is_sorted = False
        elif origin := _of_layer(row):
            found.append(origin)
    return tuple(found if is_sorted else sorted(found, key=lambda origin: min(origin.places)))


def count_layers(rows: Iterable[Row]) -> int:
    """How many layers these rows hold at most, told without making them: few bytes can claim very many."""
    return sum(_count(row) for row in rows)


def _count(row: Row) -> int:
    if not (isinstance(row, dict) and isinstance(row.get("names"), list)):
        return 1
    try:
        return sum(map(count_names, row["names"]))
    except ValueError:
        return 0


def _of_row(row: Mapping[str, Any]) -> list[Origin]:
    """The layers of a row, or none where it makes no sense."""
    form, dim, names = row.get("form"), row.get("dim"), row.get("names")
    g, v = (_half(row.get(half)) for half in "gv")
    if not isinstance(form, str) or not isinstance(names, list) or g is None or v is None:
        return []
    eps = row.get("eps")
    if not _fits(dim, v[1]) or not _is_eps(eps):
        return []
    try:
        counts = {sum(map(count_names, names)), *(count_numbers(half[2]) for half in (g, v))}
        if len(counts) != 1:
            return []
        every = [name for packed in names for name in unpacked_names(packed)]
        places = zip(unpacked_numbers(g[2]), unpacked_numbers(v[2]), strict=True)
    except ValueError:
        return []
    made: list[Origin] = []
    for name, place in zip(every, places, strict=True):
        halves = spelled(form, name)
        if halves is None:
            return []
        of_g, of_v = TensorInfo(halves[0], *_kind(g)), TensorInfo(halves[1], *_kind(v))
        made.append(Origin(Layer.of_pair(name, form, dim, of_g, of_v, eps), place))
    return made


def _kind(half: tuple[DType, tuple[int, ...], Any]) -> tuple[DType, tuple[int, ...]]:
    """The dtype and the shape; a shape of its own for each tensor, since pickles show which are one."""
    return half[0], (*half[1],)


def _half(data: Any) -> tuple[DType, tuple[int, ...], Any] | None:
    """The dtype, the shape and the packed places of a half."""
    if not isinstance(data, dict):
        return None
    shape, dtype = _shape(data.get("shape")), data.get("dtype")
    if shape is None or not isinstance(dtype, str) or dtype not in DTYPES:
        return None
    return DTYPES[dtype], shape, data.get("places")


def _of_layer(data: Row) -> Origin | None:
    """The layer of a row for one alone, or None if it is invalid."""
    if not isinstance(data, dict):
        return None
    name, form, dim = data.get("name"), data.get("form"), data.get("dim")
    g, v = _named_half(data.get("g")), _named_half(data.get("v"))
    if not isinstance(name, str) or not isinstance(form, str) or g is None or v is None:
        return None
    eps = data.get("eps")
    if not _fits(dim, v[0].shape) or not _is_eps(eps) or not _is_named(form, name, g[0].name, v[0].name):
        return None
    return Origin(Layer.of_pair(name, form, dim, g[0], v[0], eps), (g[1], v[1]))


def _is_named(form: str, name: str, g: str, v: str) -> bool:
    """Whether a form has a layer of these names; one that it does not spell has the name of its v."""
    keys = spelled(form, name)
    return (g, v) == keys if keys else form in CONVENTIONS and v == name != g


def _is_eps(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (is_number and 0 <= value < math.inf)


def _named_half(data: Any) -> tuple[TensorInfo, int] | None:
    half = _half(data)
    if half is None or not isinstance(data.get("name"), str) or not _is_count(data.get("place")):
        return None
    return TensorInfo(data["name"], half[0], half[1]), data["place"]


_MOST_AXES = 64  # more than torch or numpy allow


def _shape(shape: Any) -> tuple[int, ...] | None:
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(map(_is_count, shape)):
        return None
    return tuple(shape)


def _fits(dim: Any, shape: tuple[int, ...]) -> bool:
    """Whether a dim is one of a tensor of that shape."""
    return dim is None or (_is_count(dim) and dim < len(shape))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
