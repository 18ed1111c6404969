"""Folders as the Hugging Face hub lays them out: which files are the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import field, replace
from pathlib import PurePath

from wnconvert.errors import FormatError, InputError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed
from wnconvert.storage.files import Seen, kind_of, listing_of, open_file
from wnconvert.storage.folder.index import ShardIndex, read_index
from wnconvert.storage.folder.links import check_inside
from wnconvert.storage.folder.unnamed import checkpoints_in, no_weights
from wnconvert.storage.shards import Naming
from wnconvert.storage.stores.store import PathKind
from wnconvert.tensors.limits import INDEX, megabytes

__all__ = [
    "Folder",
    "find_all_weights",
    "find_weights",
    "has_weights",
    "is_weights",
    "named_as_weights",
    "part_notes",
]


#: A folder's weights in one file, as transformers, diffusers and peft call it; a variant stands in between.
_SINGLE = re.compile(
    r"(?P<stem>model(?=.*\.safetensors$)|pytorch_model|diffusion_pytorch_model|adapter_model)"
    r"(?:\.(?P<variant>[\w-]+))?\.(?P<suffix>safetensors|bin)",
    re.ASCII,
)
_SHARD = re.compile(r".+-\d{5,}-of-\d{5,}\.(?:safetensors|bin)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Folder:
    """The weights of a folder: their files by name, in order, and the index if there are several.

    ``naming`` makes their names; ``others`` are further weights, which are not read. ``listing`` is the name
    of the index, if ``naming`` gives another one. ``is_lone`` marks the only checkpoint of a folder, called
    as its owner likes: it may hold several state dicts, and keeps its name. ``seen`` is the index as it was.
    """

    root: PurePath
    naming: Naming
    files: tuple[str, ...]
    index: ShardIndex | None = None
    others: tuple[str, ...] = ()
    listing: str = ""
    is_lone: bool = False
    seen: Seen = field(default_factory=dict, repr=False)

    @property
    def read(self) -> frozenset[str]:
        """The names of the files that are read: those that hold its weights, and their index."""
        return frozenset({*self.files, self.naming.index, self.listing})

    @property
    def weights(self) -> frozenset[str]:
        """The names of all files that hold weights, or list them."""
        return self.read.union(self.others)


def find_weights(root: PurePath, index: str = "") -> Folder:
    """The weights of a folder; ``index`` is the name of an index in it, where the user named one.

    Where nothing is called as the hub calls weights, the only checkpoint in it.

    Raises ``InputError`` where there are none, or several (the message names them), and ``FormatError`` for
    an index that makes no sense, or that names files that are missing or lie outside of the folder.
    """
    names = _names_in(root)
    if index:
        return _weights(root, names, index, Naming.of_index(index), is_index=True)
    found = _found(names)
    if len(found) > 1:
        several = list(found)
        raise InputError(
            f"a folder that holds weights more than once: {listed(several)}",
            fix=f"name one of them: {root / several[0]}",
        )
    if not found:
        return _only_checkpoint(root, names)
    ((name, naming),) = found.items()
    return _weights(root, names, name, naming, is_index=naming.index == name)


def find_all_weights(root: PurePath) -> list[Folder]:
    """The weights of a folder, as often as it holds them: in variants, or in two formats.

    Raises as ``find_weights`` does, but for a folder with none.
    """
    names = _names_in(root)
    return [
        _weights(root, names, name, naming, is_index=naming.index == name)
        for name, naming in _found(names).items()
    ]


def _names_in(root: PurePath) -> list[str]:
    return [name for name in listing_of(root) if kind_of(root / name) is not PathKind.FOLDER]


def _weights(root: PurePath, names: list[str], name: str, naming: Naming | None, *, is_index: bool) -> Folder:
    """The weights that one of the ``names`` in a folder is, or lists."""
    check_inside(root, name)
    if kind_of(root / name) is not PathKind.FILE:  # a pipe would be waited for
        raise FormatError(f"{name} is not a regular file", fix="download it again")
    if naming is not None and not is_index:
        folder = Folder(root, naming, (name,))
    else:
        with closing(open_file(root / name)) as file:
            text, seen = file.read(0, min(file.size, INDEX + 1)), {root / name: file.identity}
        if len(text) > INDEX:
            raise FormatError(f"the index {name} is longer than {megabytes(INDEX)}", fix="do not trust it")
        read = read_index(text)
        stem = "model" if read.suffix == ".safetensors" else "pytorch_model"
        naming = naming or Naming(stem, read.suffix.removeprefix("."))
        folder = Folder(root, naming, read.files, read, listing=name, seen=seen)
    _check_files(folder, names)
    taken = {*folder.files, name}
    found = _found(names)
    others = tuple(other for other in names if other not in taken and _is_weights(other, found))
    return replace(folder, others=others)


def _only_checkpoint(root: PurePath, names: list[str]) -> Folder:
    """The only checkpoint of a folder in which nothing is called as weights."""
    if shards := [name for name in names if _SHARD.fullmatch(name)]:
        raise InputError(
            f"a folder with {listed(shards, 3)}, but without their index (*.index.json)",
            fix="download the index too: it says which tensor is in which file",
        )
    there = checkpoints_in(root, names)
    if len(there) != 1:
        raise no_weights(root, names, there, has_weights)
    (name,) = there
    check_inside(root, name)
    return Folder(root, Naming(name, ""), (name,), is_lone=True)


def is_weights(name: str) -> bool:
    """Whether a file of that name holds all weights of a folder, without an index.

    >>> is_weights("model.safetensors"), is_weights("generator.safetensors")
    (True, False)
    """
    return _SINGLE.fullmatch(name) is not None


def part_notes(path: PurePath) -> tuple[str, ...]:
    """A note on a file of weights that is one of several, beside their index."""
    if not _SHARD.fullmatch(path.name):
        return ()
    if not any(name.endswith(".index.json") for name in listing_of(path.parent)):
        return ()
    return (f"it is one of the files of a checkpoint, and layers may lie across them: name {path.parent}",)


def has_weights(root: PurePath) -> bool:
    """Whether a folder holds weights, or an index of weights."""
    return named_as_weights(listing_of(root))


def named_as_weights(names: Iterable[str]) -> bool:
    """Whether some of the names in a folder are those of weights, or of an index of weights.

    >>> named_as_weights(["config.json", "model.safetensors"]), named_as_weights(["generator.pt"])
    (True, False)
    """
    several = [*names]
    return bool(_found(several)) or any(map(_SHARD.fullmatch, several))


def _found(names: Iterable[str]) -> dict[str, Naming]:
    """The indices, and the files that hold all weights alone, each with its naming."""
    found: dict[str, Naming] = {}
    for name in names:
        naming, single = Naming.of_index(name), _SINGLE.fullmatch(name)
        if naming:
            found[name] = naming
        elif single and not _SHARD.fullmatch(name):
            found[name] = Naming(single["stem"], single["suffix"], single["variant"] or "")
    return found


def _is_weights(name: str, found: Mapping[str, Naming]) -> bool:
    return name in found or any(naming.is_shard(name) for naming in found.values())


def _check_files(folder: Folder, names: list[str]) -> None:
    """Check that every file that is named lies in the folder, and that every shard in it is named."""
    for file in folder.files:
        check_inside(folder.root, file)
        if kind_of(folder.root / file) is None:
            raise FormatError(
                f"the index names {file}, which is not there", fix="download the files that are missing"
            )
    for name in names:
        if folder.naming.is_shard(name) and name not in folder.files:
            what = "the index does not name" if folder.index else f"is not part of {folder.files[0]}"
            raise FormatError(
                f"{name} lies there too, which {what}", fix="it is left from another download: move it away"
            )
