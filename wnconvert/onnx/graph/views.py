"""The values at which a stored weight replaces a computed one: the last that are still the weight.

A value is a *view* of the weight if it has its elements in another order, shape or dtype. Views form trees:
the Transpose of a product is below the product. The view that is stored is the lowest one that all uses of a
tree have in common, so a weight that is only used transposed is stored transposed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from wnconvert.onnx.file.model import OnnxFunction
from wnconvert.onnx.graph.index import Index, ValueId
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import StoredTensor

__all__ = ["View", "ViewTree", "bases_of", "calls_of", "trees_of"]


@dataclass(frozen=True, slots=True)
class View:
    """A layout of the weight: its elements with the shape and strides of ``v``; ``dim`` is an axis of it."""

    v: StoredTensor
    dim: int | None
    dtype: DType


@dataclass(frozen=True, slots=True)
class ViewTree:
    """Values that are one weight, all made from the root; ``base`` is the one that is stored.

    ``output`` is the root's name if it is an output itself, else ``""``.
    """

    root: ValueId
    base: ValueId
    output: str = ""


def trees_of(
    index: Index,
    values: Mapping[ValueId, View],
    given: Iterable[ValueId] = (),
    steps: Collection[ValueId] = (),
) -> tuple[ViewTree, ...]:
    """The trees of the views of one weight in one graph or function, without those that nothing uses.

    ``given`` are views that a function gets as inputs: their trees are left out. A node that makes one of
    ``steps`` does not count as a use.
    """
    parents = {value: _parent(index, value, values) for value in values}
    outside = set(given)
    wanted: dict[ValueId, list[ValueId]] = {}
    returned: dict[ValueId, list[ValueId]] = {}
    for value in values:
        root = _line(value, parents)[-1]
        if root in outside:
            continue
        if places := [value] * _uses(index, value, parents, steps):
            wanted.setdefault(root, []).extend(places)
        if value in index.outputs:
            # An output keeps its name and its node, so the node counts as the use. The outputs of a
            # function are used by its callers: they count only if the function uses the weight as well.
            in_function = isinstance(index.scopes[value[0]], OnnxFunction)
            (returned if in_function else wanted).setdefault(root, []).append(parents[value] or value)
    for root in returned.keys() & wanted.keys():
        wanted[root] += returned[root]
    trees: list[ViewTree] = []
    for root, places in wanted.items():
        lines = [_line(place, parents)[::-1] for place in places]  # from the root down
        depth = 0
        while all(len(line) > depth and line[depth] == lines[0][depth] for line in lines):
            depth += 1
        trees.append(ViewTree(root, lines[0][depth - 1], root[1] if root in index.outputs else ""))
    return tuple(trees)


def _parent(index: Index, value: ValueId, values: Mapping[ValueId, View]) -> ValueId | None:
    """The view from which a view is made, or None."""
    node = index.makers.get(value)
    if node is None:
        return None
    for name in node.inputs:
        source = index.resolve(value[0], name) if name else None
        if source in values:
            return source
    return None


def _line(value: ValueId, parents: Mapping[ValueId, ValueId | None]) -> list[ValueId]:
    """A value, its parent, and so on up to the root."""
    line, at = {value: None}, value
    while (parent := parents[at]) is not None and parent not in line:  # a name may be defined twice
        line[parent], at = None, parent
    return list(line)


def _uses(
    index: Index,
    value: ValueId,
    parents: Mapping[ValueId, ValueId | None],
    steps: Collection[ValueId],
) -> int:
    """How many nodes use a value for anything but another view."""
    return sum(
        not any((path, name) in parents or (path, name) in steps for name in node.outputs)
        for path, node in index.users.get(value, ())
    )


def bases_of(trees: Iterable[ViewTree], values: Mapping[ValueId, View]) -> dict[View, list[ValueId]]:
    """The layouts to store, each with the values that it replaces; a single layout if possible."""
    bases = [tree.base for tree in trees]
    roots = [tree.root for tree in trees]
    chosen = bases
    if len({values[base] for base in bases}) > 1 and len({values[root] for root in roots}) == 1:
        chosen = roots
    layouts: dict[View, list[ValueId]] = {}
    for value in chosen:
        layouts.setdefault(values[value], []).append(value)
    return layouts


def calls_of(index: Index, function: str, most: int = 100_000) -> set[tuple[int, ...]] | None:
    """Every chain of calls from the graph to a function: the starts of the calling nodes, outermost first.

    None if there are more than ``most``.
    """
    ways: set[tuple[int, ...]] = set()
    waiting: list[tuple[str, tuple[int, ...]]] = [(function, ())]
    while waiting:
        path, below = waiting.pop()
        for caller, node in index.calls.get(path, ()):
            root, way = index.roots[caller], (node.record.start, *below)
            if not isinstance(index.scopes[root], OnnxFunction):
                ways.add(way)
            elif len(way) > len(index.functions):
                return None  # a function that calls itself
            else:
                waiting.append((root, way))
        if len(ways) + len(waiting) > most:
            return None
    return ways
