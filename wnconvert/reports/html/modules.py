"""The tree of modules that the names of layers and tensors show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from wnconvert.verbs.inspection.magnitudes import LayerStats
from wnconvert.verbs.inspection.result import TensorSummary

__all__ = ["ModuleBranch", "module_tree"]


#: What stands between a module's path and the names of torch's parametrizations.
_WITHIN = ".parametrizations."
#: The most modules inside of each other that are shown one by one: a name may have any number of dots.
_DEEPEST = 24


@dataclass(slots=True)
class ModuleBranch:
    """A module by its name; ``layers`` are its own, each with its place in the inspection.

    Counts are those of the module and all below it: ``layers_below``, ``parameters`` (elements of tensors by
    name), and ``flagged`` layers.
    """

    name: str
    layers: list[tuple[int, LayerStats]] = field(default_factory=list)
    children: dict[str, ModuleBranch] = field(default_factory=dict)
    layers_below: int = 0
    parameters: int = 0
    flagged: int = 0

    def within(self, path: str) -> Iterator[ModuleBranch]:
        """This branch and those on the way down a path, which are made where they are not there."""
        yield self
        branch = self
        for part in path.split(".", _DEEPEST) if path else ():
            branch = branch.children.setdefault(part, ModuleBranch(part))
            yield branch


def module_tree(
    name: str, layers: Iterable[tuple[int, LayerStats]], tensors: Iterable[TensorSummary]
) -> ModuleBranch:
    """The modules of one state dict, under a root of that name.

    A module that holds nothing but one other is one branch with it, as ``resblocks.0``.
    """
    root = ModuleBranch(name)
    for at, layer in layers:
        way = list(root.within(layer.name.rpartition(".")[0]))
        way[-1].layers.append((at, layer))
        for branch in way:
            branch.layers_below += 1
            branch.flagged += bool(layer.odd)
    for tensor in tensors:
        module = (
            tensor.name.partition(_WITHIN)[0] if _WITHIN in tensor.name else tensor.name.rpartition(".")[0]
        )
        for branch in root.within(module):
            branch.parameters += math.prod(tensor.shape)
    root.children = {child.name: child for child in map(_joined, root.children.values())}
    return root


def _joined(branch: ModuleBranch) -> ModuleBranch:
    """A branch with every lone child taken together with its parent, all the way down."""
    names = [branch.name]
    while len(branch.children) == 1 and not branch.layers:
        (child,) = branch.children.values()
        if child.parameters != branch.parameters:
            break  # it has tensors of its own
        names.append(child.name)
        branch = child
    branch.name = ".".join(names)
    branch.children = {child.name: child for child in map(_joined, branch.children.values())}
    return branch
