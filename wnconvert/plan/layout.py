"""The bytes of an output file before they exist: what stands where, and how each run is made.

The writers of containers make a :class:`Layout` from a plan; the executor fills it. Sizes are all known,
so headers are written first and the work of one blob never waits for that of another.

A new kind of work is a class here, and one function in ``verbs.conversion.executor`` that does it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from wnconvert.layers.rules import ORIGINAL, G, Guard, Norm, Rule
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import ByteRange, Dim, StoredTensor
from wnconvert.tensors.views.quantization import Elementwise, Quantization

__all__ = [
    "Blob",
    "Checked",
    "CopyBytes",
    "Directions",
    "Evaluate",
    "Filled",
    "FoldBias",
    "FoldLayer",
    "FoldThrough",
    "Gather",
    "Layout",
    "Norms",
    "Part",
    "Parts",
    "Requantized",
    "Work",
]


class Work(Protocol):
    """How a run of bytes is made, as frozen data: the tensors that are read, and what is computed of them.

    Two works are equal if they make the same bytes. ``where`` names the layer or tensor in messages and does
    not count.
    """

    def __hash__(self) -> int:
        """Equal for works that are equal."""

    @property
    def where(self) -> str:
        """The layer or tensor that is made."""

    @property
    def reads(self) -> Iterable[StoredTensor]:
        """The tensors that are read element by element."""

    def effort(self, size: int) -> int:
        """About the bytes that must be read or written to make ``size`` bytes, whichever are more."""


@dataclass(frozen=True, slots=True)
class CopyBytes:
    """The bytes of the source as they are."""

    source: ByteRange
    where: ClassVar[str] = ""

    @property
    def reads(self) -> Iterable[StoredTensor]:
        """The tensors that are read element by element."""
        return ()

    def effort(self, size: int) -> int:
        """Every byte is read and written once."""
        return size


@dataclass(frozen=True, slots=True)
class Gather:
    """The elements of ``tensor`` in C order, cast to ``dtype`` in one rounding where that differs."""

    tensor: StoredTensor
    dtype: DType
    where: str = field(default="", compare=False)

    @property
    def reads(self) -> Iterable[StoredTensor]:
        """The tensors that are read element by element."""
        return (self.tensor,)

    def effort(self, size: int) -> int:
        """About the bytes that are written."""
        return size


@dataclass(frozen=True, slots=True)
class FoldLayer:
    """The weight that ``rule`` computes of ``parts``, each a role and its tensor, in ``dtype``."""

    rule: Rule
    parts: tuple[tuple[str, StoredTensor], ...]
    dtype: DType
    where: str = field(default="", compare=False)

    @classmethod
    def of_pair(cls, g: StoredTensor, v: StoredTensor, dim: Dim, dtype: DType, where: str = "") -> FoldLayer:
        """w = g·v/‖v‖."""
        return cls(Rule((Norm(dim),)), ((ORIGINAL, v), (G, g)), dtype, where)

    @property
    def reads(self) -> Iterable[StoredTensor]:
        """The tensors that are read element by element."""
        return (tensor for _, tensor in self.parts)

    def effort(self, size: int) -> int:
        """About the bytes that are written."""
        return size


@dataclass(frozen=True, slots=True)
class _OfFolded:
    """Work that begins with a folded weight."""

    fold: FoldLayer

    @property
    def where(self) -> str:
        """The layer that is made."""
        return self.fold.where

    @property
    def rule(self) -> Rule:
        """How the weight is computed."""
        return self.fold.rule

    @property
    def parts(self) -> tuple[tuple[str, StoredTensor], ...]:
        """The tensors of that weight, by their roles."""
        return self.fold.parts

    def effort(self, size: int) -> int:
        """About the bytes that are read."""
        return max(size, dict(self.fold.parts)[ORIGINAL].info.nbytes)


@dataclass(frozen=True, slots=True)
class FoldThrough(_OfFolded):
    """What ``steps`` make of a folded weight, one after another, each rounded as the graph rounds it."""

    steps: tuple[Elementwise, ...]

    @property
    def dtype(self) -> DType:
        """The dtype of what the last step makes."""
        return self.steps[-1].dtype

    @property
    def reads(self) -> Iterable[StoredTensor]:
        """The tensors that are read element by element."""
        return (*self.fold.reads, *(tensor for step in self.steps for tensor in step.reads))


@dataclass(frozen=True, slots=True)
class Requantized(_OfFolded):
    """A folded weight as codes, by the scheme ``how`` of its original: these, their scale, or their zero.

    The scale and the zero of ``how`` are the original's, for their shapes: new ones are chosen by the weight.
    """

    how: Quantization
    part: Literal["codes", "scale", "zero"]

    @property
    def dtype(self) -> DType:
        """The dtype of what is made."""
        return self.how.scale.info.dtype if self.part == "scale" else self.how.dtype

    @property
    def reads(self) -> Iterable[StoredTensor]:
        """The tensors that are read element by element."""
        zero = () if self.how.zero is None else (self.how.zero,)
        return (*self.fold.reads, *zero)


@dataclass(frozen=True, slots=True)
class FoldBias:
    """The bias of a layer into which ``rule`` folds a norm, computed of ``parts``, in ``dtype``.

    ``batches`` counts those that the norm has seen, where it does.
    """

    rule: Rule
    parts: tuple[tuple[str, StoredTensor], ...]
    dtype: DType
    where: str = field(default="", compare=False)
    batches: StoredTensor | None = field(default=None, compare=False)

    @property
    def reads(self) -> Iterable[StoredTensor]:
        """The tensors that are read element by element."""
        counts = () if self.batches is None else (self.batches,)
        return (*(tensor for _, tensor in self.parts), *counts)

    def effort(self, size: int) -> int:
        """About the bytes that are written."""
        return size


@dataclass(frozen=True, slots=True)
class Evaluate:
    """A tensor that an ONNX ``model`` (its bytes) makes of ``parts``, each an input of it, in float64.

    It is rounded once, to ``dtype``. If all of its arithmetic are quotients and products, of which so many
    ``roundings`` round in float64, it is correctly rounded. ``rows`` are the parts that have an axis of rows,
    if each row of it is made of those: then it is made some rows at a time.
    """

    model: bytes = field(repr=False)
    parts: tuple[tuple[str, StoredTensor], ...]
    dtype: DType
    where: str = field(default="", compare=False)
    roundings: int | None = None
    rows: tuple[tuple[str, int], ...] = ()

    @property
    def reads(self) -> Iterable[StoredTensor]:
        """The tensors that are read element by element."""
        return (tensor for _, tensor in self.parts)

    def effort(self, size: int) -> int:
        """The bytes that are read or written, whichever are more."""
        return max(size, sum(tensor.info.nbytes for tensor in self.reads))


@dataclass(frozen=True, slots=True)
class Filled:
    """``size`` elements that are all ``value``, in ``dtype``.

    They stand in the place of ``instead``, which is not read: two that were apart stay apart, although they
    make the same bytes, since each is a parameter of its own.
    """

    value: float
    size: int
    dtype: DType
    instead: StoredTensor
    where: ClassVar[str] = ""

    @property
    def reads(self) -> Iterable[StoredTensor]:
        """The tensors that are read element by element."""
        return ()

    def effort(self, size: int) -> int:
        """The bytes that are written."""
        return size


@dataclass(frozen=True, slots=True)
class Norms:
    """g = ‖w‖ of each row, correctly rounded to ``dtype``; with a ``guard``, what a fold divides it by."""

    w: StoredTensor
    dim: int | None
    dtype: DType
    guard: Guard | None = None
    where: str = field(default="", compare=False)

    @property
    def reads(self) -> Iterable[StoredTensor]:
        """The tensors that are read element by element."""
        return (self.w,)

    def effort(self, size: int) -> int:
        """The bytes of w, which is read whole."""
        return max(size, self.w.info.nbytes)


@dataclass(frozen=True, slots=True)
class Directions:
    """v = w in its own dtype; zero rows become unit directions."""

    w: StoredTensor
    dim: int | None
    where: str = field(default="", compare=False)

    @property
    def reads(self) -> Iterable[StoredTensor]:
        """The tensors that are read element by element."""
        return (self.w,)

    def effort(self, size: int) -> int:
        """The bytes of w, which are those of v."""
        return size


@dataclass(frozen=True, slots=True)
class Part:
    """The ``size`` bytes of a work among other bytes; with ``as_text`` as the text of a pickle.

    Of such a text each byte is a character (latin-1). It is written in UTF-8, behind its opcode and its
    length, in at most ``most`` bytes.
    """

    work: Work
    size: int
    as_text: bool = False

    @property
    def most(self) -> int:
        """The bytes that it takes at most."""
        return 5 + 2 * self.size if self.as_text else self.size


@dataclass(frozen=True, slots=True)
class Parts:
    """Runs of bytes that are known, and works between them, one behind another; zeros up to the end.

    What stands in a pickle can only be written in order, since the texts in it are of any length.
    """

    parts: tuple[bytes | Part, ...]
    where: ClassVar[str] = ""

    @property
    def reads(self) -> Iterable[StoredTensor]:
        """The tensors that are read element by element."""
        return (tensor for work in _single(self) for tensor in work.reads)

    def effort(self, size: int) -> int:
        """The bytes that are written, and what the works read beyond theirs."""
        works = [part for part in self.parts if isinstance(part, Part)]
        return size + sum(part.work.effort(part.size) - part.size for part in works)


@dataclass(frozen=True, slots=True)
class Checked:
    """What lies before a blob, and where its CRC-32 goes: into ``head``, and into the ``tail`` of the layout.

    The last ``counted`` bytes of the head are counted in the CRC.
    """

    head: bytes
    in_head: int
    in_tail: int
    counted: int = 0


@dataclass(frozen=True, slots=True)
class Blob:
    """``size`` bytes at ``start`` of the output, behind the head of a ``checked`` one."""

    start: int
    size: int
    work: Work
    checked: Checked | None = None

    @property
    def effort(self) -> int:
        """About the bytes that must be read or written for it, whichever is more."""
        return self.work.effort(self.size)


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole output file: ``size`` bytes, made of literal ``pieces`` (offset, bytes) and ``blobs``.

    The ``tail`` is the last of it, with places for the checksums of blobs.
    """

    size: int
    pieces: tuple[tuple[int, bytes], ...]
    blobs: tuple[Blob, ...]
    tail: bytes = b""

    @property
    def reads(self) -> Iterable[tuple[str, StoredTensor]]:
        """The tensors that are read element by element, each with the layer or tensor that is made of it."""
        works = (work for blob in self.blobs for work in _single(blob.work))
        return ((work.where, tensor) for work in works for tensor in work.reads)


def _single(work: Work) -> Iterable[Work]:
    """A work, or the works of which it consists."""
    return (
        (part.work for part in work.parts if isinstance(part, Part)) if isinstance(work, Parts) else (work,)
    )
