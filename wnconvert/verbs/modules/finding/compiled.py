"""Layers that compiled code computes, TorchScript or a torch.fx graph: no change of attributes reaches it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor, fx, nn

from wnconvert.layers.find import find_pairs
from wnconvert.layers.rules import Norm
from wnconvert.layers.schemes import Selection
from wnconvert.tensors.tree import TensorInfo
from wnconvert.verbs.modules.finding.candidates import RefusedLive
from wnconvert.verbs.modules.finding.values import info_of

__all__ = ["compiled_layers"]


_SCRIPTED = "it is compiled into a TorchScript module, whose code would go on computing it"
_EXPORTED = "a torch.fx graph computes it, and would go on computing it"
_BEFORE_EXPORT = "convert the module before it is exported or traced"
#: torch's operators for g·v/‖v‖.
_OPERATORS = {"_weight_norm", "_weight_norm_interface"}


def compiled_layers(
    modules: Iterable[tuple[nn.Module, tuple[str, ...]]], kinds: Collection[str]
) -> Iterator[RefusedLive]:
    """The layers of these kinds in compiled modules, all refused; ``modules`` come with their prefixes."""
    every, selection = list(modules), Selection(kinds=tuple(kinds))
    scripted = [
        info
        for module, (prefix, *_) in every
        if isinstance(module, torch.jit.ScriptModule)
        for key, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if (info := info_of(f"{prefix}{key}", value)) is not None
    ]
    for name in _names_of_layers(scripted, selection):
        yield RefusedLive((name,), _SCRIPTED, "convert the module before it is scripted or traced")
    in_graphs = (
        name
        for module, (prefix, *_) in every
        if not isinstance(module, torch.jit.ScriptModule)
        for graph in _graphs_of(module)
        for name in _computed_in(graph, module, prefix, selection)
    )
    for name in dict.fromkeys(in_graphs):
        yield RefusedLive((name,), _EXPORTED, _BEFORE_EXPORT, in_graph=True)


def _graphs_of(module: nn.Module) -> Iterator[fx.Graph]:
    """The graphs that a module runs: that of a ``GraphModule``, those of a part of an unflattened program."""
    own = vars(module)
    for holder in (own, *map(vars, own.get("_call_modules", ()))):  # one for each call of a module
        yield from (held for name in ("_graph", "graph") if isinstance(held := holder.get(name), fx.Graph))


def _computed_in(graph: fx.Graph, module: nn.Module, prefix: str, selection: Selection) -> Iterator[str]:
    """The names of weights that a graph computes from tensors that it reads itself.

    They are known by their keys, as in an exported program; weight norm by torch's own operator, too.
    """
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    infos = [
        info
        for target in read
        if isinstance(value := _attribute(module, target), Tensor)
        and (info := info_of(prefix + target, value)) is not None
    ]
    yield from _names_of_layers(infos, selection)
    paired = {part.name for layer in find_pairs(infos, selection).layers for part in layer.tensors}
    for node in graph.nodes if Norm.kind in selection.kinds else ():
        if node.op == "call_function" and _operator(node) in _OPERATORS:
            v = _origin(node)
            if v.op == "get_attr" and prefix + str(v.target) not in paired:
                yield prefix + str(v.target)


def _origin(node: fx.Node) -> fx.Node:
    """What a node's first argument was made of, by way of casts and the like."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _operator(node: fx.Node) -> str:
    """The name of the function that a node calls, without its overload."""
    return str(getattr(node.target, "__name__", "")).partition(".")[0]


def _attribute(module: nn.Module, target: str) -> object:
    """What a graph reads under a dotted name; None if it is not there."""
    *path, last = target.split(".")
    for part in path:
        child = module._modules.get(part)
        if child is None:
            return None
        module = child
    value = module._parameters.get(last)
    return module._buffers.get(last, vars(module).get(last)) if value is None else value


def _names_of_layers(infos: Iterable[TensorInfo], selection: Selection) -> list[str]:
    found = find_pairs(infos, selection)
    return [*(layer.name for layer in found.layers), *(item.name for item in found.refused)]
