"""Readers of an output: the safetensors library, torch, zipfile, and our own.

Those of others open files by themselves, by path: they share nothing with the code that they check.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import numpy as np
from safetensors import safe_open

from wnconvert.errors import VerifyError
from wnconvert.frozen import dataclass
from wnconvert.messages import REPORT_BUG
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.sources import Source
from wnconvert.storage.stores.kept import MOST_OPEN
from wnconvert.storage.stores.system import begin_reading
from wnconvert.tensors.blocks import BLOCK_BYTES, Array, Block
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import ByteRange, StoredTensor
from wnconvert.verbs.conversion.verify.pieces import Piece
from wnconvert.verbs.conversion.verify.uncached import uncached_reader

__all__ = [
    "OTHER_READERS",
    "OtherReader",
    "check_zip",
    "is_read_uncached",
    "own_reader",
    "reading_ahead",
]


# A tensor of the output: a piece, also given as a run of elements, to its elements in any shape.
ReadBack: TypeAlias = Callable[[Block, Piece], Array]
# A reader of the output: a tensor by the path of its state dict and its name.
Open: TypeAlias = Callable[[str, str], ReadBack]


# A reader, its name, and notes.
Reading: TypeAlias = tuple[Open, str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class OtherReader:
    """What others read of a container: a file's structure, and its tensors.

    ``check`` raises ``WnconvertError`` where a file's structure is refused; None where our own reader has the
    other one do it. ``open`` takes the source, the written files and our own reader; it gives a reader, its
    name, and notes, until its ``with`` ends.
    """

    check: Callable[[Path], None] | None
    open: Callable[[Checkpoint, Sequence[PurePath], Open], AbstractContextManager[Reading]]


# -- readers of the output


# The dtypes that safetensors gives as numpy arrays; our own reader reads the bytes of others.
_IN_NUMPY = frozenset("F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL C64".split())
# Tensors of which the library gives both ends, and what lies between is read past the page cache.
_LARGE = 4 << 20
_ENDS = 64


@contextmanager
def _safetensors_reader(_source: Checkpoint, paths: Sequence[PurePath], own: Open) -> Iterator[Reading]:
    """Reads with the safetensors library; ``own`` reads the dtypes that it has no numpy type for."""

    @lru_cache(MOST_OPEN)
    def opened(path: PurePath) -> Any:
        return safe_open(os.fspath(path), framework="numpy")

    large = {path: _large_in(Path(path)) for path in paths}
    holding = {name: path for path in paths for name in opened(path).keys()}  # noqa: SIM118 - not a mapping

    def open_tensor(_state: str, name: str) -> ReadBack:
        file = opened(holding[name])
        view = file.get_slice(name)
        if view.get_dtype() not in _IN_NUMPY:
            return own("", name)
        if not view.get_shape():
            return lambda block, piece: np.asarray(file.get_tensor(name))
        if (place := large[holding[name]].get(name)) is not None:
            return _large_tensor(view, Path(holding[name]), place)
        return lambda block, piece: np.asarray(view[piece])

    more = ", large tensors past the page cache" if any(large.values()) else ""
    yield open_tensor, f"the safetensors library{more}", ()


def is_read_uncached(container: Container, size: int) -> bool:
    """Whether a tensor of so many bytes is read past the page cache, so that nothing need be put there."""
    return container is Container.SAFETENSORS and size >= _LARGE


def _end_of(view: Any, at: int) -> Array:
    """The first few elements of a tensor as the safetensors library reads them; the last ones ``at`` -1."""
    *leading, last = view.get_shape()
    ends = slice(0, min(_ENDS, last)) if at == 0 else slice(max(last - _ENDS, 0), last)
    return np.asarray(view[(*(0 if at == 0 else size - 1 for size in leading), ends)]).reshape(-1)


def _large_in(path: Path) -> dict[str, ByteRange]:
    """Where large tensors of a safetensors file lie, by its header: JSON behind the number of its bytes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    tensors = ((name, entry) for name, entry in header.items() if name != "__metadata__")
    spans = ((name, *entry["data_offsets"]) for name, entry in tensors if entry["dtype"] in _IN_NUMPY)
    return {
        name: ByteRange(8 + size + first, last - first)
        for name, first, last in spans
        if last - first >= _LARGE
    }


def _large_tensor(view: Any, path: Path, data: ByteRange) -> ReadBack:
    """Reads a tensor where it lies, which is where the safetensors library reads its ends."""
    read, ends = uncached_reader(path, data), (_end_of(view, 0), _end_of(view, -1))
    dtype, sizes = ends[0].dtype, [end.nbytes for end in ends]
    last = read(data.size - sizes[1], sizes[1]).tobytes()
    first = read(0, sizes[0]).tobytes()  # with what is asked for next
    if (first, last) != (ends[0].tobytes(), ends[1].tobytes()):
        raise VerifyError(
            f"{path} was read back with another place of a tensor; nothing is kept", fix=REPORT_BUG
        )

    def read_block(block: Block, _piece: Piece) -> Array:
        size = dtype.itemsize
        return np.frombuffer(read(block.start * size, (block.stop - block.start) * size), dtype)

    return read_block


@contextmanager
def _torch_or_zip_reader(checkpoint: Checkpoint, paths: Sequence[PurePath], own: Open) -> Iterator[Reading]:
    """Reads with torch; where that cannot be done, zipfile tests every checksum and ``own`` reads."""
    try:
        opened: Reading = _torch_reader(checkpoint, paths), "torch.load(weights_only=True)", ()
    except _TorchMissing as reason:
        for path in paths:
            check_zip(path, contents=True)
        opened = own, "zipfile's test and wnconvert's own reader", (f"not read back with torch: {reason}",)
    yield opened


class _TorchMissing(Exception):  # noqa: N818 - a reason, not an error
    """Why torch cannot be the reader."""


def _torch_reader(checkpoint: Checkpoint, paths: Sequence[PurePath]) -> Open:
    """Reads with ``torch.load(weights_only=True)``; raises ``_TorchMissing`` where that cannot be done."""
    if importlib.util.find_spec("torch") is None:
        raise _TorchMissing("it is not installed")
    import torch

    if checkpoint.torch and checkpoint.torch.mark != b"PK":
        raise _TorchMissing("it does not know GPT-SoVITS's mark")
    try:
        roots = [torch.load(path, map_location="cpu", weights_only=True, mmap=True) for path in paths]
    except Exception as error:
        # weights_only refuses in many ways; its reason stands behind several lines of advice.
        reason = re.search(r"WeightsUnpickler error: (.+?)(?: was not|$)", str(error), re.MULTILINE)
        raise _TorchMissing(reason[1] if reason else type(error).__name__) from error
    root = roots[0] if len(roots) == 1 else {name: value for part in roots for name, value in part.items()}
    # Models of a pipeline that go into one file stand in it by their names, and so do state dicts of a file
    # that is not torch's.
    keys = (
        {state.path: state.keys for state in checkpoint.torch.contents.state_dicts}
        if checkpoint.torch
        else {
            state.path: (state.path,)
            for state in checkpoint.tree.state_dicts
            if isinstance(root.get(state.path), dict)
        }
    )

    def open_tensor(state: str, name: str) -> ReadBack:
        value: Any = root
        for key in keys.get(state, ()):
            value = value[key]
        if isinstance(value[name], np.ndarray):
            array = value[name].reshape(value[name].shape or (1,))
            return lambda block, piece: np.ascontiguousarray(array[piece])
        tensor = value[name].detach().reshape(value[name].shape or (1,))
        return lambda block, piece: _numpy(tensor[piece])

    return open_tensor


def _numpy(tensor: Any) -> Array:
    """A torch tensor's elements, the foldable as numpy's floats, others as raw elements."""
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    flat = tensor.resolve_conj().resolve_neg().contiguous().flatten()
    if flat.stride() != (1,):  # torch takes an element with any stride for contiguous, and has no view of it
        flat = flat.clone(memory_format=torch.contiguous_format)
    raw: Array = flat.view(torch.uint8).numpy()
    return raw.view(dtype_named(name).elements())


def check_zip(path: PurePath, *, contents: bool) -> None:
    """Have ``zipfile`` read a directory; with ``contents`` every checksum but that which GPT-SoVITS marks."""
    import zipfile  # which a safetensors file need not wait for

    try:
        with Path(path).open("rb") as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist() if contents else ():
                file.seek(info.header_offset)
                if file.read(2) != b"PK":
                    continue
                with archive.open(info) as record:
                    while record.read(BLOCK_BYTES):
                        pass
    except zipfile.BadZipFile as error:
        raise VerifyError(f"{error}; nothing is kept", fix=REPORT_BUG) from error


@contextmanager
def _numpy_reader(_source: Checkpoint, paths: Sequence[PurePath], _own: Open) -> Iterator[Reading]:
    """Reads with ``numpy.load``, one array at a time, which tests its checksum.

    Threads take turns: ``zipfile`` of Python 3.12 and 3.13 opens a record where another thread has left the
    file.
    """
    from zipfile import BadZipFile

    turns = threading.Lock()
    with np.load(paths[0], allow_pickle=False) as archive:

        def open_tensor(_state: str, name: str) -> ReadBack:
            try:
                with turns:
                    array = archive[name]
            except (BadZipFile, ValueError, KeyError) as error:
                raise VerifyError(
                    f"numpy does not read {name} ({error}); nothing is kept", fix=REPORT_BUG
                ) from error
            array = array.reshape(array.shape or (1,))
            return lambda block, piece: np.asarray(array[piece])

        yield open_tensor, "numpy.load(allow_pickle=False)", ()


#: Who reads what is written, by its container; an ONNX model is run (`verbs/conversion/onnx/check.py`).
OTHER_READERS = {
    Container.SAFETENSORS: OtherReader(None, _safetensors_reader),
    Container.TORCH_ZIP: OtherReader(partial(check_zip, contents=False), _torch_or_zip_reader),
    Container.NPZ: OtherReader(partial(check_zip, contents=False), _numpy_reader),
}


#: What is asked for ahead.
_AHEAD_BYTES = 8 << 20


def reading_ahead(path: PurePath, data: ByteRange) -> Callable[[int], None]:
    """A function that has the system read what follows a byte of a tensor: outputs pass the page cache by.

    Other libraries wait for the disk in page faults, and let no other thread run meanwhile.
    """
    asked = 0

    def ahead(at: int) -> None:
        nonlocal asked
        while asked < min(at + _AHEAD_BYTES, data.size):
            begin_reading(path, data.start + asked, min(_AHEAD_BYTES, data.size - asked))
            asked += _AHEAD_BYTES

    return ahead


def own_reader(tensors: Mapping[str, Mapping[str, StoredTensor]], written: Source) -> Open:
    """Reads with our own reader, from the written files."""

    def open_tensor(state: str, name: str) -> ReadBack:
        read = written.reader(tensors[state][name].in_bytes())
        return lambda block, piece: read(block)

    return open_tensor
