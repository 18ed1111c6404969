"""Names, dtypes and shapes of tensors, and where their bytes lie.

The whole package shares these types: readers make them, rules and plans work on them, the executor
follows them to the bytes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property
from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.tensors.dtypes import DTYPES, DType

__all__ = [
    "MAX_RANK",
    "ByteRange",
    "Entry",
    "Sibling",
    "StateDict",
    "StoredTensor",
    "TensorInfo",
    "Tree",
    "contiguous_strides",
    "parametrized_in",
    "repeated",
    "rows_of",
]

#: The most axes that a tensor has: no more are in torch, nor in NumPy.
MAX_RANK = 64

Dim = int | None
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's name, dtype and shape: all that naming rules and plans look at."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take when they lie end to end."""
        return (self.numel * self.dtype.bits + 7) // 8


@dataclass(frozen=True, slots=True)
class ByteRange:
    """``size`` bytes from ``start`` of file number ``shard`` of a checkpoint (one file is shard 0)."""

    start: int
    size: int
    shard: int = 0

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a view of a storage: ``shape`` and ``strides`` from element ``offset`` of ``storage``.

    Two names on one storage share memory; two names with equal views are tied. ``location`` is the
    device that the file names (``cpu``, ``cuda:1``).
    """

    info: TensorInfo
    storage: ByteRange
    offset: int
    strides: tuple[int, ...]
    location: str = "cpu"

    @property
    def view(self) -> tuple[object, ...]:
        """Equal for two tensors exactly where they are the same elements of the same storage."""
        return (self.storage, self.info.dtype, self.offset, self.info.shape, self.strides)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie end to end in C order (``torch.Tensor.is_contiguous``)."""
        if self.info.numel == 0:
            return True
        step = 1
        for size, stride in zip(reversed(self.info.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True

    @property
    def data(self) -> ByteRange:
        """The bytes of a contiguous tensor."""
        start = self.storage.start + self.offset * self.info.dtype.itemsize
        return ByteRange(start, self.info.nbytes, self.storage.shard)

    def shaped(self, shape: Shape) -> StoredTensor:
        """The same elements in another shape; in both at most one axis is longer than 1."""
        step = next(
            (stride for size, stride in zip(self.info.shape, self.strides, strict=True) if size > 1), 1
        )
        strides = tuple(step * stride for stride in contiguous_strides(shape))
        return replace(self, info=replace(self.info, shape=shape), strides=strides)

    def transposed(self, axes: Sequence[int], backwards: Collection[int] = ()) -> StoredTensor:
        """The same elements with axis ``axes[i]`` as axis i, where those that are ``backwards`` run so.

        >>> from wnconvert.tensors.dtypes import dtype_named
        >>> info = TensorInfo("w", dtype_named("float32"), (3, 2))
        >>> made = StoredTensor(info, ByteRange(0, 24), 0, (2, 1)).transposed((1, 0), {1})
        >>> made.info.shape, made.offset, made.strides
        ((2, 3), 4, (1, -2))
        """
        shape = tuple(self.info.shape[axis] for axis in axes)
        strides = [self.strides[axis] for axis in axes]
        offset = self.offset
        for axis in backwards if self.info.numel else ():
            offset += (shape[axis] - 1) * strides[axis]
            strides[axis] = -strides[axis]
        info = replace(self.info, shape=shape)
        return replace(self, info=info, offset=offset, strides=tuple(strides))

    def in_bytes(self) -> StoredTensor:
        """Elements of 4 or 6 bits as the bytes in which they lie end to end; any other tensor as it is."""
        if self.info.dtype.bits % 8 == 0:
            return self
        info = TensorInfo(self.info.name, DTYPES["uint8"], (self.info.nbytes,))
        return StoredTensor(info, self.data, 0, (1,), self.location)


def repeated(names: Iterable[str]) -> str | None:
    """The first of some names that is there again, or None.

    >>> repeated(["a", "b", "c", "b", "a"])
    'a'
    """
    return next((name for name, count in Counter(names).items() if count > 1), None)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a C-contiguous tensor, as torch gives them.

    >>> contiguous_strides((2, 3, 4))
    (12, 4, 1)
    """
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a state dict; ``tensor`` is None for a value that is not a plain tensor.

    ``is_opaque`` marks tensors of other kinds: quantized, sparse, on the meta device.
    """

    name: str
    tensor: StoredTensor | None
    is_opaque: bool = False


@dataclass(frozen=True)  # without slots, for what is computed once
class StateDict:
    """A mapping of names to tensors inside a file, at a path such as ``generator`` (the root is ``""``).

    ``dims`` holds, by weight, the dim that a pickled module's own ``WeightNorm`` records state;
    ``is_module`` marks a whole pickled module, which stays one in a torch file. ``buffers`` are the names
    that a module states to be buffers. ``modules`` are the names of all modules in their order, those without
    tensors too, where they are named beside the tensors, as in torch's ``_metadata``; else there are none.
    """

    path: str
    entries: tuple[Entry, ...]
    dims: Mapping[str, int | None] = field(default_factory=dict)
    is_module: bool = False
    buffers: frozenset[str] = frozenset()
    modules: tuple[str, ...] = ()

    @cached_property
    def parametrized(self) -> Mapping[str, tuple[str, ...]]:
        """By weight, the numbers of its parametrizations: those without tensors show in ``modules`` alone."""
        return parametrized_in(self.modules)

    @property
    def shown(self) -> str:
        """The path as people type and read it: ``.`` is the root."""
        return self.path or "."

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The tensors by name."""
        return {entry.name: entry.tensor for entry in self.entries if entry.tensor is not None}


@dataclass(frozen=True, slots=True)
class Sibling:
    """Anything else in a file: its path, its kind in a word or two, and the foreign classes that it names."""

    path: str
    kind: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)  # without slots, for what is computed once
class Tree:
    """The contents of a checkpoint: names, dtypes and shapes.

    ``metadata`` is safetensors' own; ``record`` was left in the file by earlier runs of wnconvert, the last
    of them of the version ``recorded_by`` (of several files, of these versions); ``notes`` are the reader's.
    """

    state_dicts: tuple[StateDict, ...]
    optimizers: tuple[str, ...] = ()
    siblings: tuple[Sibling, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    record: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    recorded_by: tuple[str, ...] = ()

    def state_dict(self, path: str) -> StateDict:
        """The state dict at a path. Raises ``KeyError`` where there is none."""
        return self._by_path[path]

    @cached_property
    def _by_path(self) -> Mapping[str, StateDict]:
        return {state.path: state for state in reversed(self.state_dicts)}  # the first of one path

    @cached_property
    def tensors(self) -> Mapping[str, Mapping[str, StoredTensor]]:
        """The tensors of every state dict by name, by the paths of these."""
        return {state.path: state.tensors for state in self.state_dicts}


_PARAMETRIZATION = re.compile(
    r"(?P<owner>(?:.*\.)?)parametrizations\.(?P<param>[^.]+)\.(?P<number>\d+)", re.DOTALL
)


def parametrized_in(modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """By weight, the numbers of its parametrizations among the names of modules, in their order.

    >>> parametrized_in(["", "conv", "conv.parametrizations.weight", "conv.parametrizations.weight.0"])
    {'conv.weight': ('0',)}
    """
    found: dict[str, tuple[str, ...]] = {}
    for match in filter(None, map(_PARAMETRIZATION.fullmatch, modules)):
        weight = match["owner"] + match["param"]
        found[weight] = (*found.get(weight, ()), match["number"])
    return found


def rows_of(shape: Shape, dim: Dim) -> int:
    """Number of norms, that is of elements of g: the size of axis ``dim``, or 1 for the whole tensor.

    >>> rows_of((512, 80, 7), 0), rows_of((512, 80, 7), None)
    (512, 1)
    """
    return 1 if dim is None else shape[dim]
