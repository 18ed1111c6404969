"""Which tensors go into which shard, and what shards are called: numbers and names, no files.

The convention is that of ``huggingface_hub.split_state_dict_into_shards_factory``, but for one thing: a
tensor larger than a shard ends the shard before it, so the shards, one after another, have the tensors in
their order.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from wnconvert.errors import ArgumentError

__all__ = ["DEFAULT_SHARD_SIZE", "Naming", "Shard", "bytes_of", "into_shards"]

DEFAULT_SHARD_SIZE = "5GB"

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
# More digits are no size, and Python turns only so many into a number.
_SIZE = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)\s*(?:([KMGT])(I?)B?|B)?", re.ASCII | re.IGNORECASE)


def bytes_of(size: str | int) -> int:
    """The bytes that a size means: KB, MB, GB, TB are powers of 1000, KiB, MiB, … of 1024.

    Raises ``ArgumentError`` for what is no size, or less than a byte.

    >>> bytes_of("5GB"), bytes_of("1.5 MiB"), bytes_of("200"), bytes_of(200)
    (5000000000, 1572864, 200, 200)
    """
    found = _SIZE.fullmatch(str(size).strip())
    made = 0
    if found:
        number, unit, binary = found.groups()
        base = (1024 if binary else 1000) ** _UNITS[(unit or "").upper()]
        made = int(number) * base if number.isdigit() else int(float(number) * base)
    if made < 1:
        raise ArgumentError(f"{size!r} is no size of a shard", fix="--max-shard-size 5GB, 500MB, 2GiB, …")
    return made


@dataclass(frozen=True, slots=True)
class Shard:
    """The tensors of one shard, by name, in order, and the bytes that they take."""

    names: tuple[str, ...]
    size: int


def into_shards(items: Iterable[tuple[str, int, Hashable]], most: int) -> tuple[Shard, ...]:
    """Cut tensors, each a name, its bytes and what it lies in, into shards of at most ``most`` bytes.

    A tensor is never cut: one that is larger is a shard of its own. Tensors with an equal third item lie in
    one storage: they stand in one shard, behind the first of them, and their bytes count once. There is
    always a shard, if an empty one.

    >>> [shard.names for shard in into_shards([("a", 6, 0), ("b", 3, 1), ("c", 3, 2), ("d", 6, 0)], 9)]
    [('a', 'd', 'b'), ('c',)]
    """
    names: dict[Hashable, list[str]] = {}
    sizes: dict[Hashable, int] = {}
    for name, size, storage in items:
        names.setdefault(storage, []).append(name)
        sizes[storage] = max(sizes.get(storage, 0), size)
    shards: list[list[Hashable]] = [[]]
    taken = 0
    for storage, size in sizes.items():
        if shards[-1] and taken + size > most:
            shards.append([])
            taken = 0
        shards[-1].append(storage)
        taken += size
    return tuple(
        Shard(
            tuple(name for storage in shard for name in names[storage]),
            sum(sizes[storage] for storage in shard),
        )
        for shard in shards
    )


_INDEX = re.compile(
    r"(?P<stem>.+)\.(?P<suffix>safetensors|bin)\.index(?:\.(?P<variant>[\w-]+))?\.json", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Naming:
    """How the files of a folder are called: ``model.safetensors``, or its shards and their index.

    ``variant`` is what stands for half precision and the like (``fp16`` in ``model.fp16.safetensors``).
    """

    stem: str
    suffix: str
    variant: str = ""

    @property
    def index(self) -> str:
        """The name of the index.

        >>> Naming("model", "safetensors").index, Naming("model", "safetensors", "fp16").index
        ('model.safetensors.index.json', 'model.safetensors.index.fp16.json')
        """
        return f"{self.stem}.{self.suffix}.index{self._variant}.json"

    def shards(self, count: int) -> tuple[str, ...]:
        """The names of so many shards; one is the whole.

        >>> Naming("model", "safetensors").shards(1), Naming("pytorch_model", "bin").shards(2)[0]
        (('model.safetensors',), 'pytorch_model-00001-of-00002.bin')
        """
        stem = f"{self.stem}{self._variant}"
        if count == 1:
            return (f"{stem}.{self.suffix}",)
        return tuple(f"{stem}-{n:05}-of-{count:05}.{self.suffix}" for n in range(1, count + 1))

    def is_shard(self, name: str) -> bool:
        """Whether a file is called as a shard of these is, however many there are.

        >>> Naming("model", "bin").is_shard("model-00007-of-00009.bin"), Naming("x", "bin").is_shard("x.bin")
        (True, False)
        """
        pattern = rf"{re.escape(self.stem + self._variant)}-\d{{5,}}-of-\d{{5,}}\.{re.escape(self.suffix)}"
        return re.fullmatch(pattern, name, re.ASCII) is not None

    @property
    def _variant(self) -> str:
        return f".{self.variant}" if self.variant else ""

    @classmethod
    def of_index(cls, name: str) -> Naming | None:
        """What an index of such a name names; None for the name of another file.

        >>> Naming.of_index("model.safetensors.index.json"), Naming.of_index("config.json")
        (Naming(stem='model', suffix='safetensors', variant=''), None)
        """
        found = _INDEX.fullmatch(name)
        return cls(found["stem"], found["suffix"], found["variant"] or "") if found else None
