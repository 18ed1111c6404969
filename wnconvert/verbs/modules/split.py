"""``split_module``: plain weights of a live ``nn.Module`` into g and v."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from wnconvert.errors import ArgumentError, NumbersError
from wnconvert.layers.dims import AUTO
from wnconvert.layers.schemes import Refused, Selection
from wnconvert.messages import listed
from wnconvert.numerics.splitting import split_array
from wnconvert.tensors.memory import array_of, made_like
from wnconvert.verbs.modules.find import (
    LiveFound,
    computed_by_hooks,
    find_live,
    layer_of,
    modules_with_names,
    reason_against_tensor,
)
from wnconvert.verbs.modules.selection import ON_META, TIED_FIX, Layers, first_wanted, raise_refused, select
from wnconvert.verbs.modules.surgery import (
    made_as,
    put_in,
    reason_against_form,
    refresh_flat_weights,
    settings_of,
)
from wnconvert.verbs.modules.undo import UndoableEdits
from wnconvert.verbs.options import check_form, selection_of

__all__ = ["split_module"]


def split_module(
    module: nn.Module,
    *,
    to: str | None = None,
    like: nn.Module | None = None,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dim: int | str | None = AUTO,
) -> Layers:
    """Split plain weights of a module into g and v in place, so that folding gives them back bit for bit.

    Which weights, and along which dim, is never guessed. Either ``layers`` (globs on names of weights) and
    ``dim`` (an axis; None, or torch's -1, for the norm of the whole tensor) say it. A glob with a wildcard
    takes float weights of two and more axes that are not an embedding's; a name takes any float weight.
    Or another module says it: ``like``, whose layers (those that ``layers`` and ``exclude`` choose), dims and
    forms are taken. ``to`` is the form, ``"parametrize"`` where neither says it.

    v is the very same Parameter as the weight was (with its ``.grad``, if any), but where rows are zero:
    these have no direction, get a uniform one and g = 0, in a new Parameter. g is a new Parameter of the
    weight's dtype and ``requires_grad``, with what was set on it (``weight.no_decay = True``). What is split
    already is left alone; what is tied stays tied.

    Returns the layers as they are now. Raises ``ArgumentError`` where the arguments do not say what to do,
    where a glob catches no weight that can be split, and where ``module`` lacks layers of ``like``;
    ``LayerError`` for weights that are refused, such as an integer one, one that is tied to a weight that is
    not split, or one whose ``weight_g`` would take the name of something else; ``NumbersError`` for NaN,
    infinities and norms that the dtype cannot hold. The module is unchanged then. Source:
    ``torch.nn.utils.parametrizations.weight_norm``.

    >>> model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 1, 3))
    >>> [(layer.name, layer.g.shape) for layer in split_module(model, layers="*.weight", dim=0)]
    [('0.weight', (8, 1, 1)), ('2.weight', (1, 1, 1))]
    """
    check_form(to)
    selection = selection_of(layers, exclude, dim)
    found = find_live(module)
    plain = _plain_weights(module)
    if like is None:
        chosen = _by_globs(plain, found, selection, to or "parametrize")
    else:
        chosen = _like(plain, found, find_live(like), selection, to)
    _refuse(chosen, plain)
    with UndoableEdits() as edits, torch.inference_mode(False), torch.no_grad():
        halves = _halves(chosen)
        edits.watch(weight.module for weight in chosen)
        for weight in chosen:
            g, v = halves[weight.key]
            del weight.module._parameters[weight.param]
            value = weight.w.detach().clone() if weight.form == "legacy" else weight.w
            put_in(weight.module, weight.param, g, v, value, dim=weight.dim, form=weight.form)
        refresh_flat_weights((weight.module, weight.param, weight.w.detach()) for weight in chosen)
        return Layers(
            layer_of(weight.name, weight.form, None if weight.dim == -1 else weight.dim, *halves[weight.key])
            for weight in chosen
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Plain:
    """A plain weight, under all of its names; why it cannot be split; how it is to be."""

    names: tuple[str, ...]
    module: nn.Module
    param: str
    w: nn.Parameter
    reason: str
    name: str = ""
    dim: int = -1
    form: str = ""

    @property
    def place(self) -> tuple[int, str]:
        """Equal for the same attribute of the same module."""
        return id(self.module), self.param

    @property
    def key(self) -> tuple[int, int]:
        """Equal where g and v are the same objects."""
        return id(self.w), self.dim


def _plain_weights(root: nn.Module) -> list[_Plain]:
    """Every Parameter that is a weight itself, and not what a weight is computed from."""
    found = []
    for module, prefixes in modules_with_names(root):
        if isinstance(module, ParametrizationList):
            continue
        computed = computed_by_hooks(module)
        inputs = {name: each for each in computed for name in each.inputs}
        targets = {each.target: each.kind for each in computed}
        for param, w in module._parameters.items():
            if w is None or (param in inputs and inputs[param].kind == "weight norm"):
                continue
            reason = reason_against_tensor("it", w)
            if param in inputs:
                reason = f"{inputs[param].kind} computes {inputs[param].target} from it"
            elif param in targets:
                reason = f"{targets[param]} has a hook that computes it"
            elif isinstance(module, torch.jit.ScriptModule):
                reason = "it is compiled into a TorchScript module"
            elif not reason and w.dim() == 0:
                reason = "it has no axes"
            found.append(_Plain(tuple(prefix + param for prefix in prefixes), module, param, w, reason))
    return found


def _by_globs(plain: list[_Plain], found: LiveFound, selection: Selection, form: str) -> list[_Plain]:
    if not selection.layers or selection.dim == AUTO:
        raise ArgumentError(
            "which weights to split, and along which dim, is not said",
            fix="layers=… and dim=… (0 is torch's default, None the whole tensor), or like=… a split module",
        )
    if not (selection.dim is None or type(selection.dim) is int):
        raise ArgumentError(f"dim {selection.dim!r} is no axis", fix="a number, or None for the whole tensor")
    taken: dict[tuple[int, str], _Plain] = {}
    for glob in selection.layers:
        one = Selection(layers=(glob,))
        caught = [weight for weight in plain if _takes(weight, glob)]
        if not caught and not any(map(one.wants, found.names)):
            choices = [weight.names[0] for weight in plain if _is_usual(weight)]
            raise ArgumentError(
                f"layers={glob!r} catches no weight that can be split",
                fix=f"a name or glob among: {listed(choices) or '(there is none)'}",
            )
        taken |= {weight.place: weight for weight in caught}
    named_so = ((weight, first_wanted(weight.names, selection)) for weight in plain if weight.place in taken)
    return [
        _along(replace(weight, name=name, form=form), selection.dim)
        for weight, name in named_so
        if name is not None
    ]


def _takes(weight: _Plain, glob: str) -> bool:
    """Whether a glob takes a weight; one with a wildcard is not meant for what nobody would split."""
    if glob in weight.names:
        return True
    usual = _is_usual(weight) or is_lazy(weight.w)  # of unknown rank: refused
    return usual and any(map(Selection(layers=(glob,)).wants, weight.names))


def _is_usual(weight: _Plain) -> bool:
    is_embedding = isinstance(weight.module, (nn.Embedding, nn.EmbeddingBag))
    return not weight.reason and weight.w.dim() > 1 and not is_embedding


def _along(weight: _Plain, dim: int | None) -> _Plain:
    """The weight with its dim as torch holds it, refused where it has no such axis."""
    if weight.reason or dim is None or dim == -1:
        return weight
    shape = tuple(weight.w.shape)
    if not -len(shape) <= dim < len(shape):
        return replace(weight, reason=f"its shape {shape} has no axis {dim}")
    return replace(weight, dim=dim % len(shape))


def _like(
    plain: list[_Plain], found: LiveFound, like: LiveFound, selection: Selection, form: str | None
) -> list[_Plain]:
    if selection.dim != AUTO:
        raise ArgumentError("like=… says the dims already", fix="leave dim=… out, or like=…")
    models, _ = select(like, selection, "taken as a model")
    if not like.layers:
        raise ArgumentError("like=… has no weight-normalized layer", fix="pass the module that has them")
    by_name = {name: weight for weight in plain for name in weight.names}
    missing: list[str] = []
    chosen: dict[tuple[int, str], _Plain] = {}
    for model in models:
        if any(name in found.names for name in model.names):
            continue
        weights = [by_name[name] for name in model.names if name in by_name]
        if not weights:
            missing.append(model.layer.name)
        for weight in weights:
            reason, shapes = weight.reason, (tuple(weight.w.shape), model.layer.v.shape)
            if not reason and shapes[0] != shapes[1]:
                reason = f"its shape is {shapes[0]}, that of like=… is {shapes[1]}"
            name = model.layer.name if model.layer.name in weight.names else weight.names[0]
            new = replace(weight, name=name, form=form or model.layer.form, reason=reason)
            new = _along(new, model.layer.dim)
            old = chosen.setdefault(weight.place, new)
            if not old.reason and (old.dim, old.form) != (new.dim, new.form):
                reason = f"like=… has layers of other dims or forms for {listed(weight.names)}"
                chosen[weight.place] = replace(old, reason=reason)
    if missing:
        raise ArgumentError(
            f"like=… has layers that the module lacks: {listed(missing)}",
            fix="layers=… or exclude=… choose those that both have",
        )
    return list(chosen.values())


def _refuse(chosen: list[_Plain], plain: list[_Plain]) -> None:
    refused = []
    for weight in chosen:
        reason = weight.reason or reason_against_form(weight.module, weight.param, weight.form)
        if reason:
            refused.append(Refused(weight.name, reason))
        elif weight.w.is_meta:
            refused.append(Refused(weight.name, *ON_META))
    ways = {weight.place: (weight.dim, weight.form) for weight in chosen}
    for weight in chosen:
        for other in plain:
            tied = other.w is weight.w and other.place != weight.place
            if tied and ways.get(other.place, ("",))[0] != weight.dim:
                reason = f"it is tied to {other.names[0]}, which is not split the same way"
                refused.append(Refused(weight.name, reason, TIED_FIX))
                break
    raise_refused(refused, "split")


def _halves(chosen: list[_Plain]) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """g and v by the weight that they are made of."""
    halves: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    bad: list[str] = []
    for weight in chosen:
        if weight.key in halves:
            continue
        try:
            w = array_of(weight.w)
            g, v = split_array(w, None if weight.dim == -1 else weight.dim)
        except NumbersError as error:
            bad.append(f"layer {weight.name}: {error.what}")
        else:
            of_g: Tensor = made_like(weight.w, g)
            vars(of_g).update(settings_of(weight.w))
            halves[weight.key] = of_g, weight.w if v is w else made_as(weight.w, v)
    if len(bad) == 1:
        where, _, what = bad[0].partition(": ")
        raise NumbersError(what, where=where, fix="exclude=… leaves it as it is")
    if bad:
        lines = "".join(f"\n  {line}" for line in bad[:10])
        more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise NumbersError(
            f"{len(bad)} weights cannot be split:{lines}{more}", fix="exclude=… leaves them as they are"
        )
    return halves
