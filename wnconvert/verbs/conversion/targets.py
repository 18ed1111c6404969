"""Where a conversion writes: a file or a folder, named by the user or after the source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, TypeAlias, TypeVar

from wnconvert.errors import ArgumentError, InputError, OutputError
from wnconvert.frozen import dataclass
from wnconvert.messages import refuse_other_than_path
from wnconvert.storage.checkpoint import Checkpoint, no_graph
from wnconvert.storage.files import kind_of, listing_of, located, output_path, real_of, stored_output
from wnconvert.storage.folder.links import cache_of
from wnconvert.storage.folder.weights import part_notes
from wnconvert.storage.stores.store import Address, PathKind
from wnconvert.tensors.containers import Container, container_of
from wnconvert.tensors.suffixes import check_true_name
from wnconvert.verbs.shared.leftovers import cleaned_leftovers

__all__ = [
    "StrPath",
    "Target",
    "address_of",
    "check_apart",
    "check_is_checkpoint",
    "check_name",
    "check_not_read",
    "check_suffix",
    "clean_beside",
    "default_output",
    "has_suffix",
    "kind_of_verb",
    "output_name",
    "same_file",
    "target_of",
]


StrPath: TypeAlias = str | os.PathLike[str]
Anywhere = TypeVar("Anywhere", bound=PurePath)

_OR_IN_PLACE = "choose another -o; --in-place replaces the source"

# Longest first: x.pth.tar has the suffix .pth.tar, not .tar.
_SUFFIXES = tuple(
    sorted((suffix for container in Container for suffix in container.facts.suffixes), key=len, reverse=True)
)
# What is only read, and the suffix of what is written of it: a program's weights are a state dict.
_BECOMES = {".pt2": ".pt", ".msgpack": ".safetensors", ".pdparams": ".safetensors"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a conversion writes: a path, and whether that becomes a folder in the layout of the hub.

    ``is_named`` says that the user chose its name, with its suffix, for what is written there.
    """

    path: PurePath
    is_folder: bool
    is_named: bool = False


def target_of(
    source: StrPath, out: StrPath | None, kind: str, *, as_folder: bool = False, in_place: bool = False
) -> Target:
    """The target of a conversion of ``source``, by the user's ``out`` or by default; no checkpoint is opened.

    A folder becomes a folder, unless ``out`` has a checkpoint's suffix. A file becomes a file, and goes into
    ``out`` where that is a folder, as ``cp`` has it; with ``as_folder`` it becomes a folder. ``kind`` is as
    for ``default_output``. Raises ``ArgumentError`` for options that contradict each other, ``OutputError``
    for a folder that is not there.
    """
    path = located(source)
    from_folder = _is_folder(path)
    if in_place:
        return Target(_in_place(path, out, as_folder=as_folder), from_folder, is_named=not from_folder)
    if out is None:
        return Target(default_output(path, kind, as_folder=as_folder), from_folder or as_folder)
    refuse_other_than_path(out, "an output")
    text = os.fspath(out)
    if (address := address_of(out)) is not None:
        return _stored(path, address, kind, text, is_folder=from_folder or as_folder)
    output = output_path(out)
    into = text.endswith(os.sep) or output.is_dir()
    if from_folder or as_folder:
        return Target(output, as_folder or into or not has_suffix(text), is_named=not into)
    if not into:
        return Target(output, is_folder=False, is_named=True)
    if not output.is_dir():
        there = "it is not a folder" if output.exists() else "there is no such folder"
        raise OutputError(
            there,
            where=text,
            fix=f"mkdir -p {out}; --as-folder makes a folder of the file, as the hub has it",
        )
    return Target(output / _named(Path(path.name), kind).name, is_folder=False)


def address_of(out: StrPath) -> Address | None:
    """The address of an output in a store; None for all else, which ``output_path`` looks at."""
    try:
        return stored_output(out)
    except InputError:
        return None


def _stored(path: PurePath, address: Address, kind: str, text: str, *, is_folder: bool) -> Target:
    """A target in a store, whose folders need not be made."""
    if is_folder:
        return Target(address, text.endswith("/") or not has_suffix(text), is_named=not text.endswith("/"))
    if text.endswith("/"):
        return Target(address / _named(Path(path.name), kind).name, is_folder=False)
    return Target(address, is_folder=False, is_named=True)


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
    path = located(source)
    from_folder = _is_folder(path)
    if isinstance(path, Path):
        if cache_of(_real_folder(path)) is not None:
            raise ArgumentError(
                "it lies in the cache of the hub, which is not written to",
                where=str(path),
                fix="-o FOLDER" if from_folder or as_folder else "-o FILE",
            )
        place = _folder_of(path) if from_folder else path
    else:  # from another store into the folder that one is in
        place = Path((_folder_of(path) if from_folder else path).name)
    if from_folder:
        return _beside_folder(place, kind)
    return place.with_name(f"{_stem(place)}.{kind}") if as_folder else _named(place, kind)


def output_name(source: StrPath, kind: str, *, from_folder: bool, as_folder: bool = False) -> str:
    """The name that ``default_output`` gives, wherever the source lies; ``from_folder``: it is one.

    >>> output_name("runs/x.pt", "folded", from_folder=False), output_name("hub", "split", from_folder=True)
    ('x.folded.pt', 'hub.split')
    """
    path = located(source)
    if from_folder or path.name.endswith(".json"):
        folder = path if from_folder else path.parent
        return _beside_folder(Path(folder.name or os.path.realpath(folder)), kind).name
    place = Path(path.name)
    return f"{_stem(place)}.{kind}" if as_folder else _named(place, kind).name


def kind_of_verb(verb: str, options: Mapping[str, Any]) -> str:
    """What a verb puts into the names of its outputs.

    >>> kind_of_verb("fold", {}), kind_of_verb("migrate", {"to": "legacy"})
    ('folded', 'legacy')
    """
    named = {"fold": "folded", "split": "split"}
    return named[verb] if verb in named else str(options.get("to", "parametrize"))


def _is_folder(path: PurePath) -> bool:
    """Whether a name means a folder: it is one, or the index of one."""
    return path.name.endswith(".json") or kind_of(path) is PathKind.FOLDER  # no checkpoint is called .json


def _folder_of(path: Anywhere) -> Anywhere:
    """The folder that a folder's name, or that of its index, means."""
    is_index = path.name.endswith(".json") and kind_of(path) is not PathKind.FOLDER
    return path.parent if is_index else path


def _real_folder(path: Path) -> Path:
    return Path(os.path.realpath(path if path.is_dir() else path.parent))


def _stem(path: Path) -> str:
    """The name of a checkpoint without its known suffix."""
    stems = (path.name.removesuffix(suffix) for suffix in (*_SUFFIXES, *_BECOMES))
    return next((stem for stem in stems if stem and stem != path.name), path.name)


def _named(path: Path, kind: str) -> Path:
    """The name of what a file becomes, beside it."""
    if not path.name:
        return path  # "/" has no name to change, and is not a checkpoint either
    stem = _stem(path)
    suffix = path.name[len(stem) :]
    return path.with_name(f"{stem}.{kind}{_BECOMES.get(suffix, suffix)}")


def _beside_folder(folder: Path, kind: str) -> Path:
    if folder.name in ("", ".."):
        folder = Path(os.path.realpath(folder))
    return folder.with_name(f"{folder.name}.{kind}") if folder.name else folder


def _in_place(source: PurePath, out: StrPath | None, *, as_folder: bool) -> Path:
    """The source itself. Raises ``ArgumentError`` where it may not be written to, or ``out`` is another."""
    place = output_path(_folder_of(source))
    if out is not None and not same_file(out, place):
        raise ArgumentError(
            f"--in-place writes to {place}, and -o names {out}", fix="leave one of the two out"
        )
    if as_folder and not place.is_dir():
        raise ArgumentError(
            "--in-place keeps a file, and --as-folder makes a folder of it", fix="leave one of the two out"
        )
    if _is_cached(output_path(source)):
        raise ArgumentError(
            "it lies in the cache of the hub, which is not written to",
            where=str(source),
            fix="-o OUT in place of --in-place",
        )
    if part_notes(real_of(source)):
        raise ArgumentError(
            "it is one of the files of a checkpoint, and their index would no longer fit it",
            where=str(source),
            fix=f"name all of them, {real_of(source).parent}; or -o OUT in place of --in-place",
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
    at, there = located(one), located(other)
    try:
        return isinstance(at, Path) and isinstance(there, Path) and at.samefile(there)
    except OSError:
        return False


def check_not_read(checkpoint: Checkpoint, output: Path, like: StrPath | None) -> None:
    """Raise ``OutputError`` if a file would be written over the source, its data, or ``--like``."""
    if same_file(output, checkpoint.path):
        raise OutputError("it is the source itself", fix=_OR_IN_PLACE)
    if any(same_file(output, path) for path in checkpoint.shards):
        raise OutputError("the source keeps its data there", fix="choose another -o")
    if any(same_file(output, path) for path in _read_at(like)):
        raise OutputError("--like reads it", fix="choose another -o")


def _read_at(like: StrPath | None) -> list[PurePath]:
    """The files that a reference may be read from."""
    if like is None:
        return []
    path = located(like)
    return [path / name for name in listing_of(path)] if kind_of(path) is PathKind.FOLDER else [path]


def check_apart(checkpoint: Checkpoint, output: Path) -> None:
    """Raise ``OutputError`` if the output lies in the source's folder, or the source in the output."""
    source, real = real_of(checkpoint.root or checkpoint.path), real_of(output)
    if real == source or same_file(real, source):
        raise OutputError("it is the source itself", fix=_OR_IN_PLACE)
    if real.is_relative_to(source):
        raise OutputError("it lies in the source", fix="choose an -o beside it")
    if source.is_relative_to(real):
        raise OutputError("the source lies in it", fix="choose an -o beside it")


def clean_beside(target: Path) -> tuple[str, ...]:
    """Delete what killed runs left beside a target, and data that no ONNX model needs any more; notes."""

    def remove_unneeded(files: list[Path]) -> None:
        from wnconvert.verbs.conversion.onnx.fold import remove_unused

        tuple(remove_unused(files, target, ()))

    return cleaned_leftovers(target, remove_unneeded)


def check_name(checkpoint: Checkpoint, target: Target) -> None:
    """An output is what its suffix says."""
    name = target.path.name
    if checkpoint.onnx:
        check_true_name(name, Container.ONNX.facts.noun, "-o OUT.onnx")
    else:
        check_true_name(name, "a folder" if target.is_folder else container_of(target.path).facts.noun)


def check_suffix(output: PurePath) -> None:
    """An ONNX model stays one: its graph has no place in a checkpoint."""
    name = output.name.lower()
    if not name.endswith(".onnx") and has_suffix(name):
        raise ArgumentError(
            f"{output.name} would be a checkpoint, and the graph of an ONNX model has no place in one",
            fix="-o OUT.onnx; or fold the checkpoint that the model was exported from",
        )


def check_is_checkpoint(checkpoint: Checkpoint, output: PurePath, kind: str) -> None:
    """Only ``fold`` takes ONNX models, and no checkpoint can become one."""
    no_graph(checkpoint, kind if kind == "split" else "migrated")
    if container_of(output) is Container.ONNX:
        raise ArgumentError(
            f"{output.name} would be an ONNX model, and a checkpoint has no graph",
            fix="wnconvert export, which takes the module's code too; or -o OUT.safetensors",
        )
