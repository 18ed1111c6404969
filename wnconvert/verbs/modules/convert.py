"""The verbs that fold a live module or migrate it to the other form."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import Recipe
from wnconvert.layers.schemes import Refused, Selection
from wnconvert.messages import options_as_python
from wnconvert.numerics.rows import RowPolicy, Wider
from wnconvert.verbs.modules.finding.live import Live, find_live
from wnconvert.verbs.modules.finding.walk import modules_with_names
from wnconvert.verbs.modules.finding.wrappers import held_by_ddp, under_ddp
from wnconvert.verbs.modules.folding.beside import NormEdit, besides_of, put_beside
from wnconvert.verbs.modules.folding.copies import AnyModule, copied
from wnconvert.verbs.modules.folding.numbers import folded_biases, folded_weights, weight_now
from wnconvert.verbs.modules.folding.places import places_in
from wnconvert.verbs.modules.folding.plain import PlainEdit, plain_edits, put_plain
from wnconvert.verbs.modules.folding.told import with_recipe
from wnconvert.verbs.modules.forms import move_to, reason_against_move
from wnconvert.verbs.modules.outside import read_from_outside, warn_of_changes
from wnconvert.verbs.modules.selection import TIED_FIX, Layers, raise_refused, refuse_in_ddp, select
from wnconvert.verbs.modules.surgery import fold_to, refresh_flat_weights
from wnconvert.verbs.modules.undo import UndoableEdits
from wnconvert.verbs.shared.options import Form, ZeroRows, check_form, numbers_of
from wnconvert.verbs.shared.recipes import recipe_given
from wnconvert.verbs.shared.selections import selection_of

__all__ = ["fold_module", "folded", "migrate_module", "weights_folded"]


_BEFORE_DDP = (
    "fold the module before DistributedDataParallel wraps it; after that fold a copy, folded(model.module), "
    "or fold for the length of a block, weights_folded(model)"
)


def fold_module(
    module: nn.Module,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    kinds: Iterable[str] = ("weight",),
    recipe: str | os.PathLike[str] | Recipe | None = None,
    zero_rows: ZeroRows = "error",
    allow_nonfinite: bool = False,
) -> Layers:
    """Fold the weight-normalized layers of a module in place; to fold again changes nothing.

    ``kinds`` are what is folded: ``"weight"``, ``"spectral"``, ``"prune"``, several of them, or ``"all"``; in
    stacks of these, too. Each weight is computed from the tensors that are stored for it (a cached
    ``.weight`` may be stale), spectral norm's as in eval mode, also while the module is in training mode. It
    takes after v (the original): a Parameter or a buffer, on v's device, in its dtype and shape, of its
    class, with its ``requires_grad`` and its attributes (``v.no_decay = True``). It is a new Parameter
    without gradient or hooks, so make a new optimizer. Modules that share all these tensors then share the
    weight, and are folded together or not at all; a shared module is folded once, under its first name. The
    hooks that computed the weights are removed, others stay. Options as for ``fold_state_dict``; excluding
    one name of a shared module excludes the module.

    ``recipe``, a ``Recipe`` or its file, says which norms go into which layers, upon whatever kinds compute a
    weight; the numbers are those of eval mode, rounded once. The norm becomes an ``nn.Identity``, or an
    ``nn.Sequential`` of the modules in it (an activation); the layer gets a bias like its weight. A norm
    whose statistics depend on its input stays, with an affine that does nothing. What a norm or a layer
    computes is told by running a copy of it, never by its class; hooks and modes stay. The state dict is then
    that of ``fold_state_dict`` with the same recipe.

    Returns the layers as they were, with form and dim. Kinds that are not asked for and other
    reparameterizations are left alone; ``.others`` of the result names them. A ``UserWarning`` says where
    outputs change, and by how much: of a legacy layer whose weight other code reads, so that it was never
    renewed (``MultiheadAttention.out_proj``).

    Raises ``ArgumentError`` if ``module`` is not an ``nn.Module``; ``LayerError`` for layers under more than
    these kinds, computed by a subclass of torch's in its own way, inside TorchScript, computed by a torch.fx
    graph (``exported_program.module()``), held by DistributedDataParallel or FSDP, on the meta device, with
    a g, u, v or mask that does not fit, or tied to layers that are not chosen, and where a recipe does not
    fit: names and shapes, a norm in training mode or one that computes more, modules with several names; and
    ``NumbersError`` for zero rows, a σ of 0, NaN and overflow. After an error the module is unchanged.
    Source: ``torch.nn.utils.remove_weight_norm``, ``remove_spectral_norm``, ``prune.remove``,
    ``parametrize.remove_parametrizations``.

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> model = nn.Sequential(weight_norm(nn.Conv1d(4, 8, 3)), nn.ReLU())
    >>> [(layer.name, layer.form, layer.dim) for layer in fold_module(model)]
    [('0.weight', 'parametrize', 0)]
    >>> type(model[0]).__name__, fold_module(model)
    ('Conv1d', Layers: 0 layers)

    >>> from wnconvert.layers.recipes import RecipeFold
    >>> net = nn.Sequential(nn.Conv1d(4, 8, 3, bias=False), nn.BatchNorm1d(8)).eval()
    >>> recipe = Recipe((RecipeFold("norm behind", "0.weight", "1", eps=1e-5),))
    >>> fold_module(net, recipe=recipe)[0].norm, list(net.state_dict())
    ('1', ['0.weight', '0.bias'])

    >>> from torch.nn.utils.parametrizations import spectral_norm
    >>> discriminator = spectral_norm(nn.Conv1d(4, 8, 3))
    >>> fold_module(discriminator).others, len(fold_module(discriminator, kinds="spectral"))
    ({'weight': 'spectral norm'}, 1)
    """
    selection = selection_of(layers, exclude, "auto", kinds, recipe_given(recipe))
    policy = _policy(zero_rows, allow_nonfinite=allow_nonfinite)
    with options_as_python(), UndoableEdits() as edits:
        chosen = _chosen(module, selection)
        _refuse_in_ddp(chosen, held_by_ddp(chosen.modules), _BEFORE_DDP)
        return _fold(chosen, policy, edits)


def folded(
    module: AnyModule,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    kinds: Iterable[str] = ("weight",),
    recipe: str | os.PathLike[str] | Recipe | None = None,
    zero_rows: ZeroRows = "error",
    allow_nonfinite: bool = False,
) -> AnyModule:
    """A folded deep copy of a module; the module itself is left alone.

    This works where ``copy.deepcopy`` fails: legacy weight norm and recurrent modules keep weights that are
    part of a graph. Options and errors as for ``fold_module``; ``ArgumentError`` if a module cannot be
    copied for another reason.

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> model = weight_norm(nn.Linear(3, 2))
    >>> list(folded(model).state_dict()), list(model.state_dict())[1:]
    (['bias', 'weight'], ['parametrizations.weight.original0', 'parametrizations.weight.original1'])
    """
    selection = selection_of(layers, exclude, "auto", kinds, recipe_given(recipe))
    policy = _policy(zero_rows, allow_nonfinite=allow_nonfinite)
    with options_as_python():
        chosen = _chosen(module, selection)  # a layer that is refused is reported before anything is copied
        _refuse_in_ddp(chosen, under_ddp(chosen.modules), "folded(model.module): copy what it wraps")
        made = copied(module)
        _fold(_chosen(made, selection), policy, UndoableEdits())
    return made


@contextmanager
def weights_folded(
    module: nn.Module,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    kinds: Iterable[str] = ("weight",),
    recipe: str | os.PathLike[str] | Recipe | None = None,
    zero_rows: ZeroRows = "error",
    allow_nonfinite: bool = False,
) -> Iterator[Layers]:
    """Fold a module for the length of a ``with`` block, and restore it at the end.

    ``as`` gives the layers. The same Parameter objects come back, in their order, with their hooks, classes
    and caches, also after an exception. Other changes made inside the block stay (``eval()``, new hooks,
    batch statistics, parametrizations of other tensors). Changes of the folded weights are lost with them,
    so train, load, move or cast the module outside. DistributedDataParallel may be around it: its Parameters
    come back. The module itself is changed, for all threads: only one
    may enter or leave such a block at a time. Options and errors as for ``fold_module``.

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> model = weight_norm(nn.Linear(3, 2))
    >>> with torch.no_grad(), weights_folded(model):
    ...     type(model).__name__, model(torch.zeros(1, 3)).shape
    ('Linear', torch.Size([1, 2]))
    >>> type(model).__name__
    'ParametrizedLinear'
    """
    selection = selection_of(layers, exclude, "auto", kinds, recipe_given(recipe))
    policy = _policy(zero_rows, allow_nonfinite=allow_nonfinite)
    with UndoableEdits() as edits:  # undoes it too if an interrupt skips `finally`
        try:
            with options_as_python():
                layers_folded = _fold(_chosen(module, selection), policy, edits)
            yield layers_folded
        finally:
            edits.undo()


def migrate_module(
    module: nn.Module,
    *,
    to: Form = "parametrize",
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    kinds: Iterable[str] = ("weight",),
) -> Layers:
    """Change a module's layers to the ``"parametrize"`` or the ``"legacy"`` form, in place.

    ``kinds`` are those that torch has in both forms: ``"weight"``, ``"spectral"``, or both. g and v (the
    original, u and v) stay the same objects, so an optimizer goes on with them; hooks and names change as if
    torch's own function for that form had been applied. Layers that have that form already are left alone.
    Spectral norm computes the same in eval mode, bit for bit; while training, its forms iterate u and v in
    another order, so the next training step differs.
    In the legacy form the cached weight is not part of a graph, so the module can be deep-copied until its
    next forward. The order of ``parameters()`` may change, which matters if the *state dict* of an optimizer
    is loaded later. In the legacy form the weight is computed before all other forward pre-hooks: a hook
    that reads the weight sees the current one, a hook that edits g or v takes effect one forward late.

    Returns the layers that were changed, as they are now. Warns and raises as ``fold_module`` does, except
    for numbers, ties, the meta device and DistributedDataParallel; ``LayerError`` if something else has a
    name that the form needs (``weight_g``, ``weight_v``; ``parametrizations``), for prune, for stacks, and
    for spectral norm of a vector, which each form computes in another way; and ``ArgumentError`` for an
    unknown form. Source: ``torch.nn.utils.weight_norm``, ``torch.nn.utils.parametrizations.weight_norm``.

    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> model = weight_norm(nn.Linear(3, 2))
    >>> [layer.g.name for layer in migrate_module(model, to="legacy")]
    ['weight_g']
    >>> list(model.state_dict())
    ['bias', 'weight_g', 'weight_v']
    """
    check_form(str(to))  # here None is not a choice
    selection = selection_of(layers, exclude, "auto", kinds)
    chosen, others = select(find_live(module, selection.kinds), selection, "migrated")
    moved = [live for live in chosen if live.layer.form != to]
    reasons = [(live, reason_against_move(live, to)) for live in moved]
    raise_refused((Refused(live.layer.name, reason) for live, reason in reasons if reason), "migrated")
    with UndoableEdits() as edits, torch.inference_mode(False), torch.no_grad():
        outside = read_from_outside(moved, [each for each, _ in modules_with_names(module)])
        weights = [
            weight_now(live)
            if to == "legacy" or isinstance(live.module, nn.RNNBase) or live in outside
            else None
            for live in moved
        ]
        warn_of_changes(outside, ((live, w) for live, w in zip(moved, weights, strict=True) if w is not None))
        edits.watch(live.module for live in moved)
        for live, w in zip(moved, weights, strict=True):
            move_to(live, w, to)
        refresh_flat_weights((live.module, live.param, w) for live, w in zip(moved, weights, strict=True))
        return Layers((live.again().layer for live in moved), others)


# -- the fold


def _policy(zero_rows: ZeroRows, *, allow_nonfinite: bool) -> RowPolicy:
    return replace(numbers_of(zero_rows, allow_nonfinite=allow_nonfinite), wider=Wider.BY_MODULE)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The layers to fold, what changes beside them, those of other classes, and all modules looked at.

    ``others`` are the wanted weights under another reparameterization.
    """

    layers: tuple[Live, ...]
    besides: tuple[NormEdit, ...]
    plain: tuple[PlainEdit, ...]
    others: dict[str, str]
    modules: list[nn.Module]


def _chosen(module: nn.Module, selection: Selection) -> _Chosen:
    """What to fold. Raises ``LayerError`` for a layer that is tied to one that is not chosen."""
    found, places = find_live(module, selection.kinds), places_in(module)
    found = with_recipe(module, found, selection, places)
    chosen, others = select(found, selection, "folded")
    at = {(live.module, live.param) for live in chosen}
    left = {live.key: live.names[0] for live in found.layers if (live.module, live.param) not in at}
    reason = "it is tied to {}, which is not folded"
    tied = [(live.layer.name, left[live.key]) for live in chosen if live.key in left]
    raise_refused((Refused(name, reason.format(other), TIED_FIX) for name, other in tied), "folded")
    plain = plain_edits(chosen)
    besides = besides_of(chosen, found.layers, {edit.live: edit.like for edit in plain}, places)
    return _Chosen(chosen, besides, plain, others, [each for each, _ in modules_with_names(module)])


def _refuse_in_ddp(chosen: _Chosen, held: Collection[int], fix: str) -> None:
    trained = ((live.layer.name, live.module, live.tensors.values()) for live in chosen.layers)
    refuse_in_ddp(trained, held, "folded", fix)


def _fold(chosen: _Chosen, policy: RowPolicy, edits: UndoableEdits) -> Layers:
    layers, besides = chosen.layers, chosen.besides
    # A tensor that is made under inference_mode could not be trained later.
    with torch.inference_mode(False), torch.no_grad():
        weights = folded_weights(layers, policy)
        biases = folded_biases((beside.live for beside in besides), policy)
        warn_of_changes(read_from_outside(layers, chosen.modules), zip(layers, weights, strict=True))
        edits.watch(
            [live.module for live in layers] + [each for beside in besides for each in beside.modules]
        )
        for live, w in zip(layers, weights, strict=True):
            fold_to(live, w)
        put_plain(chosen.plain)
        put_beside(besides, biases)
        refresh_flat_weights((live.module, live.param, None) for live in layers)
        edits.settle()
    return Layers((live.layer for live in layers), chosen.others)
