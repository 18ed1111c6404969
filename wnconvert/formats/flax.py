"""Flax's files: MessagePack in which arrays are extensions, which stay where they lie.

The file is one state dict, whose names are the keys on the way to each array, joined by ``/``, as
``flax.traverse_util.flatten_dict`` joins them. Source of the format: ``flax/serialization.py``
(``msgpack_serialize``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field
from typing import Any, TypeGuard

from wnconvert.errors import FormatError, InputError
from wnconvert.formats.msgpack import Extended, Items, Map, MessagePack, Raw, Token
from wnconvert.frozen import dataclass
from wnconvert.messages import printable
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.tensors.files import GET_AGAIN, ReadableFile
from wnconvert.tensors.tree import (
    MAX_RANK,
    ByteRange,
    Entry,
    StateDict,
    StoredTensor,
    TensorInfo,
    Tree,
    contiguous_strides,
    repeated,
)
from wnconvert.tensors.views.assembled import Assembled, Chunk

__all__ = ["FlaxFile", "open_flax"]


# Codes of extensions: an array, a number of NumPy's, which is written as an array is, a number of Python's.
_ARRAYS = (1, 3)
_COMPLEX = 2
#: The first key of an array of more than 1 GiB, which is cut into flat ones.
_CHUNKED = "__msgpack_chunked_array__"
# What flax calls the states of optimizers: moments of what cannot be converted with the weights.
_OPTIMIZERS = ("opt_state", "optimizer", "optimizer_state")
# Values and names of a file are bounded by its arrays and its bytes: 144 MiB, and more with each array.
_MOST_VALUES, _VALUES_PER_ARRAY = 1_000_000, 400
_MOST_NAMED, _NAMED_PER_BYTE = 16 << 20, 16
_MAX_DEPTH = 200
_MOST_CHUNKS = 1 << 20
_SHOWN = 6
_NOT_TRUSTED = "do not trust this file"
# A dtype's name as NumPy has it; bfloat16 may be spelled as the bytes that it is to a NumPy without it.
_DTYPES = {
    **{name: dtype for name, dtype in DTYPES.items() if dtype.bits % 8 == 0 and not name.startswith("q")},
    "V2": DTYPES["bfloat16"],
}


@dataclass(frozen=True, slots=True)
class FlaxFile:
    """An opened file: its tree, and the arrays that are put together of chunks, behind the file itself."""

    tree: Tree
    views: tuple[Assembled, ...]


def open_flax(file: ReadableFile) -> FlaxFile:
    """Read the structure of a file of flax.

    Raises ``FormatError`` for one that is damaged, ``InputError`` for MessagePack without any array of flax.
    """
    return _Reader(file).opened()


class _Aside:
    """What is left out: the first few names, and how many there are."""

    def __init__(self, words: str) -> None:
        self.words = words
        self.first: list[str] = []
        self.count = 0

    def add(self, name: str) -> None:
        self.count += 1
        if self.count <= _SHOWN:
            self.first.append(printable(name))

    @property
    def notes(self) -> tuple[str, ...]:
        """A note, if there is anything."""
        more = f" and {self.count - _SHOWN} more" if self.count > _SHOWN else ""
        return (f"{self.words}: {', '.join(self.first)}{more}",) if self.count else ()


@dataclass(slots=True)
class _Level:
    """A mapping or a list that is being read: its name, its size, and how many of its values were read.

    What is ``aside`` is an optimizer's: nothing of it goes into the state dict.
    """

    name: str
    size: int
    is_map: bool
    is_aside: bool = False
    done: int = 0
    keys: set[str] = field(default_factory=set)


class _Reader:
    """Reads one file."""

    def __init__(self, file: ReadableFile) -> None:
        self.file = file
        self.values = MessagePack(file)
        self.tensors: list[StoredTensor] = []
        self.views: list[Assembled] = []
        self.optimizers = _Aside("states of optimizers are left out")
        self.others = _Aside("values that are not arrays are left out")
        self.named = self.read = self.arrays = 0

    def opened(self) -> FlaxFile:
        """The whole file."""
        first = self.values.next()
        if not isinstance(first, Map):
            raise FormatError("it is not a mapping", fix=GET_AGAIN)
        self.read_below(_Level("", first.count, is_map=True))
        if not self.values.is_done:
            raise FormatError(f"it goes on behind its last value, at {self.values.at}", fix=GET_AGAIN)
        if not self.tensors:
            raise InputError(
                "a MessagePack file without an array of flax",
                fix="write it with flax.serialization.to_bytes; or save its arrays with numpy.savez",
            )
        if (twice := repeated(tensor.info.name for tensor in self.tensors)) is not None:
            raise FormatError(f"two arrays would be called {printable(twice)}", fix="save it with other keys")
        entries = tuple(Entry(tensor.info.name, tensor) for tensor in self.tensors)
        notes = (*self.optimizers.notes, *self.others.notes)
        return FlaxFile(Tree((StateDict("", entries),), notes=notes), tuple(self.views))

    def read_below(self, root: _Level) -> None:
        """Read a mapping and all below it, without recursion."""
        above = [root]
        while above:
            level = above[-1]
            if level.done == level.size:
                above.pop()
                continue
            name = self.next_name(level)
            level.done += 1
            if level.is_map and name == f"{level.name}/{_CHUNKED}":
                self.chunked(level)
                above.pop()
                continue
            value = self.values.next()
            if not isinstance(value, Map | Items):
                self.leaf(name, value, level)
                continue
            if len(above) >= _MAX_DEPTH:
                raise FormatError(f"it nests more than {_MAX_DEPTH} deep", fix=_NOT_TRUSTED)
            is_optimizer = name.rpartition("/")[2] in _OPTIMIZERS and not level.is_aside
            if is_optimizer:
                self.optimizers.add(name)
            is_aside = level.is_aside or is_optimizer
            above.append(_Level(name, value.count, isinstance(value, Map), is_aside))

    def next_name(self, level: _Level) -> str:
        """The name of the next value, by its key or its number in a list.

        What few bytes hold must become neither many values nor long names.
        """
        key = self.key(level) if level.is_map else str(level.done)
        self.read += 1
        self.named += len(level.name) + len(key)
        if self.read > _MOST_VALUES + _VALUES_PER_ARRAY * self.arrays:
            raise FormatError("it has far more values than arrays", fix=_NOT_TRUSTED)
        if self.named > _MOST_NAMED + _NAMED_PER_BYTE * self.values.taken:
            raise FormatError("its names take more than any checkpoint needs", fix=_NOT_TRUSTED)
        return f"{level.name}/{key}" if level.name else key

    def key(self, level: _Level) -> str:
        """The next key of a mapping, which must be new: a text, or a number as one."""
        key = self.values.next()
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise FormatError(f"a key in {printable(level.name) or 'it'} is not a text", fix=_NOT_TRUSTED)
        if (text := str(key)) in level.keys:
            raise FormatError(f"its key {printable(text)} is twice in a mapping", fix=GET_AGAIN)
        level.keys.add(text)
        return text

    def leaf(self, name: str, value: Token, level: _Level) -> None:
        """An array, or what is none."""
        if _is_array(value):
            made = self.array(name, value)
            if not level.is_aside:
                self.tensors.append(made)
            return
        if isinstance(value, Extended):
            self.values.go_past(value)
        if not level.is_aside:
            self.others.add(f"{name} ({_kind(value)})")

    def array(self, name: str, value: Extended) -> StoredTensor:
        """The array that an extension holds: its shape, the name of its dtype, its bytes in C order."""
        self.arrays += 1
        wrong = FormatError(f"its array {printable(name)} is not as flax writes one", fix=GET_AGAIN)
        values = self.values
        if values.next() != Items(3):
            raise wrong
        count = values.next()
        if not isinstance(count, Items) or count.count > MAX_RANK:
            raise wrong
        sizes: tuple[Any, ...] = tuple(values.next() for _ in range(count.count))
        kind, content = values.next(), values.next()
        if not isinstance(kind, str) or not isinstance(content, Raw) or content.is_text:
            raise wrong
        if not all(map(_is_size, sizes)) or values.at != value.data.end:
            raise wrong
        info, data = TensorInfo(name, _dtype(name, kind), sizes), content.data
        if info.nbytes != data.size:
            what = f"array {printable(name)} needs {info.nbytes} bytes and has {data.size}"
            raise FormatError(what, fix=GET_AGAIN)
        return StoredTensor(info, data, 0, contiguous_strides(sizes))

    # -- arrays in chunks

    def chunked(self, level: _Level) -> None:
        """An array that is cut into flat ones: ``{…: True, "shape": {"0": …}, "chunks": {"0": …}}``."""
        name = level.name
        wrong = FormatError(f"the chunks of {printable(name)} are not as flax writes them", fix=GET_AGAIN)
        if (level.done, level.size) != (1, 3) or self.values.next() is not True:
            raise wrong
        shape: list[Any] = list(self.numbered("shape", wrong))
        chunks = []
        for part in self.numbered("chunks", wrong):
            if not _is_array(part):
                raise wrong
            chunks.append(self.array(name, part))
        if len(shape) > MAX_RANK or not all(map(_is_size, shape)) or not chunks:
            raise wrong
        made = self.assembled(TensorInfo(name, chunks[0].info.dtype, tuple(shape)), chunks, wrong)
        if not level.is_aside:
            self.tensors.append(made)

    def numbered(self, part: str, wrong: FormatError) -> Iterator[Token]:
        """The values of a mapping whose keys count from 0, which stands under the key ``part``."""
        count = self.values.next() == part and self.values.next()
        if not isinstance(count, Map) or count.count > _MOST_CHUNKS:
            raise wrong
        for at in range(count.count):
            if self.values.next() != str(at):
                raise wrong
            yield self.values.next()

    def assembled(self, info: TensorInfo, chunks: list[StoredTensor], wrong: FormatError) -> StoredTensor:
        """The array that flat chunks are, end to end."""
        if any(chunk.info.dtype != info.dtype or len(chunk.info.shape) != 1 for chunk in chunks):
            raise wrong
        numel, parts = 0, []
        for chunk in chunks:
            parts.append(Chunk((numel,), chunk.info.shape, chunk.storage))
            numel += chunk.info.numel
        if numel != math.prod(info.shape):
            raise wrong
        self.views.append(Assembled((numel,), info.dtype.itemsize, tuple(parts)))
        data = ByteRange(0, info.nbytes, len(self.views))
        return StoredTensor(info, data, 0, contiguous_strides(info.shape))


def _dtype(name: str, kind: str) -> DType:
    found = _DTYPES.get(kind)
    if found is None:
        raise FormatError(
            f"array {printable(name)} is of {printable(kind)[:40]}, which is not known here",
            fix="leave it out, or write it as float32",
        )
    return found


def _is_array(value: Token) -> TypeGuard[Extended]:
    return isinstance(value, Extended) and value.code in _ARRAYS


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _kind(value: Token) -> str:
    if isinstance(value, Extended):
        return "a complex number" if value.code == _COMPLEX else "an extension"
    if isinstance(value, Raw):
        return "a long text" if value.is_text else "bytes"
    return "nothing" if value is None else type(value).__name__
