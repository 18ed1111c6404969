"""The third way to choose the layers to split: globs on names, and a dim."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from wnconvert.errors import ArgumentError
from wnconvert.layers.conventions import LEGACY
from wnconvert.layers.dims import g_shape
from wnconvert.layers.schemes import FORMS, Layer, Selection, owner_of, spelled
from wnconvert.messages import listed, option
from wnconvert.plan.record.history import origins
from wnconvert.plan.selection.scope import in_torch_order
from wnconvert.plan.selection.wanted import check_selection
from wnconvert.plan.split.candidates import Candidates, SplitRequest
from wnconvert.tensors.tree import StateDict, TensorInfo, Tree

__all__ = ["as_globs_say"]


def as_globs_say(
    tree: Tree, chosen: Sequence[StateDict], selection: Selection, to: str | None
) -> dict[str, SplitRequest]:
    """Request tensors that are named in full, and those like weights that a wildcard matches."""
    form = to or "parametrize"
    first = form if form in FORMS else LEGACY.form  # which becomes the form that is asked for
    wishes: dict[str, SplitRequest] = {}
    passed: dict[str, list[str]] = {}
    for state in chosen:
        there = Candidates(state, selection)
        plain = [name for name in state.tensors if name not in there.halves]
        for name in there.split:
            there.count(name)
        for name in filter(selection.wants, plain):
            info = state.tensors[name].info
            why = "" if name in selection.layers else _no_weight(info, there)
            if why:
                passed.setdefault(why, []).append(name)
            else:
                there.want(_layer_along(info, selection.dim, first))
        order = in_torch_order(there.order(), there.layers.values())
        wish = there.wish(order, form, names=[*plain, *there.split])
        said = _dims_of_record(tree, state, there.layers)
        wishes[state.path] = replace(wish, notes=(*wish.notes, *said))
    check_selection(selection, [name for wish in wishes.values() for name in wish.names], "weight")
    said = "; ".join(f"{why}: {listed(dict.fromkeys(names), 4)}" for why, names in passed.items())
    if passed and not any(wish.layers or wish.refused or wish.already for wish in wishes.values()):
        raise ArgumentError(
            f"{option('layers')} catches nothing that looks like a weight ({said})",
            fix="a name without wildcards is split whatever it looks like",
        )
    if passed:
        note = f"{option('layers')} catches what does not look like a weight, and is left as it is ({said})"
        first = next(iter(wishes))
        wishes[first] = replace(wishes[first], notes=(*wishes[first].notes, note))
    return wishes


def _dims_of_record(tree: Tree, state: StateDict, layers: Mapping[str, Layer]) -> Iterable[str]:
    """A note on each layer that was folded along another dim than the one it is split along."""
    steps = origins(tree.record, state.path, "fold")
    folded = {origin.layer.name: origin.layer for step in steps for origin in step}
    for name, layer in layers.items():
        was = folded.get(name, layer)
        if was.dim != layer.dim and not was.rows == layer.rows == 1:
            dims = ("none" if dim is None else str(dim) for dim in (was.dim, layer.dim))
            yield "{}: the record says that it was folded along dim {}; it is split along {}".format(
                name, *dims
            )


def _layer_along(info: TensorInfo, dim: int | str | None, form: str) -> Layer:
    """The pair that ``torch.nn.utils.weight_norm(module, name, dim)`` makes of a weight."""
    rank = len(info.shape)
    axis = None if dim == -1 or not isinstance(dim, int) else dim
    if axis is not None and -rank <= axis < rank:
        axis %= rank
    shape = g_shape(info.shape, axis)
    g, v = spelled(form, info.name) or ("", "")
    return Layer.of_pair(info.name, form, axis, replace(info, name=g, shape=shape), replace(info, name=v))


# Keys of spectral norm, prune and other parametrizations, whose plain weight is computed from them.
_COMPUTED = re.compile(r".*(?:_orig|_mask)|(?:.*\.)?parametrizations\..*", re.DOTALL)
_EMBEDDING = re.compile(r"emb|codebook|lookup|(?:^|[._])w[tp]e[._]", re.IGNORECASE)


def _no_weight(info: TensorInfo, there: Candidates) -> str:
    """Why a tensor that a wildcard matches does not look like a weight; empty if it does."""
    if info.name in there.parts:
        return "half of a pair"
    if not info.numel and len(info.shape) < 2:
        return "empty"
    if not info.dtype.foldable:
        return str(info.dtype)
    if len(info.shape) < 2:
        return f"{len(info.shape)}-D"
    if _COMPUTED.fullmatch(info.name):
        return "a part of another reparameterization"
    owner = owner_of(info.name)
    is_linear = f"{owner}bias" in there.state.tensors
    return "like an embedding" if len(info.shape) == 2 and _EMBEDDING.search(owner) and not is_linear else ""
