"""The weights of two ONNX models: matched by name, and those that are left by what they hold.

A weight that a model computes is compared as a fold would store it, so its form does not matter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.kinds.table import ALL
from wnconvert.layers.rules import NormBehind, Standardize
from wnconvert.numerics.distance import Measure, Tolerance, needed
from wnconvert.onnx.file.model import GraphEdits, NewTensor
from wnconvert.onnx.file.reader import OnnxFile, stored_in
from wnconvert.onnx.graph.edits import fold_edits
from wnconvert.onnx.graph.layers import find_graph_layers
from wnconvert.plan.layout import FoldBias
from wnconvert.storage.workers import Workers
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.tree import TensorInfo
from wnconvert.verbs.comparison.items import Item, Pair, difference_of
from wnconvert.verbs.comparison.pairing import Side
from wnconvert.verbs.comparison.readings import Readings
from wnconvert.verbs.comparison.result import Comparison

__all__ = ["ROUNDED_SNR", "Initializers", "compare_initializers"]


#: Everything that a fold sees through in a graph.
_KINDS = (*ALL, Standardize.kind, NormBehind.kind)
#: How far first elements of one weight may be apart, as a part of it: floats of 8 bits are rounded so.
_NEAR = 2.0**-8
#: What is further off, in decibels, is no rounding, not even of a dtype of 8 bits: 1 % is 40 dB.
ROUNDED_SNR = 45.0

#: A name in each model.
_Names: TypeAlias = tuple[str, str]
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Initializers:
    """The weights of two models compared; ``renamed`` are A's and B's names of weights that have two."""

    weights: Comparison
    renamed: tuple[_Names, ...]


def compare_initializers(
    a: Side, b: Side, models: tuple[OnnxFile, OnnxFile], workers: Workers
) -> Initializers:
    """Compare the weights of two models within 1 ulp of the coarser dtype.

    A weight is a tensor of several floats, or of more whole numbers than shapes have. What is equal under
    one name is one weight; all others are sought by what they hold, whatever they are called, since exporters
    number names. What differs under one name is measured.
    """
    found = [_items(model) for model in models]
    (of_a, notes_a), (of_b, notes_b) = found
    both = _Both((a, b), of_a, of_b, workers)
    named = [(name, name) for name in of_a if name in of_b]
    equal = both.equal(named)
    alike = both.alike(_left_out(of_a, equal, 0), _left_out(of_b, equal, 1))
    equal |= _each_once(alike, both.equal(alike))
    apart = both.rounded(_free(alike, equal))
    apart |= both.measured(_free(named, [*equal, *apart]))
    matched = [*equal, *apart]
    weights = Comparison(
        a=a.label,
        b=b.label,
        pairs=(("", ""),),
        differing=tuple(difference_of(both.pair(names), measure) for names, measure in apart.items()),
        only_in_a=tuple(_left_out(of_a, matched, 0)),
        only_in_b=tuple(_left_out(of_b, matched, 1)),
        compared=len(matched),
        identical=list(equal.values()).count("identical"),
        within=list(equal.values()).count("within"),
        layers=sum(of_a[own].is_layer or of_b[other].is_layer for own, other in matched),
        rtol=None,
        atol=None,
        tolerance_needed=needed(measure for measure in apart.values() if measure is not None),
        notes=(*(f"{a.label}: {note}" for note in notes_a), *(f"{b.label}: {note}" for note in notes_b)),
    )
    return Initializers(weights, tuple(names for names in matched if names[0] != names[1]))


def _left_out(items: Iterable[str], matched: Iterable[_Names], side: int) -> list[str]:
    """The names of a side, 0 or 1, that are in no pair."""
    known = {names[side] for names in matched}
    return [name for name in items if name not in known]


def _free(candidates: Iterable[_Names], matched: Collection[_Names]) -> list[_Names]:
    """The candidates of which neither name is in a pair."""
    taken_a, taken_b = ({names[side] for names in matched} for side in (0, 1))
    return [names for names in candidates if names[0] not in taken_a and names[1] not in taken_b]


# -- the weights of a model


def _items(opened: OnnxFile) -> tuple[dict[str, Item], list[str]]:
    """The weights of a model by name, those that are computed as a fold would store them, and notes."""
    model = opened.model
    layers = find_graph_layers(model, _KINDS)
    notes = [f"the {no.name} stays as it is: {no.reason}" for no in layers.refused]
    try:
        edits = fold_edits(model, layers.layers)
    except LayerError as error:
        edits = GraphEdits()
        notes.append(f"its weights are compared as they are stored: {error.what}")
    items: dict[str, Item] = {}
    for tensor in edits.tensors:
        name = _qualified(tensor.path, tensor.name)
        items[name] = _made(name, tensor)
    for scope in model.scopes():
        for constant in stored_in(scope):
            stored = constant.tensor
            if constant.record.start in edits.dropped or stored is None or stored.info.numel < 2:
                continue
            if stored.info.dtype.foldable or constant.values is None:
                name = _qualified(scope.path, constant.name)
                items.setdefault(name, Item(name, name, "plain", stored))
    return items, notes


def _qualified(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _made(name: str, tensor: NewTensor) -> Item:
    """What a fold makes."""
    work = tensor.work
    bias = TensorInfo(name, tensor.dtype, tensor.shape) if isinstance(work, FoldBias) else None
    return Item(name, name, "computed", tensor.original, tensor.rule, dict(tensor.parts), bias)


# -- pairs


def _each_once(candidates: Iterable[_Names], found: Mapping[_Names, _Found]) -> dict[_Names, _Found]:
    """Each weight at most once, with the first of the candidates that was ``found`` to be the same."""
    kept: dict[_Names, _Found] = {}
    taken: tuple[set[str], set[str]] = (set(), set())
    for names in candidates:
        if names in found and names[0] not in taken[0] and names[1] not in taken[1]:
            kept[names] = found[names]
            taken[0].add(names[0])
            taken[1].add(names[1])
    return kept


@dataclass(frozen=True, slots=True)
class _Both:
    """The weights of both models by name; its methods read them."""

    sides: tuple[Side, Side]
    of_a: Mapping[str, Item]
    of_b: Mapping[str, Item]
    workers: Workers

    def pair(self, names: _Names) -> Pair:
        """A weight of each."""
        return Pair("", self.of_a[names[0]], self.of_b[names[1]])

    def readings(self, pairs: Iterable[_Names]) -> Readings:
        """The readings of some pairs."""
        return Readings(*self.sides, list(map(self.pair, pairs)), Tolerance(None, None), self.workers)

    def equal(self, pairs: Sequence[_Names]) -> dict[_Names, str]:
        """The pairs that are equal, with how: ``identical`` or ``within``."""
        verdicts = zip(pairs, self.readings(pairs).verdicts(), strict=True)
        return {names: verdict for names, verdict in verdicts if verdict in ("identical", "within")}

    def measured(self, pairs: Sequence[_Names]) -> dict[_Names, Measure | None]:
        """How far pairs are apart that are not equal; None where shapes or dtypes are others."""
        readings = self.readings(pairs)
        found = readings.measures(["" if pair.why else "different" for pair in readings.pairs])
        return {names: found.get(at) for at, names in enumerate(pairs)}

    def rounded(self, pairs: Sequence[_Names]) -> dict[_Names, Measure | None]:
        """The pairs of which one weight is the other but for rounding, with how far they are apart."""
        near: dict[_Names, Measure | None] = {
            names: found
            for names, found in self.measured(pairs).items()
            if found is not None and (found.snr_db or 0) >= ROUNDED_SNR
        }
        return _each_once(near, near)

    def alike(self, of_a: Sequence[str], of_b: Sequence[str]) -> list[_Names]:
        """Pairs that may be one weight: of one shape, nearly the same first elements; the nearest first."""
        kinds = {_kind_of(self.of_a[name]) for name in of_a} & {_kind_of(self.of_b[name]) for name in of_b}
        readings = self.readings(())
        sketches = [
            [
                _sketched(item, readings.head(side, item))
                for item in map(items.__getitem__, names)
                if _kind_of(item) in kinds
            ]
            for side, (items, names) in enumerate(((self.of_a, of_a), (self.of_b, of_b)))
        ]
        groups: dict[tuple[object, ...], list[_Sketch]] = {}
        for sketch in sorted(sketches[1], key=lambda each: each.mean):
            groups.setdefault(_kind_of(sketch.item), []).append(sketch)
        found = [
            (float(np.abs(own.head - other.head).sum()), (own.item.name, other.item.name))
            for own in sketches[0]
            for other in _near(own, groups[_kind_of(own.item)])
        ]
        return [names for _, names in sorted(found, key=lambda each: each[0])]


# -- by what they hold


@dataclass(frozen=True, slots=True)
class _Sketch:
    """A weight by its first elements: their mean, the mean of their magnitudes, and themselves."""

    item: Item
    mean: float
    size: float
    head: Array


def _kind_of(item: Item) -> tuple[object, ...]:
    """What two weights must share: the shape, and a dtype unless both are floats."""
    return item.shape, "float" if item.dtype.foldable else item.dtype


def _sketched(item: Item, head: Array) -> _Sketch:
    head = np.nan_to_num(head)
    return _Sketch(item, float(head.mean()), float(np.abs(head).mean()), head)


def _near(own: _Sketch, group: Sequence[_Sketch]) -> Iterator[_Sketch]:
    """Those of a group, sorted by their means, that are near."""
    reach = _NEAR * own.size
    at = bisect_left(group, own.mean - reach, key=lambda sketch: sketch.mean)
    while at < len(group) and group[at].mean <= own.mean + reach:
        if bool((np.abs(group[at].head - own.head) <= _NEAR * np.abs(own.head) + _NEAR * reach).all()):
            yield group[at]
        at += 1
