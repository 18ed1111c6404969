"""Jobs on many checkpoints: small values that travel; what must not be done is refused before one begins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import PurePath
from typing import Any

from wnconvert.errors import ArgumentError, InputError, OutputError
from wnconvert.frozen import dataclass
from wnconvert.messages import counted, listed, raise_listed
from wnconvert.storage.files import kind_of, listing_of, located, output_path, real_of
from wnconvert.storage.stores.store import Address, PathKind
from wnconvert.verbs.conversion.targets import (
    StrPath,
    address_of,
    default_output,
    has_suffix,
    kind_of_verb,
    output_name,
)
from wnconvert.verbs.fleet.sources import FleetSource, absolute

__all__ = ["FileJob", "jobs_of"]


@dataclass(frozen=True, slots=True)
class FileJob:
    """One source, what is done with it, and where that is written: None for an inspection, or in place.

    ``may_replace`` says that what lies at ``output`` was written by an earlier run of the same work, and
    ``digests`` that the SHA-256 of the output is wanted. ``is_folder`` is about the source.
    """

    source: str
    verb: str
    output: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    may_replace: bool = False
    digests: bool = False
    is_folder: bool = False

    @property
    def has_shards(self) -> bool:
        """Whether the source is a folder of several files, which becomes a folder on a disk."""
        if self.verb == "inspect" or self.options.get("dry_run"):
            return False
        output = located(self.source if self.output is None else self.output)
        if isinstance(output, Address) or has_suffix(str(output)):
            return False
        source = located(self.source)
        return any(map(_names_files, _names_in(source) if self.is_folder else [source.name]))

    @property
    def key(self) -> str:
        """The source by a name that is the same from every folder."""
        return str(absolute(located(self.source)))


def jobs_of(
    verb: str, sources: Iterable[FleetSource], out: StrPath | None, options: Mapping[str, Any]
) -> tuple[list[FileJob], tuple[str, ...]]:
    """The jobs of a verb on sources, and notes on sources that are left out, since others' outputs lie there.

    Raises ``OutputError`` where two would write one output, and ``ArgumentError`` for an ``out`` that names
    one file.
    """
    if options.get("in_place") and out is not None:
        raise ArgumentError(
            "--in-place writes over the sources, and -o names another place", fix="leave one of the two out"
        )
    if verb == "inspect" or options.get("in_place"):
        return [
            FileJob(str(source.path), verb, None, options, is_folder=source.is_folder) for source in sources
        ], ()
    folder = None if out is None else _folder(out)
    kind, as_folder = kind_of_verb(verb, options), bool(options.get("as_folder"))
    made = [(source, _output(source, folder, kind, as_folder=as_folder)) for source in sources]
    outputs = {absolute(output) for _, output in made}
    kept = [(source, output) for source, output in made if absolute(source.path) not in outputs]
    _refuse_meeting(kept)
    left = [str(source.path) for source, _ in made if absolute(source.path) in outputs]
    are = "is an output of another source" if len(left) == 1 else "are outputs of other sources"
    notes = (f"{counted(len(left), 'file')} {are}, and left out: {listed(left, 3)}",) if left else ()
    return [
        FileJob(str(source.path), verb, str(output), options, is_folder=source.is_folder)
        for source, output in kept
    ], notes


def _names_files(name: str) -> bool:
    """Whether a file is called as one that names the files of a checkpoint.

    >>> [_names_files(name) for name in ("model.safetensors.index.fp16.json", "config.json")]
    [True, False]
    """
    return name.endswith(".json") and (".index." in name or name == "model_index.json")


def _names_in(folder: PurePath) -> list[str]:
    """What is in a folder; nothing where it cannot be read: the verb itself says why."""
    try:
        return listing_of(folder)
    except (OSError, InputError):
        return []


def _folder(out: StrPath) -> PurePath:
    """The folder that outputs go into."""
    text = os.fspath(out)
    folder = address_of(out) or output_path(out)
    if isinstance(folder, Address):
        return folder
    there = kind_of(folder)
    is_folder = text.endswith(os.sep) or there is PathKind.FOLDER
    if not is_folder and (has_suffix(text) or there is not None):
        raise ArgumentError(f"-o {text} is one file, and there are many", fix="-o FOLDER")
    return folder


def _output(source: FleetSource, folder: PurePath | None, kind: str, *, as_folder: bool) -> PurePath:
    if folder is None:
        return default_output(source.path, kind, as_folder=as_folder)
    name = output_name(source.path, kind, from_folder=source.is_folder, as_folder=as_folder)
    return folder.joinpath(*source.place, name)


def _refuse_meeting(made: Iterable[tuple[FleetSource, PurePath]]) -> None:
    """Raise ``OutputError`` for sources that would write one output."""
    sources: dict[str, list[str]] = {}
    for source, output in made:
        sources.setdefault(os.path.normcase(real_of(output)), []).append(str(source.path))
    meeting = [(output, f"of {listed(names, 3)}") for output, names in sources.items() if len(names) > 1]
    raise_listed(
        OutputError,
        f"{counted(len(meeting), 'output')} would be written more than once",
        meeting,
        fix="rename a source, or convert these one by one with -o",
    )
