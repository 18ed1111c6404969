"""Which tensors go into which shard; several files as one tree, and one plan as several.

The convention is that of ``huggingface_hub.split_state_dict_into_shards_factory``, but for one thing: a
tensor larger than a shard ends the shard before it, so the shards, one after another, have the tensors in
their order.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from wnconvert.errors import ArgumentError, FormatError
from wnconvert.frozen import dataclass
from wnconvert.plan.plan import Plan, PlannedShard
from wnconvert.plan.steps import MadeTensor
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Entry, StateDict, Tree

__all__ = [
    "DEFAULT_SHARD_SIZE",
    "Naming",
    "Shard",
    "bytes_of",
    "index_metadata",
    "into_shards",
    "joined",
    "merged",
    "parts_of",
    "plain_state_dict",
    "sharded",
    "total_size",
]


DEFAULT_SHARD_SIZE = "5GB"

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
# No size has more digits, and Python refuses to read numbers with very many.
_SIZE = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)\s*(?:([KMGT])(I?)B?|B)?", re.ASCII | re.IGNORECASE)


def bytes_of(size: str | int) -> int:
    """The bytes that a size means: KB, MB, GB, TB are powers of 1000, KiB, MiB, … of 1024.

    Raises ``ArgumentError`` for a text that is not a size, and for less than a byte.

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
        raise ArgumentError(f"{size!r} is not a size for a shard", fix="--max-shard-size 5GB, 500MB, 2GiB, …")
    return made


@dataclass(frozen=True, slots=True)
class Shard:
    """The tensors of one shard, by name, in order, and the bytes that they take."""

    names: tuple[str, ...]
    size: int


def into_shards(items: Iterable[tuple[str, int, Hashable]], most: int) -> tuple[Shard, ...]:
    """Cut tensors, each a name, its bytes and its storage, into shards of at most ``most`` bytes.

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

    ``variant`` stands for half precision and the like (``fp16`` in ``model.fp16.safetensors``).
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
    def of_hub(cls, container: Container) -> Naming:
        """The naming that the hub uses for files of that container.

        >>> Naming.of_hub(Container.TORCH_ZIP).shards(1)
        ('pytorch_model.bin',)
        """
        stem, _, suffix = container.facts.hub_name.partition(".")
        return cls(stem, suffix)

    @classmethod
    def of_index(cls, name: str) -> Naming | None:
        """The naming of the files of an index, by its name; None for the name of any other file.

        >>> Naming.of_index("model.safetensors.index.json"), Naming.of_index("config.json")
        (Naming(stem='model', suffix='safetensors', variant=''), None)
        """
        found = _INDEX.fullmatch(name)
        return cls(found["stem"], found["suffix"], found["variant"] or "") if found else None


def merged(trees: Mapping[str, Tree]) -> Tree:
    """The trees of shards, by the names of their files, as one; a byte range's ``shard`` is its place here.

    Keys stand as they stand in the files, one file after another, so shards and the one file that they
    were made of give the same plan. The record of wnconvert's changes is that of the first shard that
    has one (it is written into the first), and those of others after it.

    Raises ``FormatError`` where a file holds more than a plain state dict, or their metadata differ.
    """
    states = [plain_state_dict(name, tree) for name, tree in trees.items()]
    entries = (_moved(entry, shard) for shard, state in enumerate(states) for entry in state.entries)
    return Tree(
        state_dicts=(StateDict("", tuple(entries), modules=_modules(states)),),
        metadata=_metadata(trees),
        record=tuple(chain.from_iterable(tree.record for tree in trees.values())),
        notes=_once(tree.notes for tree in trees.values()),
        recorded_by=_once(tree.recorded_by for tree in trees.values()),
    )


def _once(texts: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """All texts, each once, in their order."""
    return tuple(dict.fromkeys(chain.from_iterable(texts)))


def joined(trees: Mapping[str, Tree], firsts: Mapping[str, int]) -> Tree:
    """The trees of several models as one: the state dict of each stands at its name.

    ``firsts`` are the numbers of their first files among all. Raises ``FormatError`` where one of them holds
    more than a plain state dict.
    """
    states = {name: plain_state_dict(name, tree) for name, tree in trees.items()}
    return Tree(
        state_dicts=tuple(
            StateDict(
                name,
                tuple(_moved(entry, firsts[name]) for entry in state.entries),
                modules=state.modules,
            )
            for name, state in states.items()
        ),
        record=tuple(
            {**step, "state_dicts": {name: step["state_dicts"][""]}}
            for name, tree in trees.items()
            for step in tree.record
            if "" in step["state_dicts"]
        ),
        notes=tuple(f"{name}: {note}" for name, tree in trees.items() for note in tree.notes),
        recorded_by=_once(tree.recorded_by for tree in trees.values()),
    )


def plain_state_dict(name: str, tree: Tree) -> StateDict:
    """The only state dict of a file of weights. Raises ``FormatError`` where the file holds anything else."""
    more = [path for path in (*tree.optimizers, *(item.path for item in tree.siblings)) if path]
    more += [state.path for state in tree.state_dicts if state.path]
    states = [state for state in tree.state_dicts if not state.path] or [StateDict("", ())]
    more += [entry.name for entry in states[0].entries if entry.tensor is None]
    if more or states[0].is_module:
        what = f"it has {more[0]}" if more else "it is a pickled module"
        raise FormatError(
            f"{name} is not a plain state dict, as the weights of a folder must be: {what}",
            fix=f"name the file, {name}, and -o a file",
        )
    return states[0]


def _modules(states: Iterable[StateDict]) -> tuple[str, ...]:
    """The modules that the files name; each of them may name all."""
    return tuple(dict.fromkeys(chain.from_iterable(state.modules for state in states)))


def _moved(entry: Entry, by: int) -> Entry:
    """An entry whose tensor lies so many files farther behind."""
    tensor = entry.tensor
    assert tensor is not None  # noqa: S101 - of a plain state dict
    storage = replace(tensor.storage, shard=tensor.storage.shard + by)
    return replace(entry, tensor=replace(tensor, storage=storage))


def _metadata(trees: Mapping[str, Tree]) -> Mapping[str, str]:
    """The metadata of all files: a key that several have must have the same value in all."""
    made: dict[str, str] = {}
    said_by: dict[str, str] = {}
    for file, tree in trees.items():
        for key, value in tree.metadata.items():
            if made.setdefault(key, value) != value:
                raise FormatError(
                    f"{said_by[key]} and {file} differ in the metadata {key!r}: "
                    f"{made[key]!r:.80}, {value!r:.80}",
                    fix="download them again: they do not belong together",
                )
            said_by.setdefault(key, file)
    return made


def sharded(plan: Plan, tree: Tree, naming: Naming, most: int) -> Plan:
    """The plan with its tensors in shards of at most ``most`` bytes, called as ``naming`` says.

    The plan has one state dict. Where a file can share memory, names that are the same elements lie in one
    storage: they stay in one shard, and count once.
    """
    shards = into_shards(
        ((item.info.name, item.info.nbytes, _storage(item, plan.container)) for item in _made(plan, tree)),
        most,
    )
    names = naming.shards(len(shards))
    planned = (PlannedShard(name, shard.names, shard.size) for name, shard in zip(names, shards, strict=True))
    return replace(plan, shards=tuple(planned), index=naming.index if len(names) > 1 else "")


def parts_of(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """The name and the plan of each shard, in order; the first keeps the record of the changes."""
    (planned,) = plan.state_dicts
    steps = {step.name: step for step in planned.tensors}
    record = plan.record
    for shard in plan.shards:
        own = replace(planned, steps=tuple(steps[name] for name in shard.tensors))
        yield shard.name, replace(plan, state_dicts=(own,), record=record, shards=(), index="", copied=())
        record = ()


def total_size(plan: Plan) -> int:
    """The bytes of all tensors, as an index has it."""
    return sum(shard.size for shard in plan.shards)


def index_metadata(plan: Plan, tree: Tree, before: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of an index, ``before`` without the entries that were only true of the source.

    ``total_parameters``, which transformers writes, moves by the elements that came or went.
    """
    metadata = {key: value for key, value in before.items() if key != "total_size"}
    count = metadata.get("total_parameters")
    if isinstance(count, int):
        (planned,) = plan.state_dicts
        now = sum(item.info.numel for item in _made(plan, tree))
        metadata["total_parameters"] = (
            count + now - sum(t.info.numel for t in tree.state_dict(planned.path).tensors.values())
        )
    return metadata


def _made(plan: Plan, tree: Tree) -> list[MadeTensor]:
    (planned,) = plan.state_dicts
    tensors = tree.state_dict(planned.path).tensors
    return [step.made_of(tensors) for step in planned.tensors]


def _storage(item: MadeTensor, container: Container) -> Hashable:
    """Equal for two tensors that a file of that container has in one storage."""
    return item.work if container.facts.shares_memory else item.info.name
