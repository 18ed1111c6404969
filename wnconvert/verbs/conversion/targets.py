"""Where a conversion writes: a file or a folder, named by the user or after the source."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from wnconvert.errors import ArgumentError, OutputError
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.folder.links import cache_of

__all__ = [
    "StrPath",
    "Target",
    "check_apart",
    "check_not_read",
    "default_output",
    "has_suffix",
    "same_file",
    "target_of",
]


StrPath: TypeAlias = str | os.PathLike[str]

_OR_IN_PLACE = "choose another -o; --in-place replaces the source"

# Longest first: x.pth.tar has the suffix .pth.tar, not .tar.
_SUFFIXES = (
    ".pth.tar",
    ".pt.tar",
    ".ckpt.tar",
    ".safetensors",
    ".onnx",
    ".ckpt",
    ".pth",
    ".bin",
    ".pt",
    ".th",
    ".pkl",
    ".tar",
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a conversion writes: a path, and whether that becomes a folder in the layout of the hub."""

    path: Path
    is_folder: bool


def target_of(
    source: StrPath, out: StrPath | None, kind: str, *, as_folder: bool = False, in_place: bool = False
) -> Target:
    """The target of a conversion of ``source``, by the user's ``out`` or by default; no checkpoint is opened.

    A folder becomes a folder, unless ``out`` has a checkpoint's suffix. A file becomes a file, and goes into
    ``out`` where that is a folder, as ``cp`` has it; with ``as_folder`` it becomes a folder. ``kind`` is as
    for ``default_output``. Raises ``ArgumentError`` for options that contradict each other, ``OutputError``
    for a folder that is not there.
    """
    path = Path(source)
    from_folder = _is_folder(path)
    if in_place:
        return Target(_in_place(path, out, as_folder=as_folder), from_folder)
    if out is None:
        return Target(default_output(path, kind, as_folder=as_folder), from_folder or as_folder)
    text = os.fspath(out)
    if not text:
        raise ArgumentError("the name of the output is empty", fix="-o OUT, or leave it out")
    into = text.endswith(os.sep) or Path(out).is_dir()
    if from_folder or as_folder:
        return Target(Path(out), as_folder or into or not has_suffix(text))
    if not into:
        return Target(Path(out), is_folder=False)
    if not Path(out).is_dir():
        there = "it is not a folder" if Path(out).exists() else "there is no such folder"
        raise OutputError(
            there,
            where=text,
            fix=f"mkdir -p {out}; --as-folder makes a folder of the file, as the hub has it",
        )
    return Target(Path(out) / _named(path, kind).name, is_folder=False)


def default_output(source: StrPath, kind: str, *, as_folder: bool = False) -> Path:
    """The default output: beside the source, with ``.folded`` before the known suffix.

    ``kind`` is ``"folded"``, ``"split"``, or the form to which a file is migrated. A folder, or its index,
    becomes a folder beside it, and so does a file ``as_folder``. Raises ``ArgumentError`` for a source in the
    hub's cache, where nothing may be written.

    >>> default_output("x.pth.tar", "folded").name, default_output("g_02500000", "legacy").name
    ('x.folded.pth.tar', 'g_02500000.legacy')
    >>> default_output("hub/model.safetensors.index.json", "folded").name
    'hub.folded'
    >>> default_output("x.pth.tar", "folded", as_folder=True).name
    'x.folded'
    """
    path = Path(source)
    from_folder = _is_folder(path)
    if cache_of(_real_folder(path)) is not None:
        raise ArgumentError(
            "it lies in the cache of the hub, which is not written to",
            where=str(path),
            fix="-o FOLDER" if from_folder or as_folder else "-o FILE",
        )
    if from_folder:
        return _beside_folder(_folder_of(path), kind)
    return path.with_name(f"{_stem(path)}.{kind}") if as_folder else _named(path, kind)


def _is_folder(path: Path) -> bool:
    return path.name.endswith(".json") or path.is_dir()  # an index: no checkpoint is called so


def _folder_of(path: Path) -> Path:
    """The folder that a folder's name, or that of its index, means."""
    return path.parent if path.name.endswith(".json") and not path.is_dir() else path


def _real_folder(path: Path) -> Path:
    return Path(os.path.realpath(path if path.is_dir() else path.parent))


def _stem(path: Path) -> str:
    """The name of a checkpoint without its known suffix."""
    stems = (path.name.removesuffix(suffix) for suffix in _SUFFIXES)
    return next((stem for stem in stems if stem and stem != path.name), path.name)


def _named(path: Path, kind: str) -> Path:
    """The name of what a file becomes, beside it."""
    if not path.name:
        return path  # "/" has no name to change, and is not a checkpoint either
    stem = _stem(path)
    return path.with_name(f"{stem}.{kind}{path.name[len(stem) :]}")


def _beside_folder(folder: Path, kind: str) -> Path:
    if folder.name in ("", ".."):
        folder = Path(os.path.realpath(folder))
    return folder.with_name(f"{folder.name}.{kind}") if folder.name else folder


def _in_place(source: Path, out: StrPath | None, *, as_folder: bool) -> Path:
    """The source itself. Raises ``ArgumentError`` where it may not be written to, or ``out`` is another."""
    place = _folder_of(source)
    if out is not None and not same_file(out, place):
        raise ArgumentError(
            f"--in-place writes to {place}, and -o names {out}", fix="leave one of the two out"
        )
    if as_folder and not place.is_dir():
        raise ArgumentError(
            "--in-place keeps a file, and --as-folder makes a folder of it", fix="leave one of the two out"
        )
    if _is_cached(source):
        raise ArgumentError(
            "it lies in the cache of the hub, which is not written to",
            where=str(source),
            fix="-o OUT in place of --in-place",
        )
    return place


def _is_cached(source: Path) -> bool:
    """Whether a file lies in the hub's cache, or is a link to one of its blobs."""
    real = Path(os.path.realpath(source))
    blob = real.parent.name == "blobs" and (real.parent.parent / "snapshots").is_dir()
    return blob or cache_of(_real_folder(source)) is not None


def has_suffix(name: str) -> bool:
    """Whether a file has a checkpoint's suffix.

    >>> has_suffix("x.pt"), has_suffix("model-v1.5")
    (True, False)
    """
    return name.lower().endswith(_SUFFIXES)


def same_file(one: StrPath, other: StrPath) -> bool:
    """Whether two names are one file or folder: through links, and where capitals do not count.

    >>> same_file("wnconvert/../wnconvert", "wnconvert/"), same_file("wnconvert", "not there")
    (True, False)
    """
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def check_not_read(checkpoint: Checkpoint, output: Path, like: StrPath | None) -> None:
    """Raise ``OutputError`` if a file would be written over the source, its data, or ``--like``."""
    if same_file(output, checkpoint.path):
        raise OutputError("it is the source itself", fix=_OR_IN_PLACE)
    if any(same_file(output, path) for path in checkpoint.shards):
        raise OutputError("the source keeps its data there", fix="choose another -o")
    references = () if like is None else Path(like).iterdir() if Path(like).is_dir() else (Path(like),)
    if any(same_file(output, path) for path in references):
        raise OutputError("--like reads it", fix="choose another -o")


def check_apart(checkpoint: Checkpoint, output: Path) -> None:
    """Raise ``OutputError`` if the output lies in the source's folder, or the source in the output."""
    source, real = Path(os.path.realpath(checkpoint.root or checkpoint.path)), Path(os.path.realpath(output))
    if real == source or same_file(real, source):
        raise OutputError("it is the source itself", fix=_OR_IN_PLACE)
    if real.is_relative_to(source):
        raise OutputError("it lies in the source", fix="choose an -o beside it")
    if source.is_relative_to(real):
        raise OutputError("the source lies in it", fix="choose an -o beside it")
