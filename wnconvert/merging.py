"""Several files as one checkpoint: one state dict, whose tensors say in which of the files they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

from wnconvert.errors import FormatError
from wnconvert.tensors import Entry, StateDict, Tree

__all__ = ["merged", "plain_state_dict"]


def merged(trees: Mapping[str, Tree]) -> Tree:
    """The trees of shards, by the names of their files, as one; a byte range's ``shard`` is its place here.

    Keys stand as they stand in the files, one file after another, so shards and the one file that they
    were made of give the same plan. The record of what wnconvert did is that of the first shard that
    has one (it is written into the first), and those of others after it.

    Raises ``FormatError`` where a file holds more than a plain state dict, or their metadata differ.
    """
    states = [plain_state_dict(name, tree) for name, tree in trees.items()]
    entries = (_moved(entry, shard) for shard, state in enumerate(states) for entry in state.entries)
    return Tree(
        state_dicts=(StateDict("", tuple(entries)),),
        metadata=_metadata(trees),
        record=tuple(chain.from_iterable(tree.record for tree in trees.values())),
        notes=tuple(dict.fromkeys(chain.from_iterable(tree.notes for tree in trees.values()))),
    )


def plain_state_dict(name: str, tree: Tree) -> StateDict:
    """The one thing that a file of weights may hold. Raises ``FormatError`` where it holds another."""
    more = [path for path in (*tree.optimizers, *(item.path for item in tree.siblings)) if path]
    more += [state.path for state in tree.state_dicts if state.path]
    states = [state for state in tree.state_dicts if not state.path] or [StateDict("", ())]
    more += [entry.name for entry in states[0].entries if entry.tensor is None]
    if more or states[0].is_module:
        what = f"it has {more[0]}" if more else "it is a pickled module"
        raise FormatError(
            f"{name} is no plain state dict, as the weights of a folder are: {what}",
            fix=f"name the file, {name}, and -o a file",
        )
    return states[0]


def _moved(entry: Entry, shard: int) -> Entry:
    """An entry of a file as one of the shard of that number."""
    tensor = entry.tensor
    assert tensor is not None  # noqa: S101 - of a plain state dict
    return replace(entry, tensor=replace(tensor, storage=replace(tensor.storage, shard=shard)))


def _metadata(trees: Mapping[str, Tree]) -> Mapping[str, str]:
    """What the files say of themselves: a key that several have is the same in all."""
    made: dict[str, str] = {}
    said_by: dict[str, str] = {}
    for file, tree in trees.items():
        for key, value in tree.metadata.items():
            if made.setdefault(key, value) != value:
                raise FormatError(
                    f"{said_by[key]} and {file} differ in the metadata {key!r}: "
                    f"{made[key]!r:.80}, {value!r:.80}",
                    fix="download them again: they do not belong together",
                )
            said_by.setdefault(key, file)
    return made
