"""Layers as folds of a recipe, however they were told: by a recipe, by names, by the user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wnconvert.layers.recipes import Op, RecipeFold, RecipeKind
from wnconvert.layers.rules import (
    AffineBefore,
    Equalized,
    Neighbour,
    NormBehind,
    Standardize,
    Unit,
)
from wnconvert.layers.schemes import Layer
from wnconvert.tensors.tree import Shape

__all__ = ["folds_of_layers"]


def folds_of_layers(layers: Iterable[Layer]) -> tuple[RecipeFold, ...]:
    """What a recipe would say of layers, each weight once; of kinds that keys prove it says nothing.

    >>> from wnconvert.layers.rules import ORIGINAL, Rule
    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> from wnconvert.tensors.tree import TensorInfo
    >>> w = TensorInfo("conv.weight", dtype_named("float32"), (8, 4, 3))
    >>> rule = Rule((NormBehind(0, 1e-5),))
    >>> layer = Layer("conv.weight", "plain", rule, {ORIGINAL: w}, norm="bn", bias="conv.bias")
    >>> (fold,) = folds_of_layers([layer])
    >>> fold.kind, fold.op, fold.eps
    ('norm behind', 'conv', 1e-05)
    """
    return tuple({(fold.weight, fold.has_norm): fold for layer in layers for fold in _folds(layer)}.values())


def _folds(layer: Layer) -> Iterator[RecipeFold]:
    shape = layer.original.shape
    for operation in layer.rule.operations:
        if isinstance(operation, Standardize):
            names = {role: layer.parts[role].name.rpartition(".")[2] for role in operation.roles}
            yield RecipeFold(
                "standardize",
                layer.name,
                eps=operation.eps,
                std=operation.std,
                eps_at=operation.eps_at,
                scale=operation.scale,
                fan=operation.fan,
                gain=names.get("gain", ""),
                shift=names.get("shift", ""),
                dim=operation.dim,
            )
        elif isinstance(operation, Unit):
            eps = operation.guard.eps if operation.guard else 0.0
            dim = operation.dim or 0
            yield RecipeFold("unit", layer.name, eps=eps, scale=float(operation.scale), dim=dim)
        elif isinstance(operation, Equalized):
            yield RecipeFold("equalized", layer.name, scale=operation.scale)
    if (neighbour := layer.rule.neighbour) is not None:
        yield _beside(layer, neighbour, shape)


def _beside(layer: Layer, neighbour: Neighbour, shape: Shape) -> RecipeFold:
    """The fold of the norm beside a layer."""
    behind = isinstance(neighbour, NormBehind)
    op: Op
    if (neighbour.dim == 0) == behind:
        op = "conv" if len(shape) > 2 else "linear"
    else:
        op = "conv_transpose" if len(shape) > 2 else "linear_transposed"
    kind: RecipeKind = "norm behind" if behind else "norm before"
    return RecipeFold(
        "affine before" if isinstance(neighbour, AffineBefore) else kind,
        layer.name,
        layer.norm,
        op=op,
        groups=neighbour.groups,
        eps=None if isinstance(neighbour, AffineBefore) else neighbour.eps,
        bias=layer.bias,
    )
