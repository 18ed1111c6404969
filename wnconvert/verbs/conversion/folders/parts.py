"""A folder in the making: weights in one place of it or in several, and the files that go along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath

from wnconvert.frozen import dataclass
from wnconvert.plan.layout import Layout
from wnconvert.plan.plan import Plan
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.folder.beside import OtherFiles
from wnconvert.storage.folder.index import write_index
from wnconvert.storage.folder.written import MANIFEST, manifest
from wnconvert.storage.layouts import layout_of
from wnconvert.storage.shards import index_metadata, parts_of, total_size

__all__ = ["FolderPart", "FolderPlan"]


@dataclass(frozen=True, slots=True)
class FolderPart:
    """The weights in one place of a folder: ``below`` is that folder in it, or ``""``.

    The files of ``plan`` are its shards. ``is_whole`` marks one file with all that a checkpoint has, state
    dicts and siblings; else the plan has one state dict, which may be cut.
    """

    checkpoint: Checkpoint
    plan: Plan
    below: str = ""
    is_whole: bool = False

    @property
    def opened_by(self) -> str:
        """The path of the file that opens it: its index, or its one file."""
        return self.path_of(self.plan.index or self.plan.shards[0].name)

    @property
    def contents(self) -> Plan:
        """The plan of what is in it, by which it is read back."""
        return replace(self.plan, shards=()) if self.is_whole else self.plan

    def path_of(self, name: str) -> str:
        """The path of one of its files in the folder."""
        return str(PurePath(self.below, name))

    def layouts(self) -> dict[str, Layout]:
        """The layouts of all shards, by path, and of their index."""
        checkpoint, plan = self.checkpoint, self.plan
        if self.is_whole:
            return {self.path_of(plan.shards[0].name): layout_of(checkpoint, self.contents)}
        if len(plan.shards) > 1:
            checkpoint = replace(checkpoint, torch=None)  # what a pickle has beside tensors cannot be in two
        layouts = {self.path_of(name): layout_of(checkpoint, part) for name, part in parts_of(plan)}
        if len(plan.shards) == 1:
            return layouts
        weight_map = {name: shard.name for shard in plan.shards for name in shard.tensors}
        before = checkpoint.folder.index.metadata if checkpoint.folder and checkpoint.folder.index else {}
        metadata = index_metadata(plan, checkpoint.tree, before)
        return {
            **layouts,
            self.path_of(plan.index): _text(write_index(weight_map, total_size(plan), metadata)),
        }


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """All that a folder will hold: ``parts`` are its weights, and ``beside`` goes along.

    ``plan`` is the plan of the whole, as users see it. ``is_ours`` says that all of it is a copy: in place of
    its source a folder stays its owner's, and nothing says that a conversion wrote it.
    """

    plan: Plan
    parts: tuple[FolderPart, ...]
    beside: OtherFiles
    is_ours: bool = True

    def layouts(self) -> list[tuple[FolderPart, Mapping[str, Layout]]]:
        """The layouts of each part's files, by their paths."""
        return [(part, part.layouts()) for part in self.parts]

    def manifest_of(self, layouts: Mapping[str, Layout]) -> dict[str, Layout]:
        """The layout of the list of all files, written last; ``layouts`` are those of the weights."""
        if not self.is_ours:
            return {}
        files: dict[str, int | str] = {path: layout.size for path, layout in layouts.items()}
        files |= {file.path: file.size for file in self.beside.files}
        files |= dict(self.beside.links)
        return {MANIFEST: _text(manifest(files))}


def _text(text: bytes) -> Layout:
    return Layout(len(text), ((0, text),), ())
