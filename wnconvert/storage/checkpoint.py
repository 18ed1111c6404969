"""Checkpoints of every format: opened as a tree, and laid out as the target's container asks.

No other module chooses the reader or writer of a format.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from wnconvert.errors import FormatError, InputError
from wnconvert.plan.layout import Layout
from wnconvert.plan.plan import Plan
from wnconvert.storage.files import Name, located, open_beside, open_file, status_of
from wnconvert.storage.recognition import HEAD, container_in, is_index, unknown_file
from wnconvert.storage.stores.store import PathKind
from wnconvert.tensors.containers import Container
from wnconvert.tensors.files import ReadableFile
from wnconvert.tensors.tree import Tree

if TYPE_CHECKING:
    from wnconvert.formats.torch.reader import TorchFile
    from wnconvert.onnx.file.reader import OnnxFile
    from wnconvert.storage.folder import Folder

__all__ = ["Checkpoint", "container_of", "layout_of", "no_graph", "open_checkpoint", "read_checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: its tree of tensors, and the files in which their bytes lie (``shards``)."""

    path: PurePath
    container: Container
    size: int
    tree: Tree
    shards: tuple[PurePath, ...]
    torch: TorchFile | None = None
    onnx: OnnxFile | None = None
    folder: Folder | None = None
    knows_modules: bool = False


def container_of(path: PurePath) -> Container:
    """The container that a target's suffix asks for; torch's where it asks for none.

    >>> print(container_of(PurePath("model.safetensors")), container_of(PurePath("g_1.folded")), sep=", ")
    safetensors, torch zip
    """
    suffix = path.suffix.lower()
    return next((found for found in Container if suffix in found.facts.suffixes), Container.TORCH_ZIP)


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
        if status_of(path).kind is PathKind.FOLDER:
            return _open_folder(path)
        with closing(open_file(path)) as file:
            if not is_index(_head_of(file), path.name):
                return _with_part_notes(read_checkpoint(file, path))
        return _open_folder(path.parent, path.name)


def _with_part_notes(opened: Checkpoint) -> Checkpoint:
    path = opened.path
    if "-of-" in path.name:
        from wnconvert.storage.folder import part_notes

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
    return _READERS[container_in(_head_of(file)) or Container.ONNX](file, path)


def layout_of(checkpoint: Checkpoint, plan: Plan) -> Layout:
    """The bytes of the output that ``plan`` describes."""
    return _WRITERS[plan.container](checkpoint, plan)


# -- the readers and writers, each imported where it is needed: they are a tenth of the time of a small fold


def _read_safetensors(file: ReadableFile, path: PurePath) -> Checkpoint:
    from wnconvert.formats.safetensors import open_safetensors

    return Checkpoint(path, Container.SAFETENSORS, file.size, open_safetensors(file), (path,))


def _read_torch_zip(file: ReadableFile, path: PurePath) -> Checkpoint:
    from wnconvert.formats.torch.reader import open_zip

    return _of_torch(open_zip(file), file, path)


def _read_torch_legacy(file: ReadableFile, path: PurePath) -> Checkpoint:
    from wnconvert.formats.torch.reader import open_legacy

    return _of_torch(open_legacy(file), file, path)


def _read_npz(file: ReadableFile, path: PurePath) -> Checkpoint:
    from wnconvert.formats.npz import open_npz

    return Checkpoint(path, Container.NPZ, file.size, open_npz(file), (path,))


def _of_torch(opened: TorchFile, file: ReadableFile, path: PurePath) -> Checkpoint:
    return Checkpoint(path, opened.container, file.size, opened.tree(), (path,), opened)


def _read_onnx(file: ReadableFile, path: PurePath) -> Checkpoint:
    from wnconvert.onnx.file.reader import looks_like_onnx, open_onnx

    if not looks_like_onnx(file):
        raise unknown_file(_head_of(file))
    with contextlib.ExitStack() as stack:
        opened = open_onnx(
            file, path, lambda location: stack.enter_context(closing(open_beside(path, location)))
        )
    return Checkpoint(path, Container.ONNX, file.size, opened.tree(), opened.shards, onnx=opened)


def _write_safetensors(checkpoint: Checkpoint, plan: Plan) -> Layout:
    from wnconvert.formats.safetensors import safetensors_layout

    return safetensors_layout(checkpoint.tree, plan)


def _write_torch_zip(checkpoint: Checkpoint, plan: Plan) -> Layout:
    from wnconvert.formats.torch.writer import torch_layout

    return torch_layout(checkpoint.torch, checkpoint.tree, plan)


def _write_npz(checkpoint: Checkpoint, plan: Plan) -> Layout:
    from wnconvert.formats.npz import npz_layout

    return npz_layout(checkpoint.tree, plan)


# Of an opened file, and its name, to a checkpoint; ONNX files have no mark, so theirs refuses all else.
_READERS: dict[Container, Callable[[ReadableFile, PurePath], Checkpoint]] = {
    Container.SAFETENSORS: _read_safetensors,
    Container.TORCH_ZIP: _read_torch_zip,
    Container.TORCH_LEGACY: _read_torch_legacy,
    Container.NPZ: _read_npz,
    Container.ONNX: _read_onnx,
}
# What is written is of one container of each family; an ONNX model is edited (`verbs/conversion/onnx`).
_WRITERS: dict[Container, Callable[[Checkpoint, Plan], Layout]] = {
    Container.SAFETENSORS: _write_safetensors,
    Container.TORCH_ZIP: _write_torch_zip,
    Container.NPZ: _write_npz,
}


# -- folders


def _head_of(file: ReadableFile) -> bytes:
    return file.read(0, min(HEAD, file.size))


def _open_folder(root: PurePath, index: str = "") -> Checkpoint:
    """Open the weights of a folder, all of its files, as one checkpoint."""
    from wnconvert.storage.folder import find_weights
    from wnconvert.storage.index import check_held
    from wnconvert.storage.shards import merged

    folder = find_weights(root, index)
    opened = {name: _open_file(root / name) for name in folder.files}
    for name, checkpoint in opened.items():
        if PurePath(checkpoint.container.facts.hub_name).suffix != PurePath(name).suffix:
            raise FormatError(
                f"{name} is not what its name says: {checkpoint.container}",
                fix="name the file itself, and -o a file",
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
        root / index,
        first.container,
        sum(checkpoint.size for checkpoint in opened.values()),
        tree,
        tuple(root / name for name in folder.files),
        first.torch if len(opened) == 1 else None,
        folder=folder,
        knows_modules=any(item.torch is not None and item.torch.knows_modules for item in opened.values()),
    )
