"""A plan whose output is a folder: which of its tensors go into which file of weights."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from wnconvert.making import Made, made
from wnconvert.plan import Plan, PlannedShard
from wnconvert.sharding import Naming, into_shards
from wnconvert.tensors import StoredTensor, Tree

__all__ = ["index_metadata", "part_of", "sharded", "total_size"]


def sharded(plan: Plan, tree: Tree, naming: Naming, most: int) -> Plan:
    """The plan with its tensors in shards of at most ``most`` bytes, called as ``naming`` says.

    The plan has one state dict. In torch files names that are the same elements lie in one storage: they
    stay in one shard, and count once.
    """
    shards = into_shards(
        ((item.info.name, item.info.nbytes, _storage(item, plan.container)) for item in _made(plan, tree)),
        most,
    )
    names = naming.shards(len(shards))
    planned = (PlannedShard(name, shard.names, shard.size) for name, shard in zip(names, shards, strict=True))
    return replace(plan, shards=tuple(planned), index=naming.index if len(names) > 1 else "")


def part_of(plan: Plan, shard: PlannedShard) -> Plan:
    """The plan of one shard; the first has the record of what was done."""
    (planned,) = plan.state_dicts
    steps = {step.name: step for step in planned.tensors}
    own = replace(planned, steps=tuple(steps[name] for name in shard.tensors))
    record = plan.record if shard == plan.shards[0] else ()
    return replace(plan, state_dicts=(own,), record=record, shards=(), index="", copied=())


def total_size(plan: Plan) -> int:
    """The bytes of all tensors, as an index has it."""
    return sum(shard.size for shard in plan.shards)


def index_metadata(plan: Plan, tree: Tree, before: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of an index, ``before`` without what was only true of the source.

    ``total_parameters``, which transformers writes, moves by the elements that came or went.
    """
    metadata = {key: value for key, value in before.items() if key != "total_size"}
    count = metadata.get("total_parameters")
    if isinstance(count, int):
        (planned,) = plan.state_dicts
        now = sum(item.info.numel for item in _made(plan, tree))
        metadata["total_parameters"] = (
            count + now - sum(t.info.numel for t in _tensors(tree, planned.path).values())
        )
    return metadata


def _made(plan: Plan, tree: Tree) -> list[Made]:
    (planned,) = plan.state_dicts
    tensors = _tensors(tree, planned.path)
    return [made(step, tensors) for step in planned.tensors]


def _tensors(tree: Tree, path: str) -> dict[str, StoredTensor]:
    return next(state.tensors for state in tree.state_dicts if state.path == path)


def _storage(item: Made, container: str) -> Hashable:
    """Equal for two tensors that a file of that container has in one storage."""
    return item.info.name if container == "safetensors" else item.work
