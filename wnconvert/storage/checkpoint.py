"""Checkpoints of every format, opened as a tree. No other module chooses the reader of a format."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from wnconvert.errors import FormatError, InputError
from wnconvert.frozen import dataclass
from wnconvert.messages import printable
from wnconvert.plan.names.trees import NewNames, renamed_tree
from wnconvert.plan.record.history import believable
from wnconvert.storage.files import Name, Seen, located, open_beside, open_file, reopened, seen_in, status_of
from wnconvert.storage.recognition import (
    HEAD,
    METADATA,
    check_not_part,
    container_in,
    is_distributed,
    is_index,
    unknown_file,
    zip_container,
)
from wnconvert.storage.stores.kept import KeptFiles
from wnconvert.storage.stores.store import PathKind
from wnconvert.tensors.containers import Container
from wnconvert.tensors.files import Identity, ReadableFile
from wnconvert.tensors.tree import Tree
from wnconvert.tensors.views.assembled import FileView

if TYPE_CHECKING:
    from wnconvert.formats.torch.reader import TorchFile
    from wnconvert.formats.zips import ZipEntry
    from wnconvert.onnx.file.reader import OnnxFile
    from wnconvert.storage.folder.weights import Folder

__all__ = [
    "Checkpoint",
    "no_graph",
    "open_checkpoint",
    "read_checkpoint",
]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: its tree of tensors, and the files in which their bytes lie (``shards``).

    ``views`` are tensors that are put together of parts of these. Of a pipeline ``components`` are its
    models, each by the path of its state dict in the tree. ``seen`` is what all its files were.
    """

    path: PurePath
    container: Container
    size: int
    tree: Tree
    shards: tuple[PurePath, ...]
    torch: TorchFile | None = None
    onnx: OnnxFile | None = None
    folder: Folder | None = None
    knows_modules: bool = False
    views: tuple[FileView, ...] = ()
    components: Mapping[str, Checkpoint] = field(default_factory=dict)
    seen: Seen = field(default_factory=dict, repr=False)

    @property
    def sources(self) -> tuple[PurePath | FileView, ...]:
        """The files and views in which the bytes of all tensors lie."""
        return (*self.shards, *self.views)

    def reopen(self, path: PurePath) -> ReadableFile:
        """Open one of its files again. Raises ``FormatError`` where it is not what was ``seen``."""
        return reopened(path, self.seen)

    @property
    def root(self) -> PurePath | None:
        """The folder that it is; None for a file."""
        return self.folder.root if self.folder else self.path if self.components else None

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of its files in its folder; none for a file."""
        if self.folder:
            return self.folder.files
        return tuple(str(path.relative_to(self.path)) for path in self.shards) if self.components else ()

    def with_tree(self, tree: Tree) -> Checkpoint:
        """The same files, read as another tree of tensors in them; what else a torch file holds is gone."""
        return replace(self, tree=tree, torch=None)

    def renamed(self, names: Mapping[str, NewNames]) -> Checkpoint:
        """The same checkpoint, whose state dicts have new names, by their paths."""
        return replace(
            self,
            tree=renamed_tree(self.tree, names),
            torch=self.torch.renamed(names) if self.torch else None,
            components={
                path: component.renamed({"": names[path]}) if path in names else component
                for path, component in self.components.items()
            },
        )


def no_graph(checkpoint: Checkpoint, what: str) -> Checkpoint:
    """The checkpoint itself, if it is not an ONNX model; else raise ``InputError``: it cannot be ``what``."""
    if checkpoint.onnx is None:
        return checkpoint
    raise InputError(
        f"an ONNX model cannot be {what}",
        where=os.fspath(checkpoint.path),
        fix="name the checkpoint that it was exported from; fold, inspect and check read ONNX models",
    )


def open_checkpoint(name: Name) -> Checkpoint:
    """Open a checkpoint by its name: a file, a folder with weights, or the index of such a folder.

    Only names, dtypes and shapes are read. Raises ``InputError`` for a file that cannot be opened or is not a
    checkpoint (the message says what it is), and ``FormatError`` for a checkpoint that is damaged.
    """
    path = located(name)
    with _naming_errors(path):
        return _doubted(_opened(path))


def _opened(path: PurePath) -> Checkpoint:
    if status_of(path).kind is PathKind.FOLDER:
        return _open_folder(path)
    check_not_part(path)
    with closing(open_file(path)) as file:
        if not is_index(_head_of(file), path.name):
            return _with_part_notes(read_checkpoint(file, path))
    return _open_folder(path.parent, path.name)


def _doubted(opened: Checkpoint) -> Checkpoint:
    """A checkpoint without a record that claims far more layers than there are tensors."""
    tree = opened.tree
    if believable(tree.record, {state.path: len(state.entries) for state in tree.state_dicts}):
        return opened
    note = "its wnconvert record has far more layers than it has tensors, and is left out"
    return replace(opened, tree=replace(tree, record=(), recorded_by=(), notes=(*tree.notes, note)))


def _with_part_notes(opened: Checkpoint) -> Checkpoint:
    path = opened.path
    if "-of-" in path.name:
        from wnconvert.storage.folder.weights import part_notes

        notes = (*opened.tree.notes, *part_notes(path))
        opened = replace(opened, tree=replace(opened.tree, notes=notes))
    return opened


@contextlib.contextmanager
def _naming_errors(path: PurePath) -> Iterator[None]:
    """Errors that are raised inside name this file, if they name none."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=os.fspath(path), fix="check the path") from error
    except OSError as error:
        raise InputError(f"it cannot be read ({error.strerror})", where=os.fspath(path)) from error
    except InputError as error:
        error.where = error.where or os.fspath(path)
        raise


def _open_file(path: PurePath) -> Checkpoint:
    with _naming_errors(path), closing(open_file(path)) as file:
        return read_checkpoint(file, path)


def read_checkpoint(file: ReadableFile, path: PurePath) -> Checkpoint:
    """Read an opened checkpoint of one file; data files lie beside its ``path``."""
    opened = _READERS[container_in(_head_of(file)) or Container.ONNX](file, path)
    return replace(opened, seen={**opened.seen, path: file.identity})


# -- the readers, each imported where it is needed: they are a tenth of the time of a small fold


def _read_safetensors(file: ReadableFile, path: PurePath) -> Checkpoint:
    from wnconvert.formats.safetensors import open_safetensors

    return Checkpoint(path, Container.SAFETENSORS, file.size, open_safetensors(file), (path,))


def _read_zip(file: ReadableFile, path: PurePath) -> Checkpoint:
    """Read a zip archive by the reader of the container that its members show."""
    from wnconvert.formats.zips import read_directory

    directory = read_directory(file)
    return _ZIP_READERS[zip_container(directory)](file, path, directory)


def _read_torch_zip(file: ReadableFile, path: PurePath, directory: Mapping[str, ZipEntry]) -> Checkpoint:
    from wnconvert.formats.torch.reader import open_zip

    return _of_torch(open_zip(file, directory), file, path)


def _read_exported(file: ReadableFile, path: PurePath, directory: Mapping[str, ZipEntry]) -> Checkpoint:
    from wnconvert.formats.exported import open_exported

    return Checkpoint(path, Container.EXPORTED, file.size, open_exported(file, directory), (path,))


def _read_torch_legacy(file: ReadableFile, path: PurePath) -> Checkpoint:
    from wnconvert.formats.torch.reader import open_legacy

    return _of_torch(open_legacy(file), file, path)


def _read_npz(file: ReadableFile, path: PurePath, directory: Mapping[str, ZipEntry]) -> Checkpoint:
    from wnconvert.formats.npz import open_npz

    return Checkpoint(path, Container.NPZ, file.size, open_npz(file, directory), (path,))


def _of_torch(opened: TorchFile, file: ReadableFile, path: PurePath) -> Checkpoint:
    tree = opened.tree()
    return Checkpoint(path, opened.container, file.size, tree, (path,), opened, views=opened.arrays.views)


def _read_flax(file: ReadableFile, path: PurePath) -> Checkpoint:
    from wnconvert.formats.flax import open_flax

    opened = open_flax(file)
    return Checkpoint(path, Container.FLAX, file.size, opened.tree, (path,), views=opened.views)


def _read_paddle(file: ReadableFile, path: PurePath) -> Checkpoint:
    from wnconvert.formats.paddle import open_paddle

    opened = open_paddle(file)
    return Checkpoint(path, Container.PADDLE, file.size, opened.tree, (path,), views=opened.views)


def _read_onnx(file: ReadableFile, path: PurePath) -> Checkpoint:
    from wnconvert.onnx.file.reader import looks_like_onnx, open_onnx

    if not looks_like_onnx(file):
        raise unknown_file(file, path.name)
    seen: dict[PurePath, Identity | None] = {}

    def opened_beside(location: str) -> ReadableFile:
        data = open_beside(path, location)
        seen.setdefault(path.parent / location, data.identity)
        return data

    opened = open_onnx(file, path, opened_beside)
    return Checkpoint(path, Container.ONNX, file.size, opened.tree(), opened.shards, onnx=opened, seen=seen)


# Of an opened file, and its name, to a checkpoint; ONNX files have no mark, so theirs refuses all else.
_READERS: dict[Container, Callable[[ReadableFile, PurePath], Checkpoint]] = {
    Container.SAFETENSORS: _read_safetensors,
    Container.TORCH_ZIP: _read_zip,
    Container.TORCH_LEGACY: _read_torch_legacy,
    Container.FLAX: _read_flax,
    Container.PADDLE: _read_paddle,
    Container.ONNX: _read_onnx,
}
# The same for zip archives, whose directory is read already.
_ZIP_READERS: dict[Container, Callable[[ReadableFile, PurePath, Mapping[str, ZipEntry]], Checkpoint]] = {
    Container.TORCH_ZIP: _read_torch_zip,
    Container.EXPORTED: _read_exported,
    Container.NPZ: _read_npz,
}


# -- folders


def _head_of(file: ReadableFile) -> bytes:
    return file.read(0, min(HEAD, file.size))


def _open_distributed(root: PurePath) -> Checkpoint:
    """Open a folder of torch.distributed.checkpoint; its weights are all of the files that it names."""
    from wnconvert.formats.distributed import open_distributed
    from wnconvert.storage.folder.weights import Folder
    from wnconvert.storage.shards import Naming

    def opened_beside(name: str) -> ReadableFile:
        try:
            return open_beside(root / METADATA, name)
        except FileNotFoundError as error:
            raise FormatError(
                f"its {METADATA} names {printable(name)}, which is not there",
                fix="copy the files of all ranks into one folder",
            ) from error

    with closing(KeptFiles(opened_beside)) as files:
        opened = open_distributed(files.file(METADATA), files.file)
        data = {name: files.file(name) for name in (METADATA, *opened.files)}
        size = sum(file.size for file in data.values())
        seen = {root / name: file.identity for name, file in data.items()}
    return Checkpoint(
        root,
        Container.DISTRIBUTED,
        size,
        opened.torch.tree(),
        tuple(root / name for name in opened.files),
        opened.torch,
        folder=Folder(root, Naming("model", "safetensors"), (METADATA, *opened.files)),
        views=opened.views,
        seen=seen,
    )


def _open_folder(root: PurePath, index: str = "") -> Checkpoint:
    """Open the weights of a folder, all of its files, as one checkpoint."""
    from wnconvert.storage.folder.components import find_components
    from wnconvert.storage.folder.links import entry_notes, is_entry, snapshot_in
    from wnconvert.storage.folder.weights import find_weights

    if is_entry(root):
        opened = _open_folder(snapshot_in(root))
        return replace(opened, tree=replace(opened.tree, notes=(*entry_notes(root), *opened.tree.notes)))
    if not index and is_distributed(root):
        return _open_distributed(root)
    if components := {} if index else find_components(root):
        return _open_pipeline(root, {name: _open_weights(folder) for name, folder in components.items()})
    return replace(_open_weights(find_weights(root, index)), path=root / index)


def _open_pipeline(root: PurePath, components: Mapping[str, Checkpoint]) -> Checkpoint:
    """The models of a pipeline as one checkpoint."""
    from wnconvert.storage.shards import joined

    firsts: dict[str, int] = {}
    shards: list[PurePath] = []
    for name, component in components.items():
        firsts[name] = len(shards)
        shards += component.shards
    containers = {component.container for component in components.values()}
    return Checkpoint(
        root,
        containers.pop() if len(containers) == 1 else Container.TORCH_ZIP,
        sum(component.size for component in components.values()),
        joined({name: component.tree for name, component in components.items()}, firsts),
        tuple(shards),
        components=components,
        seen=seen_in(component.seen for component in components.values()),
    )


def _open_weights(folder: Folder) -> Checkpoint:
    """Open the weights that were found in a folder."""
    from wnconvert.storage.folder.index import check_held
    from wnconvert.storage.shards import merged

    root = folder.root
    opened = {name: _open_file(root / name) for name in folder.files}
    if folder.is_lone:
        (alone,) = opened.values()
        return replace(alone, path=root, folder=folder)
    for name, checkpoint in opened.items():
        if PurePath(checkpoint.container.facts.hub_name).suffix != PurePath(name).suffix:
            raise FormatError(
                f"{name} is not what its name says: {checkpoint.container}",
                fix="name the file itself, and -o a file",
            )
        if checkpoint.views:
            raise FormatError(
                f"{name} holds NumPy arrays, which no loader of a folder expects",
                fix=f"name the file, {root / name}, and -o a file",
            )
    tree = merged({name: checkpoint.tree for name, checkpoint in opened.items()})
    if folder.index:
        check_held(
            folder.index,
            {
                name: [entry.name for state in checkpoint.tree.state_dicts for entry in state.entries]
                for name, checkpoint in opened.items()
            },
        )
    first = opened[folder.files[0]]
    return Checkpoint(
        root,
        first.container,
        sum(checkpoint.size for checkpoint in opened.values()),
        tree,
        tuple(root / name for name in folder.files),
        first.torch if len(opened) == 1 else None,
        folder=folder,
        knows_modules=any(item.torch is not None and item.torch.knows_modules for item in opened.values()),
        seen=seen_in((*(checkpoint.seen for checkpoint in opened.values()), folder.seen)),
    )
