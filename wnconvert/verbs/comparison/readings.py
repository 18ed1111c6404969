"""The two readings of the pairs: which are equal, and how far apart the others are.

The first reading leaves a tensor at its first block that is out of tolerance. Blocks are compared as bits
before anything is computed; two layers whose g and v have the same bits are equal without a fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from wnconvert.layers.rules import ORIGINAL, Rule
from wnconvert.numerics.distance import Measure, Tolerance, ToleranceTest, same_bits
from wnconvert.numerics.folding import Folding
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.numerics.rows import RowReport
from wnconvert.numerics.rules.neighbours import fold_bias
from wnconvert.numerics.rules.parts import RulePart
from wnconvert.storage.workers import Workers
from wnconvert.tensors.blocks import Array, Block, Elements, blocks, scratch
from wnconvert.tensors.tree import Dim, StoredTensor
from wnconvert.verbs.comparison.items import Item, Pair
from wnconvert.verbs.comparison.pairing import Side

__all__ = ["Readings"]


_T = TypeVar("_T")
#: So many elements are the first ones of an item.
_HEAD = 256
#: The same elements of both sides, and the place of the first; valid until the next ones are asked for.
_Pieces: TypeAlias = Iterator[tuple[int, Array, Array]]


class Readings:
    """Both readings of some pairs. Each pair is read by one thread, so the order of sums is always the same.

    ``reports`` holds the report of each fold, by the place of the pair and the side, 0 or 1.
    """

    def __init__(
        self, a: Side, b: Side, pairs: Sequence[Pair], tolerance: Tolerance, workers: Workers
    ) -> None:
        self.elements = a.elements, b.elements
        self.pairs = pairs
        self.tolerance = tolerance
        self.workers = workers
        self.reports: dict[tuple[int, int], RowReport] = {}

    def verdicts(self) -> list[str]:
        """For each pair ``identical``, ``within`` (the tolerance), ``different``, or ``""``: not read."""
        found = self._each(self._verdict, [at for at, pair in enumerate(self.pairs) if not pair.why])
        return [found.get(at, "") for at in range(len(self.pairs))]

    def measures(self, verdicts: Sequence[str]) -> dict[int, Measure]:
        """The distances of all pairs that are not identical: all of them count for the tolerance needed."""
        return self._each(
            self._measure, [at for at, verdict in enumerate(verdicts) if verdict in ("within", "different")]
        )

    def head(self, side: int, item: Item) -> Array:
        """The first elements of an item of one side, 0 or 1, in float64: a few hundred at most."""
        pieces = (
            self._plain(side, item.values, _cut_of(item)) if item.is_stored else self._made(-1, side, item)
        )
        first: Array = next(pieces)[:_HEAD].astype(np.float64)
        return first

    def _each(self, work: Callable[[int], _T], jobs: Iterable[int]) -> dict[int, _T]:
        sizes = {at: self.pairs[at].a.values.info.nbytes for at in jobs}

        def counted(at: int) -> _T:
            result = work(at)
            self.workers.advance(sizes[at])
            return result

        return self.workers.each(counted, sizes)

    def _verdict(self, at: int) -> str:
        pair = self.pairs[at]
        if pair.same_layout and self._same_parts(pair):
            return "identical"
        verdict, judge = "identical", self._judge(pair)
        for _, left, right in self._pieces(at):
            if same_bits(left, right):
                continue
            if judge is None or not judge.within(left, right):
                return "different"
            verdict = "within"
        return verdict

    def _measure(self, at: int) -> Measure:
        measure = Measure(self._judge(self.pairs[at]))
        for start, left, right in self._pieces(at):
            measure.add(start, left, right)
        return measure

    def _judge(self, pair: Pair) -> ToleranceTest | None:
        return ToleranceTest(self.tolerance, pair.coarser) if pair.a.dtype.foldable else None

    def _same_parts(self, pair: Pair) -> bool:
        """Whether two layers have the same bits in all parts; the small ones are read first."""
        a, b = pair.a.parts, pair.b.parts
        return all(
            same_bits(left, right)
            for role in sorted(a, key=lambda role: a[role].info.nbytes)
            for _, left, right in self._stored(a[role], b[role])
        )

    def _pieces(self, at: int) -> _Pieces:
        """The effective weights of both sides, piece by piece."""
        a, b = self.pairs[at].a, self.pairs[at].b
        if a.is_stored:
            if b.is_stored:
                return self._stored(a.values, b.values)
            return _abreast(self._plain(0, a.values, _cut_of(b)), self._made(at, 1, b))
        if b.is_stored:
            return _abreast(self._made(at, 0, a), self._plain(1, b.values, _cut_of(a)))
        folded = self._made(at, 0, a), self._made(at, 1, b)
        return _abreast(*(_kept(arrays, use) for arrays, use in zip(folded, "AB", strict=True)))

    def _stored(self, a: StoredTensor, b: StoredTensor) -> _Pieces:
        """The values of both sides as they are stored, piece by piece."""
        a, b = a.in_bytes(), b.in_bytes()
        cut = (a.info.numel,), None, max(a.info.dtype.itemsize, b.info.dtype.itemsize)
        return _abreast(self._plain(0, a, cut), self._plain(1, b, cut))

    def _plain(self, side: int, tensor: StoredTensor, cut: _Cut) -> Iterator[Array]:
        read = self.elements[side].reader(tensor)
        for block in blocks(*cut):
            self.workers.check()
            yield read(block).reshape(-1)

    def _made(self, at: int, side: int, item: Item) -> Iterator[Array]:
        """What is computed, block by block, each valid until this thread folds again."""
        if item.rule is None:
            kind = FLOAT_FORMATS[item.dtype.name].dtype
            for block in blocks(*_cut_of(item)):
                yield np.full(block.stop - block.start, item.constant, kind)
        elif item.bias is None:
            yield from self._folded(at, side, item, item.rule)
        else:
            elements = self.elements[side]
            bias, self.reports[at, side] = fold_bias(item.rule, _parts(item, elements), item.dtype)
            yield bias

    def _folded(self, at: int, side: int, layer: Item, rule: Rule) -> Iterator[Array]:
        """The weights of a layer."""
        elements = self.elements[side]
        values = elements.reader(layer.values)

        def read(block: Block) -> Array:
            self.workers.check()
            return values(block)

        parts = _parts(layer, elements)
        parts[ORIGINAL] = RulePart(read, layer.shape, layer.dtype)
        folding = Folding(rule, parts, layer.dtype)
        for _, w in folding.blocks():
            yield w.reshape(-1)
        self.reports[at, side] = folding.report()


def _parts(item: Item, elements: Elements) -> dict[str, RulePart]:
    return {
        role: RulePart(elements.reader(part), part.info.shape, part.info.dtype)
        for role, part in item.parts.items()
    }


#: Shape, dim and size of an element: they decide into which blocks a tensor is cut.
_Cut: TypeAlias = tuple[tuple[int, ...], Dim, int]


def _cut_of(layer: Item) -> _Cut:
    """The cut of a layer's fold."""
    return layer.shape, layer.rule.dim if layer.rule and layer.is_layer else None, layer.dtype.itemsize


def _kept(arrays: Iterator[Array], use: str) -> Iterator[Array]:
    """Arrays that outlive the other side's fold."""
    for array in arrays:
        kept = scratch(use, array.shape, array.dtype)
        np.copyto(kept, array)
        yield kept


def _abreast(left: Iterator[Array], right: Iterator[Array]) -> _Pieces:
    """Two runs of blocks, cut wherever one of them is."""
    at = 0
    x = y = np.empty(0)
    while True:
        if not x.size:
            x = next(left, x)
        if not y.size:
            y = next(right, y)
        count = min(x.size, y.size)
        if not count:
            return
        yield at, x[:count], y[:count]
        x, y, at = x[count:], y[count:], at + count
