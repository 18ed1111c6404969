"""Where a conversion writes: a file or a folder, named by the user or after the source."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from wnconvert.errors import ArgumentError, OutputError
from wnconvert.messages import listed
from wnconvert.plan.plan import LeftOut, Plan
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.files import located, output_path, real_of
from wnconvert.storage.folder import OtherFiles, cache_of, find_beside, has_weights, is_weights
from wnconvert.storage.shards import Naming, bytes_of, sharded
from wnconvert.tensors.containers import Container

__all__ = [
    "FolderTarget",
    "StrPath",
    "check_apart",
    "default_output",
    "has_suffix",
    "is_folder_target",
]


StrPath: TypeAlias = str | os.PathLike[str]

# Longest first: x.pth.tar has the suffix .pth.tar, not .tar.
_SUFFIXES = tuple(
    sorted((suffix for container in Container for suffix in container.facts.suffixes), key=len, reverse=True)
)


def default_output(source: StrPath, kind: str) -> Path:
    """The default output: beside the source, with ``.folded`` before the known suffix.

    ``kind`` is ``"folded"``, ``"split"``, or the form to which a file is migrated. A folder, or its index,
    becomes a folder beside it. Raises ``ArgumentError`` for a source in the hub's cache, where nothing may be
    written.

    >>> default_output("x.pth.tar", "folded").name, default_output("g_02500000", "legacy").name
    ('x.folded.pth.tar', 'g_02500000.legacy')
    >>> default_output("hub/model.safetensors.index.json", "folded").name
    'hub.folded'
    """
    path = located(source)
    if not isinstance(path, Path):
        path = Path(path.name)  # from another store into the folder that one is in
    is_index = path.name.endswith(".json")  # no checkpoint is called so
    is_folder = is_index or path.is_dir()
    if cache_of(Path(os.path.realpath(path if path.is_dir() else path.parent))) is not None:
        raise ArgumentError(
            "it lies in the cache of the hub, which is not written to",
            where=str(path),
            fix="-o FOLDER" if is_folder else "-o FILE",
        )
    if is_folder:
        return _beside_folder(path.parent if is_index else path, kind)
    if not path.name:
        return path  # "/" has no name to change, and is not a checkpoint either
    for suffix in _SUFFIXES:
        stem = path.name.removesuffix(suffix)
        if stem != path.name and stem:
            return path.with_name(f"{stem}.{kind}{suffix}")
    return path.with_name(f"{path.name}.{kind}")


def _beside_folder(folder: Path, kind: str) -> Path:
    if folder.name in ("", ".."):
        folder = Path(os.path.realpath(folder))
    return folder.with_name(f"{folder.name}.{kind}") if folder.name else folder


def has_suffix(name: str) -> bool:
    """Whether a file has a checkpoint's suffix.

    >>> has_suffix("x.pt"), has_suffix("model-v1.5")
    (True, False)
    """
    return name.lower().endswith(_SUFFIXES)


def is_folder_target(out: StrPath, *, from_folder: bool) -> bool:
    """Whether a conversion to ``out`` makes a folder.

    True if ``out`` ends in a slash or is a folder; for a folder as source, also if ``out`` has no checkpoint
    suffix.
    """
    text = os.fspath(out)
    if text.endswith(os.sep) or output_path(text).is_dir():
        return True
    return from_folder and not has_suffix(text)


@dataclass(frozen=True, slots=True)
class FolderTarget:
    """A folder to be written: its path, its container, and the files that are copied with it.

    A folder of torch's ``.bin`` files stays one; any other source becomes safetensors.
    """

    path: Path
    container: Container
    naming: Naming
    beside: OtherFiles
    most: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, path: Path, max_shard_size: str | int) -> FolderTarget:
        """The target of a conversion of ``checkpoint``.

        Raises ``InputError`` for a file in the source's folder that cannot be copied.
        """
        most = bytes_of(max_shard_size)
        folder = checkpoint.folder
        if folder is None:
            container = Container.SAFETENSORS
            return cls(path, container, Naming.of_hub(container), OtherFiles(), most)
        container = Container.of_hub(folder.naming.suffix)
        naming = folder.naming
        if not is_weights(naming.shards(1)[0]):  # nobody would find it where there is but one
            naming = Naming.of_hub(container)
        return cls(path, container, naming, find_beside(folder), most)

    def planned(self, plan: Plan, checkpoint: Checkpoint) -> Plan:
        """The plan with its shards, what is copied, and what is left out of the source's folder.

        Raises ``OutputError`` if a file that is copied has the name of one that is written.
        """
        made = sharded(plan, checkpoint.tree, self.naming, self.most)
        copied = tuple(file.path for file in self.beside.files)
        written = {shard.name for shard in made.shards} | {made.index}
        taken = sorted(written & {*copied, *(path for path, _ in (*self.beside.folders, *self.beside.links))})
        if taken:
            raise OutputError(f"{listed(taken)} would be written, and lies in the folder", fix="move it away")
        left = [LeftOut(path, _why(path)) for path in self.beside.left_out]
        if made.index and checkpoint.knows_modules and made.container.facts.holds_trees:
            left.append(LeftOut("_metadata", "torch's versions of modules have no place in several files"))
        return replace(made, copied=copied, dropped=(*made.dropped, *left))

    def check(self, checkpoint: Checkpoint, like: StrPath | None = None) -> None:
        """Raise ``OutputError`` if the source would be lost, or a folder without a model replaced.

        ``like`` is a reference that was read too.
        """
        check_apart(checkpoint, self.path)
        for what, path in (
            ("--like", like),
            ("the folder that you are in", os.curdir),
            ("your home", os.environ.get("HOME")),
        ):
            if path is not None and _lies_in(path, self.path):
                raise OutputError(
                    f"{what} lies in it, and it would be replaced whole", fix="choose another -o"
                )
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not has_weights(self.path):
            raise OutputError(
                "it is a folder without weights in it, and would be replaced whole",
                fix=f"-o {self.path / 'NAME'} for a new folder in it; or move it away",
            )
        if (self.path / ".git").exists():
            raise OutputError("it is a git repository, and would be replaced whole", fix="choose another -o")


def check_apart(checkpoint: Checkpoint, output: Path) -> None:
    """Raise ``OutputError`` if the output lies in the source's folder, or the source in the output."""
    source = real_of(checkpoint.folder.root if checkpoint.folder else checkpoint.path)
    real = real_of(output)
    if real == source:
        raise OutputError("it is the source itself", fix="choose another -o, and move it over afterwards")
    if real.is_relative_to(source):
        raise OutputError("it lies in the source", fix="choose an -o beside it")
    if source.is_relative_to(real):
        raise OutputError("the source lies in it", fix="choose an -o beside it")


def _lies_in(path: StrPath, folder: Path) -> bool:
    try:
        return real_of(located(path)).is_relative_to(real_of(folder))
    except FileNotFoundError:  # the folder that one is in was deleted
        return False


def _why(path: str) -> str:
    if path.startswith("."):
        return "it describes the folder as it was"
    return "other weights, which were not read"
