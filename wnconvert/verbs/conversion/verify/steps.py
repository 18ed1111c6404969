"""The checks of an output, one for each kind of step: what it must make, computed here from the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnconvert.errors import VerifyError
from wnconvert.frozen import dataclass
from wnconvert.layers.rules import ORIGINAL
from wnconvert.layers.schemes import Layer, is_pair
from wnconvert.messages import REPORT_BUG
from wnconvert.plan.steps import Bias, Direction, Fold, Keep, Magnitude, Neutral, Step
from wnconvert.tensors.blocks import Array, Block, Elements, Read, box
from wnconvert.tensors.tree import ByteRange, StoredTensor, TensorInfo
from wnconvert.verbs.conversion.verify.arithmetic import (
    are_cast,
    are_norms,
    are_quotients,
    are_sums,
    are_units,
    are_values,
    codes,
    real_for,
    squares,
    widened,
)
from wnconvert.verbs.conversion.verify.biases import computed_bias
from wnconvert.verbs.conversion.verify.pieces import Group, Piece, groups, pieces_of
from wnconvert.verbs.conversion.verify.readers import ReadBack
from wnconvert.verbs.conversion.verify.rules import computed_values, divisors_of

__all__ = ["Both", "check_step"]


@dataclass(frozen=True, slots=True)
class Both:
    """A state dict on both sides: its tensors in the source, and the reader of those of the output.

    ``ahead`` has the system read a tensor of the output from the disk before it is asked for, from a byte on.
    ``advance`` is told the bytes of the output that were checked.
    """

    tensors: Mapping[str, StoredTensor]
    source: Elements
    reader: Callable[[str], ReadBack]
    ahead: Callable[[str], Callable[[int], None]]
    advance: Callable[[int], None]

    def read_back(self, name: str) -> ReadBack:
        """A tensor of the output, whose pieces come in the shapes of their blocks."""
        read, ahead, done = self.reader(name), self.ahead(name), 0

        def read_block(block: Block, piece: Piece) -> Array:
            nonlocal done
            ahead(done)
            found = read(block, piece)
            done += found.nbytes
            self.advance(found.nbytes)
            return found.reshape(block.shape)

        return read_block


@singledispatch
def check_step(step: Step, both: Both) -> None:
    """Compare a tensor of the output with what its step must make."""
    raise NotImplementedError(type(step))


@check_step.register
def _check_kept(step: Keep, both: Both) -> None:
    """The bytes of the source, or its numbers, cast, if the plan says so."""
    stored = both.tensors[step.kept]
    tensor = (stored if step.shape is None else stored.shaped(step.shape)).in_bytes()
    read, read_back = both.source.reader(tensor), both.read_back(step.name)
    with np.errstate(all="ignore"):
        for block, piece in pieces_of(tensor):
            expected, found = read(block), read_back(block, piece)
            if not (_same(found, expected) if step.dtype is None else are_cast(found, expected)):
                raise VerifyError(
                    f"{step.name} was read back with other values; nothing is kept", fix=REPORT_BUG
                )


@check_step.register
def _check_fold(fold: Fold, both: Both) -> None:
    """Every value of the weight."""
    if is_pair(fold.layer):
        _check_pair(fold, both)
    else:
        _check_rule(fold, both)


def _check_rule(fold: Fold, both: Both) -> None:
    """What the rule of the layer makes of its parts."""
    layer = fold.layer
    parts = {role: both.tensors[part.name] for role, part in layer.parts.items()}
    real = real_for(*(part.dtype for part in layer.parts.values()), fold.dtype)
    read_back = both.read_back(fold.name)
    with np.errstate(all="ignore"):
        values = computed_values(layer.rule, parts, both.source, real)
        for block, piece in pieces_of(parts[ORIGINAL], values.dim):
            if not are_values(read_back(block, piece), values.read(block), values.error, values.off(block)):
                raise VerifyError(
                    f"layer {fold.name} was read back and is not what its parts make; nothing is kept",
                    fix=REPORT_BUG,
                )


@check_step.register
def _check_bias(step: Bias, both: Both) -> None:
    """Every value of the bias."""
    layer = step.layer
    parts = {role: both.tensors[part.name] for role, part in layer.parts.items()}
    real = real_for(*(part.dtype for part in layer.parts.values()), step.dtype)
    read_back = both.read_back(step.name)
    with np.errstate(all="ignore"):
        values, off = computed_bias(layer.rule, parts, both.source, real)
        for block, piece in _all_of(TensorInfo(step.name, step.dtype, layer.bias_shape)):
            found, its = read_back(block, piece).reshape(-1), slice(block.start, block.stop)
            if not are_sums(found, values[its], off[its]):
                raise VerifyError(
                    f"{step.name} was read back and is not what the norm makes of it; nothing is kept",
                    fix=REPORT_BUG,
                )


@check_step.register
def _check_neutral(step: Neutral, both: Both) -> None:
    """One value, everywhere."""
    read_back = both.read_back(step.name)
    for block, piece in _all_of(step.info):
        found = read_back(block, piece)
        if not are_cast(found, np.full(found.shape, step.value)):
            raise VerifyError(
                f"{step.name} was read back and is not {step.value} everywhere; nothing is kept",
                fix=REPORT_BUG,
            )


def _all_of(info: TensorInfo) -> Iterator[tuple[Block, Piece]]:
    """The pieces of a tensor of the output."""
    return pieces_of(StoredTensor(info, ByteRange(0, 0), 0, (0,) * len(info.shape)))


def _check_pair(fold: Fold, both: Both) -> None:
    """w = g·v/‖v‖ of every row, the norm with the eps of the layer."""
    g, v = (both.tensors[half.name] for half in fold.layer.halves)
    real = real_for(v.info.dtype, fold.dtype)
    read_back, read, read_g = (
        both.read_back(fold.name),
        _widening(both.source.reader(v), real),
        _rows_of(both.source, g),
    )
    with np.errstate(all="ignore"):
        for group in groups(v, fold.layer.dim):
            rows, adds = _rows(group), _adds(group)
            of_rows, sums = read_g(rows), np.zeros(rows.stop - rows.start, real)
            for block, _ in group:
                sums[_within(rows, block)] += squares(read(block)[1])
            norms = divisors_of(fold.layer.guard, sums)
            for block, piece in group:
                at, found, (values, x) = _within(rows, block), read_back(block, piece), read(block)
                if not are_quotients(found, values, of_rows[at], norms[at], x=x, adds=adds):
                    raise VerifyError(
                        f"layer {fold.name} was read back and is not g·v/‖v‖; nothing is kept", fix=REPORT_BUG
                    )


@check_step.register
def _check_split(step: Direction, both: Both) -> None:
    """v, which is w, and a unit in the direction of a row that is zero; and g, which is ‖w‖."""
    layer, w = step.layer, both.tensors[step.layer.name]
    real = real_for(w.info.dtype, layer.g.dtype)
    read, read_back = both.source.reader(w), both.read_back(layer.v.name)
    rows = box(w.info.shape, layer.dim)[1]
    unit = 1 / np.sqrt(real.type(max(w.info.numel // max(rows, 1), 1)))
    sums, group = np.zeros(rows, real), list(pieces_of(w, layer.dim))
    # Whether a row is zero is known at its end: until then, whether v is w in it, and whether it is a unit.
    zero, is_w, is_unit = (np.ones(rows, np.bool_) for _ in range(3))
    with np.errstate(all="ignore"):
        for block, piece in group:
            values = read(block)
            x, found = widened(values, real), read_back(block, piece)
            sums[block.rows] += squares(x)
            zero[block.rows] &= ~x.any(axis=(0, 2))
            same = _every(codes(found) == codes(values))
            is_w[block.rows] &= same
            is_unit[block.rows] &= ~same if same.all() else _every(are_units(found, values, unit))
        if not np.where(zero, is_unit, is_w).all():
            raise VerifyError(
                f"layer {layer.name} was read back, and v is not w; nothing is kept", fix=REPORT_BUG
            )
        _check_norms(layer, both, np.where(sums == 0, 0, divisors_of(layer.guard, sums)), _adds(group))


def _check_norms(layer: Layer, both: Both, norms: Array, adds: int) -> None:
    read_back = both.read_back(layer.g.name)
    for block, piece in _all_of(layer.g):
        if not are_norms(read_back(block, piece).reshape(-1), norms[block.start : block.stop], adds):
            raise VerifyError(
                f"layer {layer.name} was read back, and g is not ‖w‖; nothing is kept", fix=REPORT_BUG
            )


@check_step.register
def _check_magnitude(step: Magnitude, both: Both) -> None:
    """Nothing: g is checked with its v."""


def _rows_of(source: Elements, g: StoredTensor) -> Callable[[slice], Array]:
    """A function from rows to their magnitudes."""
    read = source.reader(g)

    def read_rows(rows: slice) -> Array:
        count = rows.stop - rows.start
        return read(Block(rows.start, (1, 1, count), 0)).reshape(-1).copy() if count else np.zeros(0)

    return read_rows


def _widening(read: Read, real: np.dtype[Any]) -> Callable[[Block], tuple[Array, Array]]:
    """A function from a block to its elements and the same widened, which keeps the last block.

    A block that holds rows whole is asked for twice, one after the other.
    """
    kept: list[tuple[Block, Array, Array]] = []

    def read_block(block: Block) -> tuple[Array, Array]:
        if not kept or kept[0][0] is not block:
            values = read(block)
            kept[:] = [(block, values, widened(values, real))]
        return kept[0][1:]

    return read_block


def _rows(group: Group) -> slice:
    """The rows of a group of pieces."""
    return slice(min(block.rows.start for block, _ in group), max(block.rows.stop for block, _ in group))


def _within(rows: slice, block: Block) -> slice:
    """The rows of a block among those of its group."""
    return slice(block.rows.start - rows.start, block.rows.stop - rows.start)


def _adds(group: Group) -> int:
    """The most additions in the sum of a row: those of its pieces, and of a piece."""
    return len(group) + max((block.shape[0] * block.shape[2] for block, _ in group), default=0)


def _every(elements: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """For each row of a block whether it holds for every element."""
    return np.asarray(elements.all(axis=(0, 2)))


def _same(found: Array, expected: Array) -> bool:
    """Whether two arrays have the same bytes."""
    a, b = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (found, expected))
    whole = a.size // 8 * 8
    return a.size == b.size and all(
        np.array_equal(a[part].view(kind), b[part].view(kind))
        for part, kind in ((slice(whole), np.uint64), (slice(whole, None), np.uint8))
    )
