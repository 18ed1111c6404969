"""The layers of a live module with their magnitudes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from wnconvert.errors import LayerError
from wnconvert.layers.find import pairs_in
from wnconvert.layers.schemes import FORMS, Selection
from wnconvert.messages import options_as_python, told
from wnconvert.storage.workers import Workers
from wnconvert.tensors.memory import InMemory, is_torch, modules_named_in, stored_tensor, tree_of_values
from wnconvert.tensors.tree import StoredTensor, Tree
from wnconvert.verbs.inspection.forecast import fold_in_words, migrate_in_words, refusal_in_words
from wnconvert.verbs.inspection.inspect import inspect_tree
from wnconvert.verbs.inspection.magnitudes import LayerStats
from wnconvert.verbs.inspection.request import request_of
from wnconvert.verbs.inspection.result import Inspection
from wnconvert.verbs.modules.finding.live import LiveFound, find_live
from wnconvert.verbs.modules.finding.values import is_wrapper
from wnconvert.verbs.modules.folding.numbers import refuse_meta
from wnconvert.verbs.modules.selection import select

__all__ = ["inspect_module"]


def inspect_module(
    module: nn.Module,
    *,
    layers: Iterable[str] = (),
    full: bool = False,
    all_weights: bool = False,
) -> Inspection:
    """Inspect a module's state dict: its layers, their magnitudes, what folding would do.

    Options as for ``inspect_file``. Each layer's dim is the one that its module states. The notes name
    layers that are refused and why, weights under another reparameterization (``kinds`` counts these too),
    and pairs that look like layers only by their names.

    Raises ``ArgumentError`` if ``module`` is not an ``nn.Module`` and ``LayerError`` for layers on the meta
    device.

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> found = inspect_module(weight_norm(nn.Linear(3, 2), dim=None))
    >>> [(layer.name, layer.form, layer.dim) for layer in found.layers], found.fold
    ([('weight', 'parametrize', None)], 'would make 1 plain weight')
    """
    with options_as_python():
        live = find_live(module)
        refuse_meta(live.layers, "inspected")
        state = module.state_dict()
        values = {name: value for name, value in state.items() if not is_lazy(value)}
        dims = {name: item.layer.dim for item in live.layers for name in item.names}
        reasons = {name: item.reason for item in live.refused for name in item.names}
        tree = tree_of_values(
            values, stored=_stored, dims=dims, buffers=_buffers(module), modules=modules_named_in(state)
        )
        request = request_of(layers, full=full, all_weights=all_weights)
        found = inspect_tree(tree, InMemory(values), request, Workers(1), explained=reasons.keys())
        rows = tuple(replace(row, dim=dims.get(row.name, row.dim)) for row in found.layers)
        fold, migrate = _forecasts(tree, rows, live)
    notes = (*found.notes, *_notes(rows, live, reasons))
    return replace(found, layers=rows, fold=fold, migrate=migrate, notes=notes)


def _forecasts(tree: Tree, rows: Sequence[LayerStats], live: LiveFound) -> tuple[str, str]:
    """What fold and migrate would do to the module itself, where pairs are not layers by their keys."""
    try:
        select(live, Selection(), "folded")
    except LayerError as error:
        return refusal_in_words(error), refusal_in_words(error)
    state = tree.state_dict("")
    pairs = pairs_in(state).layers
    no_layers = {half.name for layer in pairs if layer.name not in live.names for half in layer.halves}
    entries = tuple(entry for entry in state.entries if entry.name not in no_layers)
    tree = Tree((replace(state, entries=entries),))
    return fold_in_words(tree, rows), migrate_in_words(tree)


def _stored(name: str, value: Any) -> StoredTensor | None:
    """A tensor as in a state dict; None for one that has no memory of its own (a FakeTensor)."""
    return None if is_torch(value) and is_wrapper(value) else stored_tensor(name, value)


def _buffers(module: nn.Module) -> Iterator[str]:
    return (name for name, _ in module.named_buffers(remove_duplicate=False))


def _notes(rows: Iterable[LayerStats], live: LiveFound, reasons: Mapping[str, str]) -> Iterator[str]:
    """Notes that only a live module gives."""
    yield from told(reasons.items(), " is refused: ", " are refused: ")
    others = {name: kind for names, kind in live.others.items() for name in names}
    alone = ((name, f"{kind}, which is left alone") for name, kind in others.items())
    yield from told(alone, " is under ", " are under ")
    by_keys = " by its keys only: torch has no weight norm on it, so it stays"
    by_their_keys = " by their keys only: torch has no weight norm on them, so they stay"
    rest = (row.name for row in rows if row.form in FORMS and row.name not in {*live.names, *others})
    yield from told(((name, "") for name in rest), f" is a layer{by_keys}", f" are layers{by_their_keys}")
