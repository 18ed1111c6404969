"""The values at which a stored weight replaces a computed one: the last that are still the weight.

A value is a *view* of the weight if it has its elements in another order, shape or dtype. Views form trees:
the Transpose of a product is below the product. The view that is stored is the lowest one that all uses of a
tree have in common, so a weight that is only used transposed is stored transposed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

from wnconvert.layers.rules import (
    DIVISOR,
    ORIGINAL,
    Mask,
    Norm,
    Operation,
    Over,
    Rule,
    Spectral,
    Standardize,
    Unit,
)
from wnconvert.onnx.arithmetic.products.monomials import Dims, Factor
from wnconvert.onnx.file.model import OnnxFunction
from wnconvert.onnx.graph.index import Index, ValueId
from wnconvert.plan.layout import FoldLayer, FoldThrough
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import Shape, StoredTensor, TensorInfo, contiguous_strides
from wnconvert.tensors.views.dequantized import Dequantized
from wnconvert.tensors.views.quantization import Elementwise, Quantization

__all__ = ["NoCodesError", "View", "ViewTree", "bases_of", "calls_of", "codes_in", "trees_of", "weight_view"]


#: The tensors of a weight, by their roles.
_Parts: TypeAlias = tuple[tuple[str, StoredTensor], ...]


@dataclass(frozen=True, slots=True)
class View:
    """A layout of a weight: the shape and strides of its original among ``parts``, by their roles.

    The dims of ``rule`` are axes of it, and what belongs to elements or columns lies in its order. ``steps``
    are what is done with each element then.
    """

    rule: Rule
    parts: _Parts
    dtype: DType
    steps: tuple[Elementwise, ...] = ()

    @property
    def original(self) -> StoredTensor:
        """The elements that the rule starts from."""
        return dict(self.parts)[ORIGINAL]

    def work(self, where: str = "") -> FoldLayer | FoldThrough:
        """What makes its elements."""
        fold = FoldLayer(self.rule, self.parts, self.dtype, where)
        return FoldThrough(fold, self.steps) if self.steps else fold


def weight_view(
    dims: Dims, original: Factor, rule: Rule, parts: Mapping[str, StoredTensor], dtype: DType
) -> View | None:
    """The layout of a weight in a value with these dims, ``original`` among its factors.

    None if no strides describe it, or if an axis that ``rule`` names is not an axis of it.
    """
    if any(len(axis) > 1 for axis in original.axes):
        return _cut_view(dims, original, rule, parts, dtype)
    axis_of = {axis[0]: number for number, axis in enumerate(original.axes) if axis}
    places: list[tuple[int, ...]] = []
    at = 0
    for dim in dims:
        places.append(tuple(axis_of[atom] for atom in range(at, at + len(dim))))
        at += len(dim)
    shape = parts[ORIGINAL].info.shape
    try:
        operations = tuple(_turned(operation, shape, places) for operation in rule.operations)
        laid = {role: _laid(tensor, places) for role, tensor in _along(rule, shape, parts)}
    except _NoViewError:
        return None
    return View(Rule(operations), tuple({**parts, **laid}.items()), dtype)


def _cut_view(
    dims: Dims, original: Factor, rule: Rule, parts: Mapping[str, StoredTensor], dtype: DType
) -> View | None:
    """The layout of a weight in which axes of its original are cut, as if it were stored in that shape."""
    sizes = [size for dim in dims for size in dim]
    cut = [tuple(sizes[atom] for atom in axis) or (1,) for axis in original.axes]
    firsts = [sum(map(len, cut[:axis])) for axis in range(len(cut))]

    def moved(operation: Operation) -> Operation:
        match operation:
            case Norm(dim=int(dim)) | Spectral(dim=int(dim)) | Unit(dim=int(dim)) | Over(dim=int(dim)):
                if len(cut[dim]) > 1:
                    raise _NoViewError  # rows that are cut are no axis
                return replace(operation, dim=firsts[dim])
        return operation

    axes = iter(atom for axis in original.axes for atom in axis)
    finer = tuple((next(axes),) if size > 1 else () for axis in cut for size in axis)
    try:
        turned = Rule(tuple(map(moved, rule.operations)))
    except _NoViewError:
        return None
    whole = {role: _finer(part, cut) for role, part in parts.items() if role in (ORIGINAL, DIVISOR, "mask")}
    return weight_view(dims, replace(original, axes=finer), turned, {**parts, **whole}, dtype)


def _finer(stored: StoredTensor, cut: Sequence[Sequence[int]]) -> StoredTensor:
    """The same elements with each axis cut in parts of these sizes."""
    strides = [
        stride * inner
        for stride, sizes in zip(stored.strides, cut, strict=True)
        for inner in contiguous_strides(tuple(sizes))
    ]
    shape = tuple(size for sizes in cut for size in sizes)
    return replace(stored, info=replace(stored.info, shape=shape), strides=tuple(strides))


class _NoViewError(Exception):
    """A layout that no strides describe."""


def _turned(operation: Operation, shape: Shape, places: Sequence[tuple[int, ...]]) -> Operation:
    """The operation with its dim as an axis of a layout."""
    match operation:
        case Norm(dim=int(dim)) | Over(dim=int(dim)):
            # One norm for all is that of the whole tensor.
            return replace(operation, dim=_place(dim, places) if shape[dim] != 1 else None)
        case Spectral(dim=int(dim)):
            return Spectral(_place(dim, places) if shape[dim] != 1 else _place(None, places))
        case Standardize(dim=int(dim)) | Unit(dim=int(dim)):
            return replace(operation, dim=_place(dim, places))
    return operation


def _place(axis: int | None, places: Sequence[tuple[int, ...]]) -> int:
    """The axis of a layout that is an axis of the original; None: any of size 1."""
    wanted = () if axis is None else (axis,)
    if wanted not in places:
        raise _NoViewError
    return places.index(wanted)


def _along(rule: Rule, shape: Shape, parts: Mapping[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors that run along several axes of the original, each with as many axes."""
    yield ORIGINAL, parts[ORIGINAL]
    for operation in rule.operations:
        match operation:
            case Mask():
                yield "mask", parts["mask"]
            case Over():
                yield DIVISOR, parts[DIVISOR]
            case Spectral(dim=int(dim)):
                yield "v", parts["v"].shaped((*shape[:dim], 1, *shape[dim + 1 :]))


def _laid(stored: StoredTensor, places: Sequence[tuple[int, ...]]) -> StoredTensor:
    """The elements of a tensor in a layout, each axis of which is some of its own."""
    shape = [math.prod(stored.info.shape[axis] for axis in axes) for axes in places]
    strides = [stored.strides[axes[-1]] if axes else 0 for axes in places]
    for axes in places:
        for outer, inner in pairwise(axes):
            if stored.strides[outer] != stored.strides[inner] * stored.info.shape[inner]:
                raise _NoViewError
    for place in reversed(range(len(shape))):
        if shape[place] == 1:  # any stride is right; this is torch's choice
            behind = place + 1
            strides[place] = strides[behind] * shape[behind] if behind < len(shape) else 1
    info = TensorInfo(stored.info.name, stored.info.dtype, tuple(shape))
    return replace(stored, info=info, strides=tuple(strides))


class NoCodesError(Exception):
    """Why a weight cannot be stored as codes."""


def codes_in(view: View, made: Dequantized, opset: int) -> Quantization:
    """The scheme of codes of which a weight's original is ``made``, for the weight in its layout.

    Raises ``NoCodesError`` where there is none, or where the opset has no such codes.
    """
    how, own = made.how, contiguous_strides(made.codes.info.shape)
    if how.dtype.is_float8:
        raise NoCodesError(f"its codes are {how.dtype}")
    if how.axis is not None:
        laid = zip(view.original.info.shape, view.original.strides, strict=True)
        place = made.codes.info.shape[how.axis], own[how.axis]
        axis = next((at for at, each in enumerate(laid) if each == place), None)
        if axis is None or (how.block and view.original.strides != own):
            raise NoCodesError("its weight lies in another order than its codes")
        how = replace(how, axis=axis)
    plain = how.dtype.name in {"int8", "uint8"} and not how.block
    needed = 21 if not plain else 13 if how.axis is not None else 10
    if opset < needed:
        raise NoCodesError(f"such codes need opset {needed}")
    return how


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
    gone: Collection[int] = (),
) -> tuple[ViewTree, ...]:
    """The trees of the views of one weight in one graph or function, without those that nothing uses.

    ``given`` are views that a function gets as inputs: their trees are left out. A node that is ``gone``
    (the start of its record) does not count as a use.
    """
    parents = {value: _parent(index, value, values) for value in values}
    outside = set(given)
    wanted: dict[ValueId, list[ValueId]] = {}
    returned: dict[ValueId, list[ValueId]] = {}
    for value in values:
        root = _line(value, parents)[-1]
        if root in outside:
            continue
        if places := [value] * _uses(index, value, parents, gone):
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
    gone: Collection[int],
) -> int:
    """How many nodes use a value for anything but another view."""
    return sum(
        node.record.start not in gone and not any((path, name) in parents for name in node.outputs)
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
