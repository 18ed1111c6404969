"""A checkpoint as another framework has it, and what plans its file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from wnconvert.errors import ArgumentError
from wnconvert.messages import listed, option
from wnconvert.plan.migrate import plan_relaid
from wnconvert.plan.names.frameworks import Relayout, in_framework
from wnconvert.plan.selection.scope import choose, leading
from wnconvert.storage.checkpoint import Checkpoint, no_graph
from wnconvert.tensors.containers import container_of
from wnconvert.tensors.tree import StateDict, Tree
from wnconvert.verbs.conversion.targets import Target

if TYPE_CHECKING:
    from wnconvert.verbs.conversion.folders.plan import MakePlan

__all__ = ["as_framework_has_it"]


#: What safetensors say of the framework that saved them, where that is not torch.
_SAVED_BY = {"flax": "flax", "nnx": "flax", "mlx": "mlx"}


def as_framework_has_it(
    checkpoint: Checkpoint, target: Target, asked: Relayout, only: str | None
) -> tuple[Checkpoint, MakePlan]:
    """A checkpoint as another framework has it; bytes stay where they are until its file is written.

    Raises ``ArgumentError`` for a target that the framework does not read, and as ``in_framework`` does.
    """
    no_graph(checkpoint, "migrated")
    if target.is_folder:
        raise ArgumentError(f"a file is taken to {asked.to}, and this is a folder", fix="-o OUT.safetensors")
    if asked.to != "torch" and container_of(target.path).facts.family == "torch":
        raise ArgumentError(f"{asked.to} does not read torch files", fix="-o OUT.safetensors, or OUT.npz")
    states = choose(checkpoint.tree, only)
    if len(states) != 1:
        paths = listed((state.shown for state in states), 8)
        raise ArgumentError(
            f"one state dict is taken to {asked.to}, and there are {len(states)}: {paths}",
            fix=f"{option('only', metavar='PATH')} names it",
        )
    tree = checkpoint.tree
    made = in_framework(tree, states[0], checkpoint.container, asked)
    left = list(_left_out(tree, states[0]))
    metadata = {"format": _SAVED_BY[asked.to]} if asked.to in _SAVED_BY else {}
    relaid = Tree((made.state,), metadata=metadata, notes=(*tree.notes, *left))
    return checkpoint.with_tree(relaid), partial(plan_relaid, relaid={made.state.path: made}, only=only)


def _left_out(tree: Tree, state: StateDict) -> Iterator[str]:
    """Notes on what does not go along: all but the plain tensors of the one state dict."""
    leads = leading(tree, state.path)
    names = {
        entry.name: f"{state.path}.{entry.name}" if state.path else entry.name for entry in state.entries
    }
    without = [names[entry.name] for entry in state.entries if entry.tensor is None]
    others = [other.shown for other in tree.state_dicts if other.path != state.path]
    beside = (*others, *tree.optimizers, *(item.path for item in tree.siblings))
    if paths := [path for path in beside if path]:
        yield f"what is not a tensor of it is left out: {listed(paths, 6)}"
    if opaque := [path for path in without if path not in leads and path not in beside]:
        yield f"left out: {listed(opaque, 6)}: no plain {'tensor' if len(opaque) == 1 else 'tensors'}"
