"""Arithmetic that makes each row of a tensor of the same row of others: it is done some rows at a time.

So it is of operators on elements. An input of which all rows are made alike has no axis of rows, and one that
has is cut along it. What makes a row of anything else is not cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wnconvert.onnx.file.tensors import CODES
from wnconvert.tensors.tree import Shape

__all__ = ["cut_in_rows"]


#: Operators whose every element is made of one of each input, those broadcast.
_ON_ELEMENTS = frozenset("Mul Div Reciprocal Clip Max Min Cast Identity".split())


class _NoRowsError(Exception):
    """The arithmetic makes a row of other rows, or of what is not known."""


def cut_in_rows(model: Any, shapes: Mapping[str, Shape]) -> dict[str, int] | None:
    """The inputs of a model that are to be cut in rows, each with its axis, to make rows of its only output.

    The rows of the output are its first axis. ``shapes`` are those of all values; sizes of rows that stand in
    the model are taken out of it, in place. None if it makes them in another way.
    """
    output = model.graph.output[0].name
    if not shapes[output]:
        return None
    try:
        axes = _axes(model.graph, shapes, output)
    except _NoRowsError:
        return None
    stored = {tensor.name for tensor in model.graph.initializer}
    cut = {name: axis for name, axis in axes.items() if axis is not None}
    if not stored.isdisjoint(cut):
        return None
    found = {port.name: cut[port.name] for port in model.graph.input if port.name in cut}
    nodes = _needed(model.graph, axes, output)
    sizing = (node for node in nodes if node.output[0] not in axes)
    if not found or any(not cut.keys().isdisjoint(node.input) for node in sizing):
        return None
    _take_sizes_out(model.graph, shapes, axes)
    _keep(model.graph, nodes)
    return found


def _axes(graph: Any, shapes: Mapping[str, Shape], output: str) -> dict[str, int | None]:
    """The axis of rows of each value that has elements in the output; None of one that has no such axis."""
    axes: dict[str, int | None] = {output: 0}
    for node in reversed(graph.node):
        if axes.keys().isdisjoint(node.output):
            continue
        if len(node.output) > 1:
            raise _NoRowsError
        for name, axis in _of_inputs(node, axes[node.output[0]], shapes):
            if axes.setdefault(name, axis) != axis:
                raise _NoRowsError
    return axes


def _of_inputs(node: Any, axis: int | None, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, int | None]]:
    """The inputs with elements of a node's output, each with its axis of rows, given that of the output."""
    names = [name for name in node.input if name]
    made = shapes[node.output[0]]
    if node.op_type == "Constant" and axis is None:
        return
    if node.op_type == "Transpose":
        order = next((list(each.ints) for each in node.attribute if each.name == "perm"), None)
        places = order or list(range(len(made)))[::-1]
        yield names[0], None if axis is None else places[axis]
        return
    if node.op_type in ("CastLike", "Expand"):
        names = names[:1]
    elif node.op_type not in _ON_ELEMENTS:
        raise _NoRowsError
    for name in names:
        own = shapes[name]
        at = -1 if axis is None else axis - (len(made) - len(own))
        yield name, at if at >= 0 and own[at] == made[axis or 0] and own[at] != 1 else None


def _needed(graph: Any, axes: Mapping[str, int | None], output: str) -> list[Any]:
    """The nodes that make an output, in their order, where no ``Expand`` asks how many rows there are.

    What tells the sizes may be made of tensors that are not cut beside some that are.
    """
    names, found = {output}, []
    for node in reversed(graph.node):
        if not names.isdisjoint(node.output):
            found.append(node)
            names.update(node.input[:1] if _expands_rows(node, axes) else node.input)
    return found[::-1]


def _expands_rows(node: Any, axes: Mapping[str, int | None]) -> bool:
    return node.op_type == "Expand" and axes.get(node.output[0]) is not None


def _keep(graph: Any, nodes: list[Any]) -> None:
    """Leave all other nodes out."""
    names = {node.output[0] for node in nodes}
    kept = [node for node in graph.node if node.output[0] in names]
    del graph.node[:]
    graph.node.extend(kept)


def _take_sizes_out(graph: Any, shapes: Mapping[str, Shape], axes: Mapping[str, int | None]) -> None:
    """Let ``Expand`` leave the axis of rows as it is: what it makes of it is repeated where it is used."""
    from onnx import helper

    for at, node in enumerate(graph.node):
        if _expands_rows(node, axes):
            made = node.output[0]
            sizes = [1 if place == axes[made] else size for place, size in enumerate(shapes[made])]
            name = f"sizes {at}"
            graph.initializer.append(helper.make_tensor(name, CODES["int64"], [len(sizes)], sizes))
            node.input[1] = name
