"""An output read back, with readers that are not ours.

``check_structure`` looks at headers and places before every rename. ``verify_output`` reads every tensor:
a layer is computed again from the source's g and v by the plain formula, everything else must have the
source's bytes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial, singledispatch
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from wnconvert.errors import VerifyError, WnconvertError
from wnconvert.messages import REPORT_BUG
from wnconvert.numerics.rounding import FLOAT_FORMATS, cast
from wnconvert.plan.plan import Plan, PlannedStateDict
from wnconvert.plan.steps import Direction, Fold, Keep, Magnitude, Step
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.files import open_file
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import BLOCK_BYTES, Array, Block, Read, blocks, box
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import StoredTensor
from wnconvert.verbs.conversion.other_readers import (
    OTHER_READERS,
    Piece,
    ReadBack,
    own_reader,
)

__all__ = ["bytes_to_verify", "check_folder_structure", "check_structure", "verify_copies", "verify_output"]


def check_structure(path: Path, container: Container) -> Checkpoint:
    """Have another library read the structure of a new file, and our reader its tree.

    Returns the file as our reader opened it. Raises ``VerifyError`` where either refuses it.
    """
    try:
        if container in OTHER_READERS:
            OTHER_READERS[container].check(path)
        return open_checkpoint(path)
    except WnconvertError as error:
        raise VerifyError(
            f"the output cannot be read back ({error.what}); nothing is kept", fix=REPORT_BUG
        ) from error


def check_folder_structure(folder: Path, plan: Plan) -> None:
    """``check_structure`` for every file of weights of a new folder, and a check of its index."""
    for shard in plan.shards:
        check_structure(folder / shard.name, plan.container)
    try:
        if plan.index:
            open_checkpoint(folder / plan.index)
    except WnconvertError as error:
        raise VerifyError(
            f"the output cannot be read back ({error.what}); nothing is kept", fix=REPORT_BUG
        ) from error


def verify_copies(
    before: PurePath,
    after: PurePath,
    names: Iterable[str],
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Compare files that were copied from one folder to another with their sources.

    Raises ``VerifyError``, and ``InputError`` for one that is gone.
    """
    for name in names:
        with closing(open_file(before / name)) as old, closing(open_file(after / name)) as new:
            wrong = VerifyError(
                f"the copy of {name} differs from it; nothing is kept",
                fix=f"if nobody changed it meanwhile, {REPORT_BUG}",
            )
            size = old.size
            if new.size != size:
                raise wrong
            for at in range(0, size, BLOCK_BYTES):
                count = min(BLOCK_BYTES, size - at)
                if new.read(at, count) != old.read(at, count):
                    raise wrong
                advance(count)


def bytes_to_verify(checkpoint: Checkpoint, plan: Plan) -> int:
    """The bytes of the output that ``verify_output`` compares with the source."""
    before = checkpoint.tree.tensors
    return sum(
        step.made_of(before[planned.path]).info.nbytes
        for planned in plan.state_dicts
        for step in planned.tensors
    )


def verify_output(
    checkpoint: Checkpoint,
    plan: Plan,
    source: Source,
    path: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[str, tuple[str, ...]]:
    """Read the output, a file or folder, back and compute every layer again; the reader's name, and notes.

    Without torch, or where the pickle names classes of others, a torch file is read by ``zipfile``'s test
    of every checksum and by our own reader. Raises ``VerifyError`` for the first tensor that is wrong.
    """
    opened = open_checkpoint(path)
    with Source(opened.sources) as written, contextlib.ExitStack() as stack:
        found = opened.tree.tensors
        own = own_reader(found, written)
        other = OTHER_READERS[plan.container].open(checkpoint, opened.shards, own)
        reader, by, notes = stack.enter_context(other)
        before = checkpoint.tree.tensors
        for planned in plan.state_dicts:
            names = found[planned.path if plan.container.facts.holds_trees else ""]
            order = [name for shard in plan.shards for name in shard.tensors]
            _check_names(before[planned.path], planned, list(names), order)
            _check_state_dict(before[planned.path], planned, source, partial(reader, planned.path), advance)
    return by, notes


def _check_names(
    before: Mapping[str, StoredTensor], planned: PlannedStateDict, names: list[str], order: list[str]
) -> None:
    """Every tensor of the source went somewhere, every layer is whole, and all names are as planned.

    ``order`` is that of the names in several files.
    """
    used = {source for step in planned.tensors for source in step.sources}
    halves = {half.name for change in planned.changes if change.after for half in change.after.halves}
    steps = [step.name for step in planned.tensors]
    if (
        names != (order or steps)
        or sorted(names) != sorted(steps)
        or not halves <= set(names)
        or set(before) - used
    ):
        raise VerifyError("the output has other names than planned; nothing is kept", fix=REPORT_BUG)


def _check_state_dict(
    tensors: Mapping[str, StoredTensor],
    planned: PlannedStateDict,
    source: Source,
    reader: Callable[[str], ReadBack],
    advance: Callable[[int], None],
) -> None:
    for step in planned.tensors:
        _check_step(step, tensors, source, reader)
        advance(step.made_of(tensors).info.nbytes)


def _pieces(tensor: StoredTensor) -> Iterator[tuple[Block, Piece]]:
    """Cut a tensor into pieces of about a block of bytes: as a run of elements, and as an index."""
    shape = tensor.info.shape or (1,)
    if not tensor.info.numel:
        return
    most = BLOCK_BYTES // tensor.info.dtype.itemsize
    behind = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    axis = next(axis for axis, count in enumerate(behind) if count <= most)
    step = most // behind[axis]
    start = 0
    for leading in np.ndindex(shape[:axis]):
        for first in range(0, shape[axis], step):
            last = min(first + step, shape[axis])
            count = (last - first) * behind[axis]
            yield Block(start, (1, 1, count), 0), (*leading, slice(first, last))
            start += count


# -- the checks, one for each kind of step


@singledispatch
def _check_step(
    step: Step, tensors: Mapping[str, StoredTensor], source: Source, reader: Callable[[str], ReadBack]
) -> None:
    """Compare a tensor of the output with what its step must make, computed here from the source."""
    raise NotImplementedError(type(step))


@_check_step.register
def _check_kept(
    step: Keep, tensors: Mapping[str, StoredTensor], source: Source, reader: Callable[[str], ReadBack]
) -> None:
    """The bytes of the source, cast if the plan says so."""
    stored, read_back = tensors[step.kept], reader(step.name)
    tensor = (stored if step.shape is None else stored.shaped(step.shape)).in_bytes()
    read = source.reader(tensor)
    for block, piece in _pieces(tensor):
        expected = read(block)
        if step.dtype is not None:
            expected = cast(expected, step.dtype)
        if expected.tobytes() != read_back(block, piece).tobytes():
            raise VerifyError(f"{step.name} was read back with other values; nothing is kept", fix=REPORT_BUG)


#: How many units in the last place a folded element may be off: those of rows that are kept may be one off,
#: others half; and extended precision, in which they are checked, is not much wider than float64.
_MOST_ULPS = {"float64": 4, "float32": 1, "float16": 1, "bfloat16": 1}


@_check_step.register
def _check_fold(
    fold: Fold, tensors: Mapping[str, StoredTensor], source: Source, reader: Callable[[str], ReadBack]
) -> None:
    """w = g·v/‖v‖ written out in extended precision, against what was read back."""
    g, v = (tensors[name] for name in fold.sources)
    dim, shape, read_back = fold.layer.dim, v.info.shape, reader(fold.name)
    _, rows, inner = box(shape, dim)
    read = source.reader(v)
    with np.errstate(all="ignore"):
        norms = np.sqrt(_squares(read, v, dim))
        scale = np.where(norms == 0, 0, source.whole(g).reshape(-1).astype(np.longdouble) / norms)
        for block, piece in _pieces(v):
            row = np.arange(block.start, block.stop) // inner % rows
            expected = read(block).reshape(-1).astype(np.longdouble) * scale[row]
            if not _agrees(read_back(block, piece), expected, fold.dtype):
                raise VerifyError(
                    f"layer {fold.name} was read back and is not g·v/‖v‖; nothing is kept", fix=REPORT_BUG
                )


@_check_step.register
def _check_split(
    step: Magnitude, tensors: Mapping[str, StoredTensor], source: Source, reader: Callable[[str], ReadBack]
) -> None:
    """g against ‖w‖, written out in extended precision; and v, which is w, and a unit where a row is zero."""
    layer, w = step.layer, tensors[step.layer.name]
    g_back, v_back = reader(layer.g.name), reader(layer.v.name)
    dim, shape = layer.dim, w.info.shape
    _, rows, inner = box(shape, dim)
    norms = np.sqrt(_squares(source.reader(w), w, dim))
    every = StoredTensor(layer.g, w.storage, 0, (0,) * len(layer.g.shape))
    g = np.concatenate([g_back(block, piece).reshape(-1) for block, piece in _pieces(every)] or [norms[:0]])
    # Half a unit, and what a sum of that many squares may be off: a g that is the next number is wrong.
    off = np.abs(g.astype(np.longdouble) - norms)
    slack = norms * (w.info.numel // max(rows, 1)) * np.finfo(np.longdouble).eps
    if (off > _ulp(norms, layer.g.dtype) / 2 + slack).any() or np.signbit(g.astype(np.float64)).any():
        raise VerifyError(
            f"layer {layer.name} was read back, and g is not ‖w‖; nothing is kept", fix=REPORT_BUG
        )
    read, unit = source.reader(w), 1 / np.sqrt(np.longdouble(max(w.info.numel // max(rows, 1), 1)))
    for block, piece in _pieces(w):
        expected, v = read(block).reshape(-1), v_back(block, piece).reshape(-1)
        zero = norms[np.arange(block.start, block.stop) // inner % rows] == 0
        units = np.copysign(unit, expected[zero].astype(np.longdouble))
        if v[~zero].tobytes() != expected[~zero].tobytes() or not _agrees(v[zero], units, layer.v.dtype):
            raise VerifyError(
                f"layer {layer.name} was read back, and v is not w; nothing is kept", fix=REPORT_BUG
            )


@_check_step.register
def _check_direction(
    step: Direction, tensors: Mapping[str, StoredTensor], source: Source, reader: Callable[[str], ReadBack]
) -> None:
    """Nothing: v is checked with its g, whose norms tell which rows are zero."""


def _squares(read: Read, tensor: StoredTensor, dim: int | None) -> NDArray[np.longdouble]:
    """The sum of squares of each row, in extended precision."""
    shape = tensor.info.shape
    squares = np.zeros(box(shape, dim)[1], np.longdouble)
    with np.errstate(all="ignore"):
        for block in blocks(shape, dim, tensor.info.dtype.itemsize):
            squares[block.rows] += (read(block).astype(np.longdouble) ** 2).sum(axis=(0, 2))
    return squares


def _agrees(found: Array, expected: Array, dtype: DType) -> bool:
    most = _MOST_ULPS[dtype.name]
    # Values past the largest one, and NaN, were allowed or refused before.
    finite = np.isfinite(expected.astype(dtype.numpy()).astype(np.float64))
    off = np.abs(found.reshape(-1).astype(np.longdouble) - expected)
    return found.size == expected.size and bool(np.all(~finite | (off <= most * _ulp(expected, dtype))))


def _ulp(values: NDArray[np.longdouble], dtype: DType) -> NDArray[np.longdouble]:
    """The unit in the last place of numbers in a dtype."""
    form = FLOAT_FORMATS[dtype.name]
    exponents = np.where(values == 0, form.least, np.frexp(values)[1] - form.digits)
    unit: NDArray[np.longdouble] = np.ldexp(np.longdouble(1), np.maximum(exponents, form.least))
    return unit
