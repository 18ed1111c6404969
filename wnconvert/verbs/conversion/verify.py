"""Reading an output back, with readers that are not ours.

``check_structure`` looks at headers and places before every rename. ``verify_output`` reads every tensor:
a layer is computed again from the source's g and v by the plain formula, everything else must have the
source's bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wnconvert.errors import InputError, VerifyError, WnconvertError
from wnconvert.formats import safetensors as safetensors_file
from wnconvert.layers.schemes import Layer
from wnconvert.messages import REPORT_BUG
from wnconvert.numerics.rounding import cast
from wnconvert.plan.plan import Plan, PlannedStateDict
from wnconvert.plan.steps import Fold, Keep, Magnitude, work_of
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import BLOCK_BYTES, Array, Block, Read, blocks, box
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import StoredTensor
from wnconvert.verbs.conversion.readers import (
    Piece,
    ReadBack,
    TorchMissing,
    own_reader,
    safetensors_reader,
    test_zip,
    torch_reader,
)

__all__ = ["bytes_to_verify", "check_folder_structure", "check_structure", "verify_copies", "verify_output"]


def check_structure(path: Path, container: str) -> None:
    """Have the safetensors library or ``zipfile`` read the directory of a new file, and our reader its tree.

    Raises ``VerifyError`` where either refuses it.
    """
    try:
        if container == "safetensors":
            safetensors_file.check_header(path)
        elif container != "onnx":  # onnx_check runs that
            test_zip(path, contents=False)
        open_checkpoint(path)
    except WnconvertError as error:
        raise VerifyError(
            f"what was written cannot be read back ({error.what}); nothing is kept", fix=REPORT_BUG
        ) from error


def check_folder_structure(folder: Path, plan: Plan) -> None:
    """The same of every file of weights of a new folder, and the index held against them."""
    for shard in plan.shards:
        check_structure(folder / shard.name, plan.container)
    try:
        open_checkpoint(folder)
    except WnconvertError as error:
        raise VerifyError(
            f"what was written cannot be read back ({error.what}); nothing is kept", fix=REPORT_BUG
        ) from error


def verify_copies(
    before: Path, after: Path, names: Iterable[str], advance: Callable[[int], None] = lambda count: None
) -> None:
    """Read files that were copied from one folder to another back.

    Raises ``VerifyError``, and ``InputError`` for one that is not there any more.
    """
    try:
        for name in names:
            with (before / name).open("rb") as old, (after / name).open("rb") as new:
                while (block := old.read(BLOCK_BYTES)) or new.read(1):
                    if new.read(len(block)) != block or not block:
                        raise VerifyError(
                            f"{name} was read back, and is no copy; nothing is kept",
                            fix=f"if nobody changed it meanwhile, {REPORT_BUG}",
                        )
                    advance(len(block))
    except OSError as error:
        raise InputError(f"it cannot be read ({error.strerror})", where=str(error.filename)) from error


def bytes_to_verify(checkpoint: Checkpoint, plan: Plan) -> int:
    """The bytes of the output that ``verify_output`` holds against the source."""
    before = {state.path: state.tensors for state in checkpoint.tree.state_dicts}
    return sum(
        work_of(step, before[planned.path]).info.nbytes
        for planned in plan.state_dicts
        for step in planned.tensors
        if not isinstance(step, Keep) or step.source in before[planned.path]
    )


def verify_output(
    checkpoint: Checkpoint,
    plan: Plan,
    source: Source,
    path: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[str, tuple[str, ...]]:
    """Read the output, a file or folder, back and compute every layer again; what did it, and notes.

    Without torch, or where the pickle names classes of others, a torch file is read by ``zipfile``'s test
    of every checksum and by our own reader. Raises ``VerifyError`` for the first tensor that is wrong.
    """
    notes: tuple[str, ...] = ()
    opened = open_checkpoint(path)
    with Source(opened.shards) as written:
        found = {state.path: state.tensors for state in opened.tree.state_dicts}
        own = own_reader(found, written)
        if plan.container == "safetensors":
            reader, by = safetensors_reader(opened.shards, own), "the safetensors library"
        else:
            try:
                reader, by = torch_reader(checkpoint, opened.shards), "torch.load(weights_only=True)"
            except TorchMissing as reason:
                for shard in opened.shards:
                    test_zip(shard, contents=True)
                reader, by = own, "zipfile's test and wnconvert's own reader"
                notes = (f"not read back with torch: {reason}",)
        before = {state.path: state.tensors for state in checkpoint.tree.state_dicts}
        for planned in plan.state_dicts:
            names = found["" if plan.container == "safetensors" else planned.path]
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
    used: set[str] = set()
    for step in planned.tensors:
        if isinstance(step, Keep):
            used.add(step.source)
        else:
            used |= {half.name for half in step.layer.halves} if isinstance(step, Fold) else {step.layer.name}
    halves = {half.name for change in planned.changes if change.after for half in change.after.halves}
    steps = [step.name for step in planned.tensors]
    if (
        names != (order or steps)
        or sorted(names) != sorted(steps)
        or not halves <= set(names)
        or set(before) - used
    ):
        raise VerifyError(
            "what was read back has not the names that it should; nothing is kept", fix=REPORT_BUG
        )


def _check_state_dict(
    tensors: Mapping[str, StoredTensor],
    planned: PlannedStateDict,
    source: Source,
    reader: Callable[[str], ReadBack],
    advance: Callable[[int], None],
) -> None:
    for step in planned.steps:
        if isinstance(step, Fold):
            g, v = tensors[step.layer.g.name], tensors[step.layer.v.name]
            _check_layer(source, g, v, step, reader(step.name))
        elif isinstance(step, Magnitude):
            layer = step.layer
            _check_split(source, tensors[layer.name], layer, reader(layer.g.name), reader(layer.v.name))
        elif isinstance(step, Keep) and step.source in tensors:
            _check_kept(source, tensors[step.source], step, reader(step.name))
        if not isinstance(step, Keep) or step.source in tensors:
            advance(work_of(step, tensors).info.nbytes)


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


# -- what must have been read


def _check_kept(source: Source, tensor: StoredTensor, step: Keep, read_back: ReadBack) -> None:
    tensor = tensor.in_bytes()
    read = source.reader(tensor)
    for block, piece in _pieces(tensor):
        expected = read(block)
        if step.dtype is not None:
            expected = cast(expected, step.dtype)
        if expected.tobytes() != read_back(block, piece).tobytes():
            raise VerifyError(f"{step.name} was read back with other values; nothing is kept", fix=REPORT_BUG)


# Of each foldable dtype: bits of the significand, exponent of the smallest subnormal, and how many units in
# the last place a folded element may be off. (Elements of rows that are kept may be one off; others half.)
_ULPS = {
    "float64": (53, -1074, 4),
    "float32": (24, -149, 1),
    "float16": (11, -24, 1),
    "bfloat16": (8, -133, 1),
}


def _check_layer(source: Source, g: StoredTensor, v: StoredTensor, fold: Fold, read_back: ReadBack) -> None:
    """w = g·v/‖v‖ written out in extended precision, against what was read back."""
    dim, shape = fold.layer.dim, v.info.shape
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


def _check_split(source: Source, w: StoredTensor, layer: Layer, g_back: ReadBack, v_back: ReadBack) -> None:
    """g against ‖w‖, written out in extended precision; and v, which is w, and a unit where a row is zero."""
    dim, shape = layer.dim, w.info.shape
    _, rows, inner = box(shape, dim)
    norms = np.sqrt(_squares(source.reader(w), w, dim))
    every = StoredTensor(layer.g, w.storage, 0, (0,) * len(layer.g.shape))
    g = np.concatenate([g_back(block, piece).reshape(-1) for block, piece in _pieces(every)] or [norms[:0]])
    # Half a unit, and what a sum of that many squares may be off: a g that is the next number is no norm.
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


def _squares(read: Read, tensor: StoredTensor, dim: int | None) -> NDArray[np.longdouble]:
    """The sum of squares of each row, in extended precision."""
    shape = tensor.info.shape
    squares = np.zeros(box(shape, dim)[1], np.longdouble)
    with np.errstate(all="ignore"):
        for block in blocks(shape, dim, tensor.info.dtype.itemsize):
            squares[block.rows] += (read(block).astype(np.longdouble) ** 2).sum(axis=(0, 2))
    return squares


def _agrees(found: Array, expected: Array, dtype: DType) -> bool:
    most = _ULPS[dtype.name][2]
    # What lies past the largest value, and what is no number, was allowed or refused before.
    finite = np.isfinite(expected.astype(dtype.numpy()).astype(np.float64))
    off = np.abs(found.reshape(-1).astype(np.longdouble) - expected)
    return found.size == expected.size and bool(np.all(~finite | (off <= most * _ulp(expected, dtype))))


def _ulp(values: NDArray[np.longdouble], dtype: DType) -> NDArray[np.longdouble]:
    """The unit in the last place of numbers in a dtype."""
    bits, least, _ = _ULPS[dtype.name]
    exponents = np.where(values == 0, least, np.frexp(values)[1] - bits)
    unit: NDArray[np.longdouble] = np.ldexp(np.longdouble(1), np.maximum(exponents, least))
    return unit
