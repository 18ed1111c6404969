"""The verbs that fold a live module or migrate it to the other form."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wnconvert.errors import ArgumentError, NumbersError
from wnconvert.layers.schemes import Refused, Selection
from wnconvert.messages import options_as_python
from wnconvert.numerics.folding import fold_with_report
from wnconvert.numerics.rows import Problem, RowPolicy, raise_problems
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.memory import array_of, view_of
from wnconvert.verbs.modules.find import Live, find_live, modules_with_names
from wnconvert.verbs.modules.selection import ON_META, TIED_FIX, Layers, raise_refused, select
from wnconvert.verbs.modules.surgery import (
    fold_to,
    made_as,
    move_to,
    reason_against_form,
    refresh_flat_weights,
)
from wnconvert.verbs.modules.undo import UndoableEdits
from wnconvert.verbs.options import check_form, numbers_of, selection_of

__all__ = ["CopyError", "fold_module", "folded", "migrate_module", "refuse_meta", "weights_folded"]


AnyModule = TypeVar("AnyModule", bound=nn.Module)


def fold_module(
    module: nn.Module,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    zero_rows: str = "error",
    allow_nonfinite: bool = False,
) -> Layers:
    """Fold the weight-normalized layers of a module in place; twice is once.

    Each weight is computed from g and v (a cached ``.weight`` may be stale) and is what v was: a Parameter
    or a buffer on its device, in its dtype and shape, of its class, with its ``requires_grad`` and what was
    set on it (``v.no_decay = True``). It is a new Parameter without gradient or hooks: an optimizer must be
    made anew. Modules that share g and v share the weight, and are folded together or not at all; a shared
    module is folded once, and named by its first name. Weight norm's own hooks go, others stay.
    Options as for ``fold_state_dict``; of a shared module, every name is excluded if one is.

    Returns the layers as they were, with form and dim. Spectral norm and other reparameterizations are left
    alone; ``.others`` of the result names them.

    Raises ``ArgumentError`` where ``module`` is no ``nn.Module``, ``LayerError`` for layers under more than
    weight norm, inside TorchScript, on the meta device, with a g that does not fit, or tied to layers that
    are not chosen, and ``NumbersError`` for their numbers; the module is unchanged then. Source:
    ``torch.nn.utils.remove_weight_norm``.

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> model = nn.Sequential(weight_norm(nn.Conv1d(4, 8, 3)), nn.ReLU())
    >>> [(layer.name, layer.form, layer.dim) for layer in fold_module(model)]
    [('0.weight', 'parametrize', 0)]
    >>> type(model[0]).__name__, fold_module(model)
    ('Conv1d', ())
    """
    selection = selection_of(layers, exclude, "auto")
    numbers = numbers_of(zero_rows, allow_nonfinite=allow_nonfinite)
    with UndoableEdits() as edits:
        return _fold(module, selection, numbers, edits)


def folded(
    module: AnyModule,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    zero_rows: str = "error",
    allow_nonfinite: bool = False,
) -> AnyModule:
    """A folded deep copy of a module, which is left alone.

    Works where ``copy.deepcopy`` does not: legacy weight norm and recurrent modules keep weights that are
    part of a graph. Options and errors as for ``fold_module``; ``ArgumentError`` where a module cannot be
    copied for other reasons.

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> model = weight_norm(nn.Linear(3, 2))
    >>> list(folded(model).state_dict()), list(model.state_dict())[1:]
    (['bias', 'weight'], ['parametrizations.weight.original0', 'parametrizations.weight.original1'])
    """
    selection = selection_of(layers, exclude, "auto")
    numbers = numbers_of(zero_rows, allow_nonfinite=allow_nonfinite)
    _chosen(module, selection)  # what is refused need not be copied first
    copied = _copy(module)
    _fold(copied, selection, numbers, UndoableEdits())
    return copied


@contextmanager
def weights_folded(
    module: nn.Module,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    zero_rows: str = "error",
    allow_nonfinite: bool = False,
) -> Iterator[Layers]:
    """Fold a module for the length of a ``with`` block, which gets the layers; then all is as before.

    The very same Parameters come back, in their order, with the hooks, classes and caches of before, after
    an exception too. Other changes made inside the block stay (``eval()``, new hooks, batch statistics,
    parametrizations of other tensors); what is done to the folded weights is lost with them, so training,
    loading, and moving or casting the module belong outside. The module itself is changed, for all threads:
    only one may enter or leave such a block at a time. Options and errors as for ``fold_module``.

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> model = weight_norm(nn.Linear(3, 2))
    >>> with torch.no_grad(), weights_folded(model):
    ...     type(model).__name__, model(torch.zeros(1, 3)).shape
    ('Linear', torch.Size([1, 2]))
    >>> type(model).__name__
    'ParametrizedLinear'
    """
    selection = selection_of(layers, exclude, "auto")
    numbers = numbers_of(zero_rows, allow_nonfinite=allow_nonfinite)
    with UndoableEdits() as edits:  # undoes it too where an interrupt keeps `finally` from it
        try:
            yield _fold(module, selection, numbers, edits)
        finally:
            edits.undo()


def migrate_module(
    module: nn.Module, *, to: str = "parametrize", layers: Iterable[str] = (), exclude: Iterable[str] = ()
) -> Layers:
    """Take a module's layers to the ``"parametrize"`` or to the ``"legacy"`` form, in place.

    g and v stay the very same Parameters, so an optimizer goes on with them; hooks and names change as if
    torch's own function for that form had been applied. Layers in that form already are left alone. In the
    legacy form the cached weight is off any graph, so the module can be deep-copied until its next forward.
    The order of ``parameters()`` may change: it matters to an optimizer whose *state dict* is loaded later.
    In the legacy form the weight is computed before all other forward pre-hooks: one that reads the weight
    sees that of the moment, one that edits g or v (clamps it, say) takes effect one forward late.

    Returns the layers that were taken there, as they are now. Raises as ``fold_module`` does, but for
    numbers, ties and the meta device; ``LayerError`` where something else has a name that the form needs
    (``weight_g``, ``weight_v``; ``parametrizations``), and ``ArgumentError`` for another form. Source:
    ``torch.nn.utils.weight_norm`` and ``torch.nn.utils.parametrizations.weight_norm``.

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> model = weight_norm(nn.Linear(3, 2))
    >>> [layer.g.name for layer in migrate_module(model, to="legacy")]
    ['weight_g']
    >>> list(model.state_dict())
    ['bias', 'weight_g', 'weight_v']
    """
    check_form(to or "")
    chosen, others = select(find_live(module), selection_of(layers, exclude, "auto"), "migrated")
    moved = [live for live in chosen if live.layer.form != to]
    reasons = [(live, reason_against_form(live.module, live.param, to)) for live in moved]
    raise_refused((Refused(live.layer.name, reason, "") for live, reason in reasons if reason), "migrated")
    with UndoableEdits() as edits, torch.inference_mode(False), torch.no_grad():
        weights = [
            _value(live) if to == "legacy" or isinstance(live.module, nn.RNNBase) else None for live in moved
        ]
        edits.watch(live.module for live in moved)
        for live, w in zip(moved, weights, strict=True):
            move_to(live, w, to)
        refresh_flat_weights((live.module, live.param, w) for live, w in zip(moved, weights, strict=True))
        return Layers((live.in_form(to).layer for live in moved), others)


# -- the numbers


def _fold(module: nn.Module, selection: Selection, numbers: RowPolicy, edits: UndoableEdits) -> Layers:
    chosen, others = _chosen(module, selection)
    # What is made under inference_mode could not be trained later.
    with torch.inference_mode(False), torch.no_grad():
        weights = _folded_weights(chosen, numbers)
        edits.watch(live.module for live in chosen)
        for live, w in zip(chosen, weights, strict=True):
            fold_to(live, w)
        refresh_flat_weights((live.module, live.param, None) for live in chosen)
        edits.settle()
    return Layers((live.layer for live in chosen), others)


def _chosen(module: nn.Module, selection: Selection) -> tuple[tuple[Live, ...], dict[str, str]]:
    """The layers to fold, and what else is wanted; what is tied is chosen together."""
    found = find_live(module)
    chosen, others = select(found, selection, "folded")
    places = {(live.module, live.param) for live in chosen}
    left = {_objects(live): live.names[0] for live in found.layers if (live.module, live.param) not in places}
    reason = "it is tied to {}, which is not folded"
    tied = [(live.layer.name, left[_objects(live)]) for live in chosen if _objects(live) in left]
    raise_refused((Refused(name, reason.format(other), TIED_FIX) for name, other in tied), "folded")
    return chosen, others


def _folded_weights(chosen: Iterable[Live], numbers: RowPolicy) -> list[Tensor]:
    """The weight of each layer: one object where g and v are, one memory where theirs is."""
    every = list(chosen)
    refuse_meta(every, "folded")
    arrays: dict[object, Array] = {}
    made: dict[object, Tensor] = {}
    problems: list[tuple[str, tuple[Problem, ...]]] = []
    for live in every:
        bits = (view_of(live.g), view_of(live.v), live.layer.dim)
        if bits not in arrays:
            w, report = fold_with_report(array_of(live.v), array_of(live.g), live.layer.dim)
            arrays[bits] = w
            problems.append((f"layer {live.layer.name}", numbers.problems(report)))
        if _objects(live) not in made:
            made[_objects(live)] = made_as(live.v, arrays[bits])
    try:
        with options_as_python():
            raise_problems(problems)
    except NumbersError as error:
        error.fix = error.fix.replace('dtype="float32"', "module.float() before")
        raise
    return [made[_objects(live)] for live in every]


def refuse_meta(layers: Iterable[Live], done: str) -> None:
    """Raise ``LayerError`` for layers on the meta device, which have no numbers."""
    raise_refused((Refused(live.layer.name, *ON_META) for live in layers if _is_meta(live)), done)


def _is_meta(live: Live) -> bool:
    return live.g.is_meta or live.v.is_meta


def _objects(live: Live) -> tuple[object, ...]:
    return id(live.g), id(live.v), live.layer.dim


def _value(live: Live) -> Tensor:
    """What a layer's weight is now, as a tensor off any graph; rows without an answer go their way."""
    v = live.v.detach()
    if _is_meta(live):
        return torch.empty_like(v)
    return made_as(v, fold_with_report(array_of(v), array_of(live.g), live.layer.dim)[0])


# -- copies


class CopyError(ArgumentError):
    """A module that ``copy.deepcopy`` refuses."""


def _copy(module: AnyModule) -> AnyModule:
    """A deep copy of a module that may hold tensors which are part of a graph."""
    memo: dict[int, Any] = {}
    flat: list[tuple[nn.RNNBase, dict[str, Any]]] = []
    with torch.inference_mode(False), torch.no_grad():
        for each, _ in modules_with_names(module):
            held = [*vars(each).values()]
            if isinstance(each, nn.RNNBase):
                held += each._flat_weights
                lists = ("_flat_weights", "_flat_weight_refs")
                flat.append((each, {key: vars(each)[key] for key in lists if key in vars(each)}))
            memo |= {
                id(value): value.detach().clone()
                for value in held
                if isinstance(value, Tensor) and not value.is_leaf
            }
        try:
            return copy.deepcopy(module, memo)
        except Exception as error:
            raise CopyError(
                f"the module cannot be copied: {error}",
                fix="fold_module folds it in place, weights_folded for the length of a block",
            ) from error
        finally:
            for rnn, before in flat:  # copying an RNN makes it renew them
                vars(rnn).update(before)
