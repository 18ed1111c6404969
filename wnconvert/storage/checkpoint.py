"""Checkpoints of every format: told apart by content, opened as a tree, written by the target's container.

The only module that knows which formats there are.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wnconvert.errors import FormatError, InputError
from wnconvert.formats.safetensors import open_safetensors, safetensors_layout
from wnconvert.plan.layout import Layout
from wnconvert.plan.plan import Plan
from wnconvert.storage.files import open_beside, open_file
from wnconvert.tensors.files import ReadableFile
from wnconvert.tensors.tree import Tree

if TYPE_CHECKING:
    from wnconvert.formats.torch.reader import TorchFile
    from wnconvert.onnx.file.reader import OnnxFile
    from wnconvert.storage.folder import Folder

__all__ = ["Checkpoint", "container_of", "layout_of", "no_graph", "open_checkpoint", "read_checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: what it holds, and the files in which the bytes lie (``shards``).

    ``container`` names the format: ``safetensors``, ``torch zip``, ``torch legacy``, ``TorchScript``,
    ``ONNX``.
    """

    path: Path
    container: str
    size: int
    tree: Tree
    shards: tuple[Path, ...]
    torch: TorchFile | None = None
    onnx: OnnxFile | None = None
    folder: Folder | None = None
    knows_modules: bool = False


def container_of(path: Path) -> str:
    """The container that a target's suffix asks for: ``safetensors``, ``onnx``, else ``torch``.

    >>> container_of(Path("model.safetensors")), container_of(Path("g_02500000.folded"))
    ('safetensors', 'torch')
    """
    return {".safetensors": "safetensors", ".onnx": "onnx"}.get(path.suffix.lower(), "torch")


def no_graph(checkpoint: Checkpoint, what: str) -> Checkpoint:
    """A checkpoint, which is no ONNX model. Raises ``InputError`` that says ``what`` it cannot be."""
    if checkpoint.onnx is None:
        return checkpoint
    raise InputError(
        f"an ONNX model cannot be {what}",
        where=os.fspath(checkpoint.path),
        fix="name the checkpoint that it was exported from; fold, inspect and check read ONNX models",
    )


def layout_of(checkpoint: Checkpoint, plan: Plan) -> Layout:
    """The bytes of the output that ``plan`` describes."""
    if plan.container == "safetensors":
        return safetensors_layout(checkpoint.tree, plan)
    from wnconvert.formats.torch.writer import torch_layout

    return torch_layout(checkpoint.torch, checkpoint.tree, plan)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint: a file, a folder with weights, or the index of such; one file is one shard.

    Only names, dtypes and shapes are read. Raises ``InputError`` for what cannot be opened or is no
    checkpoint (and says what it is) and ``FormatError`` for a checkpoint that is damaged.
    """
    with _said_of(path):
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return _open_folder(path)
        if stat.S_ISREG(status.st_mode):
            with closing(open_file(path)) as file:
                if not _is_index(_head_of(file), path.name):
                    return _with_part_notes(read_checkpoint(file, path))
            return _open_folder(path.parent, path.name)
        return _open_file(path)


def _with_part_notes(opened: Checkpoint) -> Checkpoint:
    path = opened.path
    if "-of-" in path.name:
        from wnconvert.storage.folder import part_notes

        notes = (*opened.tree.notes, *part_notes(path))
        opened = replace(opened, tree=replace(opened.tree, notes=notes))
    return opened


@contextlib.contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """What is raised inside says of which file it is."""
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
    with _said_of(path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError("not a regular file", fix="save it to a file first")
        with closing(open_file(path)) as file:
            return read_checkpoint(file, path)


def read_checkpoint(file: ReadableFile, path: Path) -> Checkpoint:
    """Read an opened checkpoint, one file, that is called ``path``; data files are looked for beside that."""
    size, head = file.size, _head_of(file)
    if head[8:9] == b"{" and b"\0" in head[:8]:  # else the length of its header is a text itself
        return Checkpoint(path, "safetensors", size, open_safetensors(file), (path,))
    # Six modules, a tenth of the time of a small fold.
    from wnconvert.formats.torch.reader import open_legacy, open_zip
    from wnconvert.formats.zips import MARKS

    if head[2:4] == b"\x03\x04" and head[:2] in {b"PK", *MARKS}:
        opened = open_zip(file)
    elif any(magic in head[:32] for magic in _LEGACY_MAGIC):
        opened = open_legacy(file)
    else:
        return _read_onnx(file, path, size, head)
    return Checkpoint(path, opened.container, size, opened.tree(), (path,), opened)


def _read_onnx(file: ReadableFile, path: Path, size: int, head: bytes) -> Checkpoint:
    from wnconvert.onnx.file.reader import looks_like_onnx, open_onnx

    if not looks_like_onnx(file):
        raise _unknown(head)
    with contextlib.ExitStack() as stack:
        opened = open_onnx(
            file, path, lambda location: stack.enter_context(closing(open_beside(path, location)))
        )
    return Checkpoint(path, "ONNX", size, opened.tree(), opened.shards, onnx=opened)


def _head_of(file: ReadableFile) -> bytes:
    return file.read(0, min(_HEAD, file.size))


def _is_index(head: bytes, name: str) -> bool:
    """Whether a file is the index of several: by its content, or by a name that nothing else has."""
    if b'"weight_map"' in head and head.lstrip()[:1] == b"{":
        return True
    return name.endswith(".json") and ".index." in name


def _open_folder(root: Path, index: str = "") -> Checkpoint:
    """Open the weights of a folder, all of its files, as one checkpoint."""
    from wnconvert.storage.folder import find_weights
    from wnconvert.storage.index import check_held
    from wnconvert.storage.shards import merged

    folder = find_weights(root, index)
    opened = {name: _open_file(root / name) for name in folder.files}
    for name, checkpoint in opened.items():
        of_torch = checkpoint.torch is not None and checkpoint.container != "TorchScript"
        if not (of_torch if name.endswith(".bin") else checkpoint.container == "safetensors"):
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


_HEAD = 512

# The pickled magic number of torch's legacy format: LONG1 of ten bytes, or its digits (protocols 0 and 1).
_LEGACY_MAGIC = (b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", b"L119547037146038801333356L")

# What else is found under a checkpoint's name: where and how it begins, what it is, and what to do.
_AGAIN = "download the file itself"
_OTHERS = (
    (0, b"version https://git-lfs", "a Git-LFS pointer, not the file itself", "git lfs pull"),
    (257, b"ustar", "a tar archive", "unpack it, and name the checkpoint in it"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (0, b"Rar!", "a RAR archive", "unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
    (0, b"PK\x05\x06", "an empty zip archive", _AGAIN),
    (0, b"\x89HDF", "an HDF5 file (Keras, TensorFlow)", "wnconvert reads PyTorch checkpoints"),
    (0, b"GGUF", "a GGUF file", "convert the PyTorch checkpoint that it was made of"),
    (4, b"ORTM", "a model in onnxruntime's own format", "name the .onnx file that it was made of"),
    (4, b"TFL3", "a TensorFlow Lite model", "wnconvert reads PyTorch checkpoints and ONNX models"),
    (0, b"\x93NUMPY", "a NumPy array", "wnconvert reads PyTorch checkpoints"),
    *((0, b"\x80%c" % version, "a plain pickle", "save it with torch.save") for version in range(6)),
)
# The same for texts, which may begin with white space, in any case.
_TEXTS = (
    ((b"<!doctype html", b"<html", b"<head", b"<?xml"), "a web page (HTML), not a checkpoint", _AGAIN),
    ((b"{", b"["), "a JSON text, not a checkpoint", "name the checkpoint that lies beside it"),
)


def _unknown(head: bytes) -> InputError:
    text = head.lstrip().lower()
    what, fix = (
        "no checkpoint of a known format",
        "wnconvert reads safetensors, ONNX and what torch.save wrote",
    )
    if not head:
        what, fix = "an empty file", _AGAIN
    for at, magic, name, remedy in _OTHERS:
        if head[at : at + len(magic)] == magic:
            what, fix = name, remedy
    for begins, name, remedy in _TEXTS:
        if text.startswith(begins):
            what, fix = name, remedy
    return InputError(what, fix=fix)
