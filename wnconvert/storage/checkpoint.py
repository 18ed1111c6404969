"""Checkpoints of every format: opened as a tree, and laid out as the target's container asks.

No other module chooses the reader or writer of a format.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wnconvert.errors import FormatError, InputError
from wnconvert.plan.layout import Layout
from wnconvert.plan.plan import Plan
from wnconvert.storage.files import open_beside, open_file
from wnconvert.storage.recognition import HEAD, container_in, is_index, unknown_file
from wnconvert.tensors.containers import Container
from wnconvert.tensors.files import ReadableFile
from wnconvert.tensors.tree import Tree

if TYPE_CHECKING:
    from wnconvert.formats.torch.reader import TorchFile
    from wnconvert.onnx.file.reader import OnnxFile
    from wnconvert.storage.folder.weights import Folder

__all__ = ["Checkpoint", "container_of", "layout_of", "no_graph", "open_checkpoint", "read_checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: its tree of tensors, and the files in which their bytes lie (``shards``).

    Of a pipeline ``components`` are its models, each by the path of its state dict in the tree.
    """

    path: Path
    container: Container
    size: int
    tree: Tree
    shards: tuple[Path, ...]
    torch: TorchFile | None = None
    onnx: OnnxFile | None = None
    folder: Folder | None = None
    knows_modules: bool = False
    components: Mapping[str, Checkpoint] = field(default_factory=dict)

    @property
    def root(self) -> Path | None:
        """The folder that it is; None for a file."""
        return self.folder.root if self.folder else self.path if self.components else None

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of its files in its folder; none for a file."""
        root = self.root
        return () if root is None else tuple(str(path.relative_to(root)) for path in self.shards)


def container_of(path: Path) -> Container:
    """The container that a target's suffix asks for: safetensors, ONNX, else torch's.

    >>> print(container_of(Path("model.safetensors")), container_of(Path("g_02500000.folded")), sep=", ")
    safetensors, torch zip
    """
    suffixes = {".safetensors": Container.SAFETENSORS, ".onnx": Container.ONNX}
    return suffixes.get(path.suffix.lower(), Container.TORCH_ZIP)


def no_graph(checkpoint: Checkpoint, what: str) -> Checkpoint:
    """The checkpoint itself, if it is not an ONNX model; else raise ``InputError``: it cannot be ``what``."""
    if checkpoint.onnx is None:
        return checkpoint
    raise InputError(
        f"an ONNX model cannot be {what}",
        where=os.fspath(checkpoint.path),
        fix="name the checkpoint that it was exported from; fold, inspect and check read ONNX models",
    )


def layout_of(checkpoint: Checkpoint, plan: Plan) -> Layout:
    """The bytes of the output that ``plan`` describes."""
    if plan.container is Container.SAFETENSORS:
        from wnconvert.formats.safetensors import safetensors_layout

        return safetensors_layout(checkpoint.tree, plan)
    from wnconvert.formats.torch.writer import torch_layout

    return torch_layout(checkpoint.torch, checkpoint.tree, plan)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint: a file, a folder with weights, or the index of such a folder.

    Only names, dtypes and shapes are read. Raises ``InputError`` for a file that cannot be opened or is not a
    checkpoint (the message says what it is), and ``FormatError`` for a checkpoint that is damaged.
    """
    with _naming_errors(path):
        if stat.S_ISDIR(path.stat().st_mode):
            return _open_folder(path)
        with closing(open_file(path)) as file:
            if not is_index(_head_of(file), path.name):
                return _with_part_notes(read_checkpoint(file, path))
        return _open_folder(path.parent, path.name)


def _with_part_notes(opened: Checkpoint) -> Checkpoint:
    path = opened.path
    if "-of-" in path.name:
        from wnconvert.storage.folder.weights import part_notes

        notes = (*opened.tree.notes, *part_notes(path))
        opened = replace(opened, tree=replace(opened.tree, notes=notes))
    return opened


@contextlib.contextmanager
def _naming_errors(path: Path) -> Iterator[None]:
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


def _open_file(path: Path) -> Checkpoint:
    with _naming_errors(path), closing(open_file(path)) as file:
        return read_checkpoint(file, path)


def read_checkpoint(file: ReadableFile, path: Path) -> Checkpoint:
    """Read an opened checkpoint of one file; ``path`` is its name, and data files lie beside it."""
    container = container_in(_head_of(file))
    if container is None:
        return _read_onnx(file, path)
    if container is Container.SAFETENSORS:
        from wnconvert.formats.safetensors import open_safetensors

        return Checkpoint(path, container, file.size, open_safetensors(file), (path,))
    # Six modules, a tenth of the time of a small fold.
    from wnconvert.formats.torch.reader import open_legacy, open_zip

    opened = open_zip(file) if container is Container.TORCH_ZIP else open_legacy(file)
    return Checkpoint(path, opened.container, file.size, opened.tree(), (path,), opened)


def _read_onnx(file: ReadableFile, path: Path) -> Checkpoint:
    from wnconvert.onnx.file.reader import looks_like_onnx, open_onnx

    if not looks_like_onnx(file):
        raise unknown_file(_head_of(file))
    with contextlib.ExitStack() as stack:
        opened = open_onnx(
            file, path, lambda location: stack.enter_context(closing(open_beside(path, location)))
        )
    return Checkpoint(path, Container.ONNX, file.size, opened.tree(), opened.shards, onnx=opened)


def _head_of(file: ReadableFile) -> bytes:
    return file.read(0, min(HEAD, file.size))


def _open_folder(root: Path, index: str = "") -> Checkpoint:
    """Open the weights of a folder, all of its files, as one checkpoint."""
    from wnconvert.storage.folder.components import find_components
    from wnconvert.storage.folder.links import entry_notes, is_entry, snapshot_in
    from wnconvert.storage.folder.weights import find_weights

    if is_entry(root):
        opened = _open_folder(snapshot_in(root))
        return replace(opened, tree=replace(opened.tree, notes=(*entry_notes(root), *opened.tree.notes)))
    components = {} if index else find_components(root)
    if components:
        return _open_pipeline(root, {name: _open_weights(folder) for name, folder in components.items()})
    return replace(_open_weights(find_weights(root, index)), path=root / index)


def _open_pipeline(root: Path, components: Mapping[str, Checkpoint]) -> Checkpoint:
    """The models of a pipeline as one checkpoint."""
    from wnconvert.storage.shards import joined

    firsts: dict[str, int] = {}
    shards: list[Path] = []
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
    )


def _open_weights(folder: Folder) -> Checkpoint:
    """Open the weights that were found in a folder."""
    from wnconvert.storage.index import check_held
    from wnconvert.storage.shards import merged

    root = folder.root
    opened = {name: _open_file(root / name) for name in folder.files}
    if folder.is_lone:
        (alone,) = opened.values()
        return replace(alone, path=root, folder=folder)
    for name, checkpoint in opened.items():
        of_torch = checkpoint.container in (Container.TORCH_ZIP, Container.TORCH_LEGACY)
        if not (of_torch if name.endswith(".bin") else checkpoint.container is Container.SAFETENSORS):
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
        root,
        first.container,
        sum(checkpoint.size for checkpoint in opened.values()),
        tree,
        tuple(root / name for name in folder.files),
        first.torch if len(opened) == 1 else None,
        folder=folder,
        knows_modules=any(item.torch is not None and item.torch.knows_modules for item in opened.values()),
    )
