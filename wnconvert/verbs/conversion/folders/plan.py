"""The plan of a folder: of the one checkpoint in it, or of the components of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import TypeAlias

from wnconvert.errors import ArgumentError, OutputError
from wnconvert.messages import listed
from wnconvert.plan.plan import LeftOut, Plan, PlannedShard, PlannedStateDict
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.folder.beside import OtherFiles, find_beside, find_others
from wnconvert.storage.folder.weights import Folder, is_weights
from wnconvert.storage.layouts import fitted
from wnconvert.storage.shards import DEFAULT_SHARD_SIZE, Naming, bytes_of, parts_of, sharded
from wnconvert.tensors.containers import Container, container_of
from wnconvert.tensors.tree import Tree
from wnconvert.verbs.conversion.folders.parts import FolderPart, FolderPlan

__all__ = ["MakePlan", "plan_folder"]


MakePlan: TypeAlias = Callable[[Tree, Container], Plan]


def plan_folder(
    checkpoint: Checkpoint, make_plan: MakePlan, max_shard_size: str | int, renamed: Collection[str] = ()
) -> FolderPlan:
    """Plan the folder that a checkpoint becomes: a folder, a pipeline of several, or a file as a folder.

    A folder of torch's files stays one; a file becomes safetensors, in the layout of the hub. ``renamed`` are
    the paths of state dicts with new names.

    Raises as ``make_plan`` does; ``InputError`` for a file in the source's folder that cannot be copied,
    ``OutputError`` if one that is copied has the name of one that is written.
    """
    if checkpoint.components:
        return _pipeline(checkpoint, make_plan, bytes_of(max_shard_size), renamed)
    if checkpoint.folder is not None and checkpoint.folder.is_lone:
        return _lone(checkpoint, checkpoint.folder, make_plan, max_shard_size)
    return _in_hub_layout(checkpoint, make_plan, bytes_of(max_shard_size))


def _in_hub_layout(checkpoint: Checkpoint, make_plan: MakePlan, most: int) -> FolderPlan:
    folder = checkpoint.folder
    naming = folder.naming if folder else Naming.of_hub(Container.SAFETENSORS)
    container = Container.of_hub(naming.suffix)
    if not is_weights(naming.shards(1)[0]):  # nobody would find it where there is but one
        naming = Naming.of_hub(container)
    made = _fitted(sharded(make_plan(checkpoint.tree, container), checkpoint.tree, naming, most))
    dropped = []
    if made.index and checkpoint.knows_modules and made.container.facts.holds_trees:
        dropped = [LeftOut("_metadata", "torch's versions of modules have no place in several files")]
    beside = find_beside(folder) if folder else OtherFiles()
    whole = _with_others(made, beside, dropped)
    return _checked(FolderPlan(whole, (FolderPart(checkpoint, whole),), beside))


def _fitted(made: Plan) -> Plan:
    """The plan of shards, without its record where the first of them, which would keep it, has no place."""
    part = fitted(next(parts_of(made))[1])
    return replace(made, record=part.record, notes=part.notes)


def _lone(
    checkpoint: Checkpoint, folder: Folder, make_plan: MakePlan, max_shard_size: str | int
) -> FolderPlan:
    """The folder of one checkpoint that is not called as the hub calls weights: it keeps its name."""
    (name,) = folder.files
    if max_shard_size != DEFAULT_SHARD_SIZE:
        raise ArgumentError(
            f"--max-shard-size cuts weights in the layout of the hub, and {name} stays one file",
            fix="leave it out; or name the file itself, and --as-folder",
        )
    made = fitted(make_plan(checkpoint.tree, container_of(folder.root / name)))
    beside = find_beside(folder)
    names = (step.name for planned in made.state_dicts for step in planned.tensors)
    shard = PlannedShard(name, tuple(names), _size(made, checkpoint.tree))
    whole = _with_others(replace(made, shards=(shard,)), beside)
    return _checked(FolderPlan(whole, (FolderPart(checkpoint, whole, is_whole=True),), beside))


def _pipeline(checkpoint: Checkpoint, make_plan: MakePlan, most: int, renamed: Collection[str]) -> FolderPlan:
    """Each component with layers or new names is converted where it lies, and everything else goes along."""
    made = make_plan(checkpoint.tree, Container.TORCH_ZIP)  # which takes them all
    if made.only is not None:
        raise ArgumentError(
            f"--only takes {made.only} out of a pipeline, which a folder holds whole",
            fix=f"-o OUT.safetensors; or name the folder of the component, {checkpoint.path / made.only}",
        )
    parts = tuple(
        _component(made, planned, checkpoint, most)
        for planned in made.state_dicts
        if planned.changes or planned.path in renamed or any(step.dtype for step in planned.steps)
    )
    weights: dict[str, frozenset[str]] = {}
    for part in parts:
        weights[part.below] = weights.get(part.below, frozenset()) | _folder_of(part.checkpoint).read
    beside = find_others(checkpoint.path, weights)
    shards = tuple(
        replace(shard, name=part.path_of(shard.name)) for part in parts for shard in part.plan.shards
    )
    container = checkpoint.container if checkpoint.container is Container.SAFETENSORS else made.container
    whole = _with_others(replace(made, container=container, shards=shards), beside)
    return _checked(FolderPlan(whole, parts, beside))


def _component(made: Plan, planned: PlannedStateDict, pipeline: Checkpoint, most: int) -> FolderPart:
    """One component out of the plan of all: its own plan, as if it were converted alone."""
    path, checkpoint = planned.path, pipeline.components[planned.path]
    folder = _folder_of(checkpoint)
    container = Container.of_hub(folder.naming.suffix)
    own = replace(
        made,
        container=container,
        state_dicts=(replace(planned, path=""),),
        only=None if container.facts.holds_trees else "",
        record=tuple(
            {**step, "state_dicts": {"": step["state_dicts"][path]}}
            for step in made.record
            if path in step["state_dicts"]
        ),
        dropped=(),
        notes=(),
    )
    below = str(folder.root.relative_to(pipeline.path))
    return FolderPart(checkpoint, _fitted(sharded(own, checkpoint.tree, folder.naming, most)), below)


def _folder_of(component: Checkpoint) -> Folder:
    assert component.folder is not None  # noqa: S101 - every component is one
    return component.folder


def _size(plan: Plan, tree: Tree) -> int:
    """The bytes of all tensors of a plan."""
    return sum(
        step.made_of(tensors).info.nbytes
        for planned in plan.state_dicts
        for tensors in (tree.state_dict(planned.path).tensors,)
        for step in planned.tensors
    )


def _with_others(plan: Plan, beside: OtherFiles, dropped: Iterable[LeftOut] = ()) -> Plan:
    """The plan with what is copied, and with what is left out of the source's folder."""
    left = (LeftOut(path, _why(path)) for path in beside.left_out)
    return replace(
        plan,
        copied=tuple(file.path for file in beside.files),
        dropped=(*plan.dropped, *left, *dropped),
    )


def _why(path: str) -> str:
    if path.startswith("."):
        return "it describes the folder as it was"
    return "other weights, which were not read"


def _checked(planned: FolderPlan) -> FolderPlan:
    """The plan itself; raises ``OutputError`` where a file is copied that is also written."""
    beside = planned.beside
    written = {
        part.path_of(name)
        for part in planned.parts
        for name in (*(shard.name for shard in part.plan.shards), part.plan.index)
        if name
    }
    there = {file.path for file in beside.files} | {path for path, _ in (*beside.folders, *beside.links)}
    if taken := sorted(written & there):
        raise OutputError(f"{listed(taken)} would be written, and lies in the folder", fix="move it away")
    return planned
