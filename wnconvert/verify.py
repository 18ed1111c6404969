"""Reading an output back, with readers that are not ours.

``check_structure`` looks at headers and places before every rename. ``verify_output`` reads every tensor:
a layer is computed again from the source's g and v by the plain formula, everything else must have the
source's bytes.
"""

from __future__ import annotations

import importlib.util
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from wnconvert import safetensors_file
from wnconvert.blocks import BLOCK_BYTES, Array, Block, blocks
from wnconvert.checkpoint import Checkpoint, open_checkpoint
from wnconvert.errors import VerifyError, WnconvertError
from wnconvert.plan import Fold, Keep, Plan, PlannedStateDict
from wnconvert.rounding import cast
from wnconvert.sources import Source
from wnconvert.tensors import DType, StoredTensor, dtype_named

__all__ = ["check_structure", "verify_output"]

# Elements first to last along the leading axis of a tensor of the output.
Read = Callable[[int, int], Array]
# A reader of the output by path of the state dict and name.
Open = Callable[[str, str], Read]


def check_structure(path: Path, container: str) -> None:
    """Have the safetensors library or ``zipfile`` read the directory of a new file, and our reader its tree.

    Raises ``VerifyError`` where either refuses it.
    """
    try:
        if container == "safetensors":
            safetensors_file.check_structure(path)
        else:
            with path.open("rb") as file:
                file.seek(
                    2
                )  # GPT-SoVITS's mark is over the magic of the first header; zipfile looks at the end
                zipfile.ZipFile(file).close()
        open_checkpoint(path)
    except (WnconvertError, zipfile.BadZipFile) as error:
        raise VerifyError(
            f"what was written cannot be read back ({error}); nothing is kept", fix=_BUG
        ) from error


_BUG = "this is a bug of wnconvert: please report it with the output of --dry-run --json"


def verify_output(
    checkpoint: Checkpoint, plan: Plan, source: Source, path: Path
) -> tuple[str, tuple[str, ...]]:
    """Read the output at ``path`` back and compute every layer again; what did it, and notes.

    Without torch, or where the pickle names classes of others, a torch file is read by ``zipfile``'s test
    of every checksum and by our own reader. Raises ``VerifyError`` for the first tensor that is wrong.
    """
    notes: tuple[str, ...] = ()
    with Source((path,)) as written:
        if plan.container == "safetensors":
            reader, by = _safetensors_reader(path, written), "the safetensors library"
        else:
            try:
                reader, by = _torch_reader(checkpoint, path), "torch.load(weights_only=True)"
            except _NoTorch as reason:
                _test_zip(path)
                reader, by = _own_reader(path, written), "zipfile's test and wnconvert's own reader"
                notes = (f"not read back with torch: {reason}",)
        for planned in plan.state_dicts:
            _check_state_dict(checkpoint, planned, source, partial(reader, planned.path))
    return by, notes


def _check_state_dict(
    checkpoint: Checkpoint, planned: PlannedStateDict, source: Source, reader: Callable[[str], Read]
) -> None:
    tensors = next(state.tensors for state in checkpoint.tree.state_dicts if state.path == planned.path)
    for step in planned.steps:
        if isinstance(step, Fold):
            g, v = tensors[step.layer.g.name], tensors[step.layer.v.name]
            _check_layer(source, g, v, step, reader(step.name))
        elif step.source in tensors:
            _check_kept(source, tensors[step.source], step, reader(step.name))


class _NoTorch(Exception):  # noqa: N818 - a reason, not an error
    """Why torch cannot be the reader."""


# What safetensors gives as numpy arrays; of other dtypes the bytes are read by our own reader.
_IN_NUMPY = frozenset("F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL C64".split())


def _safetensors_reader(path: Path, written: Source) -> Open:
    file: Any = safe_open(os.fspath(path), framework="numpy")
    own = _own_reader(path, written)

    def open_tensor(state: str, name: str) -> Read:
        view = file.get_slice(name)
        if view.get_dtype() not in _IN_NUMPY:
            return own("", name)
        if not view.get_shape():
            return lambda first, last: np.asarray(file.get_tensor(name)).reshape(1)
        return lambda first, last: np.asarray(view[first:last])

    return open_tensor


def _torch_reader(checkpoint: Checkpoint, path: Path) -> Open:
    if importlib.util.find_spec("torch") is None:
        raise _NoTorch("it is not installed")
    import torch

    if checkpoint.torch and checkpoint.torch.mark != b"PK":
        raise _NoTorch("it does not know GPT-SoVITS's mark")
    try:
        root = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 - weights_only refuses in many ways; the reason is told
        raise _NoTorch(str(error).strip().splitlines()[0][:120]) from error
    keys = (
        {state.path: state.keys for state in checkpoint.torch.contents.state_dicts}
        if checkpoint.torch
        else {}
    )

    def open_tensor(state: str, name: str) -> Read:
        value: Any = root
        for key in keys.get(state, ()):
            value = value[int(key)] if isinstance(value, (list, tuple)) else _item(value, key)
        tensor = value[name].detach().reshape(value[name].shape or (1,))
        return lambda first, last: _numpy(tensor[first:last])

    return open_tensor


def _item(mapping: Any, key: str) -> Any:
    return mapping[key] if key in mapping else mapping[int(key)]


def _numpy(tensor: Any) -> Array:
    """A torch tensor's elements, the foldable as numpy's floats, others as raw elements."""
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    raw: Array = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw.view(_kind(dtype_named(name))).reshape(tuple(tensor.shape))


def _kind(dtype: DType) -> np.dtype[Any]:
    return dtype.numpy() if dtype.foldable else np.dtype(f"V{dtype.itemsize}")


def _test_zip(path: Path) -> None:
    """Every checksum of a zip archive, but that of a record whose header GPT-SoVITS has marked."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            file.seek(info.header_offset)
            if file.read(2) != b"PK":
                continue
            try:
                with archive.open(info) as record:
                    while record.read(BLOCK_BYTES):
                        pass
            except zipfile.BadZipFile as error:
                raise VerifyError(f"{error}; nothing is kept", fix=_BUG) from error


def _own_reader(path: Path, source: Source) -> Open:
    tree = open_checkpoint(path).tree
    tensors = {state.path: state.tensors for state in tree.state_dicts}
    return lambda state, name: partial(_leading, source, tensors[state][name])


def _leading(source: Source, tensor: StoredTensor, first: int, last: int) -> Array:
    """Elements ``first`` to ``last`` along the leading axis."""
    count, step = _leading_axis(tensor)
    if not count * step:
        return np.empty(tensor.info.shape or (1,), _kind(tensor.info.dtype))
    block = Block(first * step, (1, last - first, step), 0)
    return source.reader(tensor)(block).reshape(last - first, *tensor.info.shape[1:])


def _leading_axis(tensor: StoredTensor) -> tuple[int, int]:
    shape = tensor.info.shape or (1,)
    return shape[0], math.prod(shape[1:])


def _chunks(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    """Cut a tensor along its leading axis."""
    count, step = _leading_axis(tensor)
    each = max(1, BLOCK_BYTES // max(1, step * tensor.info.dtype.itemsize))
    return ((first, min(first + each, count)) for first in range(0, count if step else 0, each))


def _check_kept(source: Source, tensor: StoredTensor, step: Keep, read: Read) -> None:
    for first, last in _chunks(tensor):
        expected = _leading(source, tensor, first, last)
        if step.dtype is not None:
            expected = cast(expected, step.dtype)
        if expected.tobytes() != read(first, last).tobytes():
            raise VerifyError(f"{step.name} was read back with other values; nothing is kept", fix=_BUG)


# Of each foldable dtype: bits of the significand, exponent of the smallest subnormal, and how many units in the
# last place a folded element may be off. (Elements of rows that are kept may be one off; others half.)
_ULPS = {
    "float64": (53, -1074, 4),
    "float32": (24, -149, 1),
    "float16": (11, -24, 1),
    "bfloat16": (8, -133, 1),
}


def _check_layer(source: Source, g: StoredTensor, v: StoredTensor, fold: Fold, read: Read) -> None:
    """w = g·v/‖v‖ written out in extended precision, against what was read back."""
    dim = fold.layer.dim
    squares = np.zeros(fold.layer.rows, np.longdouble)
    read_v = source.reader(v)
    with np.errstate(all="ignore"):
        for block in blocks(v.info.shape, dim, v.info.dtype.itemsize):
            squares[block.rows] += (read_v(block).astype(np.longdouble) ** 2).sum(axis=(0, 2))
        norms = np.sqrt(squares)
        scale = np.where(norms == 0, 0, source.whole(g).reshape(-1).astype(np.longdouble) / norms)
        shape = [len(scale) if axis == dim else 1 for axis in range(len(v.info.shape) or 1)]
        for first, last in _chunks(v):
            factor = scale[first:last].reshape(-1, *shape[1:]) if dim == 0 else scale.reshape(shape)
            expected = _leading(source, v, first, last).astype(np.longdouble) * factor
            if not _agrees(read(first, last), expected, fold.dtype):
                raise VerifyError(
                    f"layer {fold.name} was read back and is not g·v/‖v‖; nothing is kept", fix=_BUG
                )


def _agrees(found: Array, expected: Array, dtype: DType) -> bool:
    bits, least, most = _ULPS[dtype.name]
    ulp = np.ldexp(np.longdouble(1), np.maximum(np.frexp(expected)[1] - bits, least))
    # What lies past the largest value, and what is no number, was allowed or refused before.
    finite = np.isfinite(expected.astype(dtype.numpy()).astype(np.float64))
    off = np.abs(found.astype(np.longdouble) - expected)
    return found.shape == expected.shape and bool(np.all(~finite | (off <= most * ulp)))
