"""Reading an output back, with readers that are not ours.

``check_structure`` looks at headers and places before every rename. ``verify_output`` reads every tensor:
a layer is computed again from the source's g and v by the plain formula, everything else must have the
source's bytes.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from wnconvert import safetensors_file
from wnconvert.blocks import BLOCK_BYTES, Array, Block, Read, blocks, box
from wnconvert.checkpoint import Checkpoint, open_checkpoint
from wnconvert.errors import InputError, VerifyError, WnconvertError
from wnconvert.making import made
from wnconvert.plan import Fold, Keep, Magnitude, Plan, PlannedStateDict
from wnconvert.rounding import cast
from wnconvert.schemes import Layer
from wnconvert.sources import Source
from wnconvert.tensors import DType, StoredTensor, TensorInfo, dtype_named

__all__ = ["bytes_to_verify", "check_folder_structure", "check_structure", "verify_copies"]
__all__ += ["verify_output"]

_BUG = "this is a bug of wnconvert: please report it with the output of --dry-run --json"

# What picks a piece of a tensor: places on leading axes, then a slice of the next one.
Piece: TypeAlias = tuple[int | slice, ...]
# A tensor of the output: a piece, also given as a run of elements, to its elements in any shape.
ReadBack: TypeAlias = Callable[[Block, Piece], Array]
# A reader of the output: a tensor by the path of its state dict and its name.
Open: TypeAlias = Callable[[str, str], ReadBack]


def check_structure(path: Path, container: str) -> None:
    """Have the safetensors library or ``zipfile`` read the directory of a new file, and our reader its tree.

    Raises ``VerifyError`` where either refuses it.
    """
    try:
        if container == "safetensors":
            safetensors_file.check_structure(path)
        elif container != "onnx":  # onnx_check runs that
            _test_zip(path, contents=False)
        open_checkpoint(path)
    except WnconvertError as error:
        raise VerifyError(
            f"what was written cannot be read back ({error.what}); nothing is kept", fix=_BUG
        ) from error


def check_folder_structure(folder: Path, plan: Plan) -> None:
    """The same of every file of weights of a new folder, and the index held against them."""
    for shard in plan.shards:
        check_structure(folder / shard.name, plan.container)
    try:
        open_checkpoint(folder)
    except WnconvertError as error:
        raise VerifyError(
            f"what was written cannot be read back ({error.what}); nothing is kept", fix=_BUG
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
                            fix=f"if nobody changed it meanwhile, {_BUG}",
                        )
                    advance(len(block))
    except OSError as error:
        raise InputError(f"it cannot be read ({error.strerror})", where=str(error.filename)) from error


def bytes_to_verify(checkpoint: Checkpoint, plan: Plan) -> int:
    """The bytes of the output that ``verify_output`` holds against the source."""
    before = {state.path: state.tensors for state in checkpoint.tree.state_dicts}
    return sum(
        made(step, before[planned.path]).info.nbytes
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
        own = _own_reader(found, written)
        if plan.container == "safetensors":
            reader, by = _safetensors_reader(opened.shards, own), "the safetensors library"
        else:
            try:
                reader, by = _torch_reader(checkpoint, opened.shards), "torch.load(weights_only=True)"
            except _NoTorch as reason:
                for shard in opened.shards:
                    _test_zip(shard, contents=True)
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
        raise VerifyError("what was read back has not the names that it should; nothing is kept", fix=_BUG)


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
            advance(made(step, tensors).info.nbytes)


# -- readers of the output


# What safetensors gives as numpy arrays; of other dtypes the bytes are read by our own reader.
_IN_NUMPY = frozenset("F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL C64".split())


def _safetensors_reader(paths: Sequence[Path], own: Open) -> Open:
    files: list[Any] = [safe_open(os.fspath(path), framework="numpy") for path in paths]
    holding = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - it is no mapping

    def open_tensor(_state: str, name: str) -> ReadBack:
        file = holding[name]
        view = file.get_slice(name)
        if view.get_dtype() not in _IN_NUMPY:
            return own("", name)
        if not view.get_shape():
            return lambda block, piece: np.asarray(file.get_tensor(name))
        return lambda block, piece: np.asarray(view[piece])

    return open_tensor


class _NoTorch(Exception):  # noqa: N818 - a reason, not an error
    """Why torch cannot be the reader."""


def _torch_reader(checkpoint: Checkpoint, paths: Sequence[Path]) -> Open:
    if importlib.util.find_spec("torch") is None:
        raise _NoTorch("it is not installed")
    import torch

    if checkpoint.torch and checkpoint.torch.mark != b"PK":
        raise _NoTorch("it does not know GPT-SoVITS's mark")
    try:
        roots = [torch.load(path, map_location="cpu", weights_only=True, mmap=True) for path in paths]
    except Exception as error:
        # weights_only refuses in many ways; its reason stands behind several lines of advice.
        reason = re.search(r"WeightsUnpickler error: (.+?)(?: was not|$)", str(error), re.MULTILINE)
        raise _NoTorch(reason[1] if reason else type(error).__name__) from error
    root = roots[0] if len(roots) == 1 else {name: value for part in roots for name, value in part.items()}
    keys = (
        {state.path: state.keys for state in checkpoint.torch.contents.state_dicts}
        if checkpoint.torch
        else {}
    )

    def open_tensor(state: str, name: str) -> ReadBack:
        value: Any = root
        for key in keys.get(state, ()):
            value = value[key]
        tensor = value[name].detach().reshape(value[name].shape or (1,))
        return lambda block, piece: _numpy(tensor[piece])

    return open_tensor


def _numpy(tensor: Any) -> Array:
    """A torch tensor's elements, the foldable as numpy's floats, others as raw elements."""
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    raw: Array = tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).numpy()
    return raw.view(_kind(dtype_named(name)))


def _kind(dtype: DType) -> np.dtype[Any]:
    return dtype.numpy() if dtype.foldable else np.dtype(f"V{dtype.itemsize}")


def _test_zip(path: Path, *, contents: bool) -> None:
    """The directory of a zip archive, and every checksum but that of the record that GPT-SoVITS marks."""
    import zipfile  # which a safetensors file need not wait for

    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist() if contents else ():
                file.seek(info.header_offset)
                if file.read(2) != b"PK":
                    continue
                with archive.open(info) as record:
                    while record.read(BLOCK_BYTES):
                        pass
    except zipfile.BadZipFile as error:
        raise VerifyError(f"{error}; nothing is kept", fix=_BUG) from error


def _own_reader(tensors: Mapping[str, Mapping[str, StoredTensor]], written: Source) -> Open:
    def open_tensor(state: str, name: str) -> ReadBack:
        read = written.reader(_in_bytes(tensors[state][name]))
        return lambda block, piece: read(block)

    return open_tensor


def _in_bytes(tensor: StoredTensor) -> StoredTensor:
    """A tensor of numbers of 4 or 6 bits as the bytes in which they lie; any other as it is."""
    if tensor.info.dtype.bits >= 8:
        return tensor
    info = TensorInfo(tensor.info.name, dtype_named("uint8"), (tensor.info.nbytes,))
    return replace(tensor, info=info, strides=(1,))


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
    tensor = _in_bytes(tensor)
    read = source.reader(tensor)
    for block, piece in _pieces(tensor):
        expected = read(block)
        if step.dtype is not None:
            expected = cast(expected, step.dtype)
        if expected.tobytes() != read_back(block, piece).tobytes():
            raise VerifyError(f"{step.name} was read back with other values; nothing is kept", fix=_BUG)


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
                    f"layer {fold.name} was read back and is not g·v/‖v‖; nothing is kept", fix=_BUG
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
        raise VerifyError(f"layer {layer.name} was read back, and g is not ‖w‖; nothing is kept", fix=_BUG)
    read, unit = source.reader(w), 1 / np.sqrt(np.longdouble(max(w.info.numel // max(rows, 1), 1)))
    for block, piece in _pieces(w):
        expected, v = read(block).reshape(-1), v_back(block, piece).reshape(-1)
        zero = norms[np.arange(block.start, block.stop) // inner % rows] == 0
        units = np.copysign(unit, expected[zero].astype(np.longdouble))
        if v[~zero].tobytes() != expected[~zero].tobytes() or not _agrees(v[zero], units, layer.v.dtype):
            raise VerifyError(f"layer {layer.name} was read back, and v is not w; nothing is kept", fix=_BUG)


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
