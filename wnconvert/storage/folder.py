"""Folders as the Hugging Face hub lays them out: which files are the weights, and which lie beside them.

Nobody vouches for the content of a folder, so nothing in it may lead out of it. A link is followed where it
stays in the folder, and from a snapshot of the hub's own cache to that cache's blobs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import PurePath

from wnconvert.errors import FormatError, InputError
from wnconvert.messages import listed
from wnconvert.storage.files import kind_of, listing_of, open_file, real_of, status_of
from wnconvert.storage.index import ShardIndex, read_index
from wnconvert.storage.shards import Naming
from wnconvert.storage.stores.store import PathKind

__all__ = [
    "File",
    "Folder",
    "OtherFiles",
    "cache_of",
    "find_beside",
    "find_weights",
    "has_weights",
    "is_weights",
    "part_notes",
]


#: A folder's weights in one file, as transformers, diffusers and peft call it; a variant stands in between.
_SINGLE = re.compile(
    r"(?P<stem>model(?=.*\.safetensors$)|pytorch_model|diffusion_pytorch_model|adapter_model)"
    r"(?:\.(?P<variant>[\w-]+))?\.(?P<suffix>safetensors|bin)",
    re.ASCII,
)
_SHARD = re.compile(r".+-\d{5,}-of-\d{5,}\.(?:safetensors|bin)", re.ASCII)
_LOOKED_FOR = "model.safetensors, pytorch_model.bin, *.safetensors.index.json, *.bin.index.json"
_CHECKPOINT = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".onnx")

# An index of 100,000 tensors takes 12 MB.
MAX_INDEX = 32 << 20

#: These describe the folder as it was: version control, which holds all weights once more, and the notes of
#: the hub's client on its downloads.
_OWN = (".git", ".cache")

#: The modes that copies get of what has none, in a store that is not a disk.
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755


@dataclass(frozen=True, slots=True)
class Folder:
    """The weights of a folder: their files by name, in order, and the index if there are several.

    ``naming`` makes their names; ``others`` are further weights, which are not read. ``listing`` is the name
    of the index, if ``naming`` gives another one.
    """

    root: PurePath
    naming: Naming
    files: tuple[str, ...]
    index: ShardIndex | None = None
    others: tuple[str, ...] = ()
    listing: str = ""

    @property
    def weights(self) -> frozenset[str]:
        """The names of all files that hold weights, or list them."""
        return frozenset({*self.files, self.naming.index, self.listing, *self.others})


@dataclass(frozen=True, slots=True)
class File:
    """A file beside the weights: its path in the folder, its size, its mode."""

    path: str
    size: int
    mode: int


@dataclass(frozen=True, slots=True)
class OtherFiles:
    """Everything in a folder beside its weights: what is copied, and what is left out.

    ``folders`` (path and mode) come before what is in them; ``links`` are links to folders, each with
    the text that the new link gets.
    """

    files: tuple[File, ...] = ()
    folders: tuple[tuple[str, int], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()


def find_weights(root: PurePath, index: str = "") -> Folder:
    """The weights of a folder; ``index`` is the name of an index in it, where the user named one.

    Raises ``InputError`` where there are none, or several (the message names them), and ``FormatError`` for
    an index that makes no sense, or that names files that are missing or lie outside of the folder.
    """
    names = [name for name in listing_of(root) if kind_of(root / name) is not PathKind.FOLDER]
    found = list(_found(names))
    if index:
        chosen = (index, Naming.of_index(index))
    elif len(found) == 1:
        (chosen,) = found
    elif found:
        several = [name for name, _ in found]
        raise InputError(
            f"a folder that holds weights more than once: {listed(several)}",
            fix=f"name one of them: {root / several[0]}",
        )
    else:
        raise _no_weights(names)
    name, naming = chosen
    _check_inside(root, name)
    if kind_of(root / name) is not PathKind.FILE:  # a pipe would be waited for
        raise FormatError(f"{name} is not a regular file", fix="download it again")
    if not index and naming is not None and naming.index != name:
        folder = Folder(root, naming, (name,))
    else:
        with closing(open_file(root / name)) as file:
            text = file.read(0, min(file.size, MAX_INDEX + 1))
        if len(text) > MAX_INDEX:
            raise FormatError(f"the index {name} is longer than {MAX_INDEX >> 20} MiB", fix="do not trust it")
        read = read_index(text)
        stem = "model" if read.suffix == ".safetensors" else "pytorch_model"
        naming = naming or Naming(stem, read.suffix.removeprefix("."))
        folder = Folder(root, naming, read.files, read, listing=name)
    _check_files(folder, names)
    taken = {*folder.files, name}
    others = tuple(other for other in names if other not in taken and _is_weights(other, found))
    return replace(folder, others=others)


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
    names = listing_of(root)
    return any(_found(names)) or any(map(_SHARD.fullmatch, names))


def _found(names: Iterable[str]) -> Iterator[tuple[str, Naming]]:
    """The indices, and the files that hold all weights alone, each with its naming."""
    for name in names:
        naming, single = Naming.of_index(name), _SINGLE.fullmatch(name)
        if naming:
            yield name, naming
        elif single and not _SHARD.fullmatch(name):
            yield name, Naming(single["stem"], single["suffix"], single["variant"] or "")


def _is_weights(name: str, found: Iterable[tuple[str, Naming]]) -> bool:
    return any(name == other or naming.is_shard(name) for other, naming in found)


def _no_weights(names: list[str]) -> InputError:
    if shards := [name for name in names if _SHARD.fullmatch(name)]:
        return InputError(
            f"a folder with {listed(shards, 3)}, but without their index (*.index.json)",
            fix="download the index too: it says which tensor is in which file",
        )
    there = [name for name in names if name.endswith(_CHECKPOINT)]
    beside = f", but {listed(there, 3)}" if there else ""
    return InputError(f"a folder with none of {_LOOKED_FOR} in it{beside}", fix="name the file in it")


def _check_files(folder: Folder, names: list[str]) -> None:
    """Check that every file that is named lies in the folder, and that every shard in it is named."""
    for file in folder.files:
        _check_inside(folder.root, file)
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


# -- links


def _check_inside(root: PurePath, path: str, *, cached: bool = True) -> None:
    """Raise ``FormatError`` where a path in a folder leads out of it through links.

    A file (``cached``) may lie among the blobs of the hub's cache, where the folder is a snapshot.
    """
    real, inside = real_of(root / path), real_of(root)
    if real.is_relative_to(inside):
        return
    cache = cache_of(inside)
    if cached and cache is not None and real.is_relative_to(cache / "blobs"):
        return
    raise FormatError(
        f"{path} is a link that leaves the folder, to {real}",
        fix="put the file itself there, if you trust it",
    )


def cache_of(folder: PurePath) -> PurePath | None:
    """The entry of the hub's cache that a folder is a snapshot of, or lies in one; else None.

    >>> cache_of(PurePath("runs/snapshots/epoch_3")) is None  # runs/blobs is not there
    True
    """
    for at in (folder, *folder.parents):
        if at.parent.name == "snapshots" and kind_of(at.parent.parent / "blobs") is PathKind.FOLDER:
            return at.parent.parent
    return None


# -- the other files


def find_beside(folder: Folder) -> OtherFiles:
    """Everything in a folder, at any depth, beside its weights.

    Raises ``FormatError`` for links that leave the folder, and ``InputError`` for anything but files.
    """
    files: list[File] = []
    folders: list[tuple[str, int]] = []
    links: list[tuple[str, str]] = []
    there = listing_of(folder.root)
    own = [name for name in _OWN if name in there]
    for path in _below(folder.root, {*folder.weights, *_OWN}):
        if kind_of(folder.root / path) is not PathKind.FOLDER:
            files.append(_file(folder.root, path))
        elif _is_link(folder.root / path):
            _check_inside(folder.root, str(path), cached=False)
            links.append((str(path), _link_text(folder.root, path)))
        else:
            folders.append((str(path), status_of(folder.root / path).mode or _FOLDER_MODE))
    return OtherFiles(tuple(files), tuple(folders), tuple(links), (*sorted(folder.others), *own))


def _below(root: PurePath, without: Container[str]) -> Iterator[PurePath]:
    """The paths of all that lies in a folder, then in those in it; links to folders are not followed."""
    names = [name for name in listing_of(root) if name not in without]
    yield from map(PurePath, names)
    for name in names:
        if kind_of(root / name) is PathKind.FOLDER and not _is_link(root / name):
            yield from (PurePath(name) / path for path in _below(root / name, ()))


def _is_link(path: PurePath) -> bool:
    return real_of(path) != real_of(path.parent) / path.name


def _file(root: PurePath, path: PurePath) -> File:
    _check_inside(root, str(path))
    try:
        status = status_of(root / path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", fix="move it away") from error
    if status.kind is not PathKind.FILE:
        raise InputError(f"{path} is not a regular file, and cannot be copied", fix="move it away")
    return File(str(path), status.size, _FILE_MODE if status.mode is None else status.mode)


def _link_text(root: PurePath, link: PurePath) -> str:
    """The relative path that a link inside a folder gets, so that it holds wherever the folder lies."""
    return os.path.relpath(real_of(root / link), real_of((root / link).parent))
