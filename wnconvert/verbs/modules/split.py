"""``split_module``: plain weights of a live ``nn.Module`` into g and v."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from wnconvert.errors import ArgumentError, NumbersError
from wnconvert.frozen import dataclass
from wnconvert.layers.dims import AUTO
from wnconvert.layers.rules import ORIGINAL, G
from wnconvert.layers.schemes import Refused, Selection
from wnconvert.messages import listed, raise_listed
from wnconvert.numerics.splitting import split_array
from wnconvert.tensors.memory import array_of, made_like
from wnconvert.verbs.modules.finding.computed import computed_by_hooks
from wnconvert.verbs.modules.finding.live import LiveFound, find_live
from wnconvert.verbs.modules.finding.values import Reason, layer_of, reason_against_tensor
from wnconvert.verbs.modules.finding.walk import modules_with_names
from wnconvert.verbs.modules.finding.wrappers import IN_FSDP, held_by_ddp, held_by_fsdp
from wnconvert.verbs.modules.forms import put_in, reason_against_form
from wnconvert.verbs.modules.selection import (
    ON_META,
    TIED_FIX,
    Layers,
    first_wanted,
    raise_refused,
    refuse_in_ddp,
    select,
)
from wnconvert.verbs.modules.surgery import made_as, refresh_flat_weights, settings_of
from wnconvert.verbs.modules.undo import UndoableEdits
from wnconvert.verbs.shared.options import DimOption, Form, check_form
from wnconvert.verbs.shared.selections import selection_of

__all__ = ["split_module"]


def split_module(
    module: nn.Module,
    *,
    to: Form | None = None,
    like: nn.Module | None = None,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dim: DimOption = AUTO,
) -> Layers:
    """Split plain weights of a module into g and v in place, so that folding gives them back bit for bit.

    The weights and their dim are never guessed. One way to choose them is ``layers`` (globs on names of
    weights) with ``dim`` (an axis; None, or torch's -1, for the norm of the whole tensor). A glob with a
    wildcard takes float weights of two and more axes, except those of embeddings; an exact name takes any
    float weight. The other way is ``like``, a module whose layers, dims and forms are copied (of the layers
    that ``layers`` and ``exclude`` choose). ``to`` is the form; the default is that of ``like``, else
    ``"parametrize"``.

    v is the same Parameter object as the weight (with its ``.grad``, if any). Only a weight with zero rows
    gets a new Parameter for v: a zero row has no direction, so it gets a uniform one, and g = 0. g is a new
    Parameter with the weight's dtype, ``requires_grad`` and attributes (``weight.no_decay = True``). Layers
    that are split already are left alone; tied weights stay tied.

    Returns the layers as they are now. Raises ``ArgumentError`` if the arguments do not choose weights and
    dim, if a glob matches no weight that can be split, or if ``module`` lacks layers of ``like``;
    ``LayerError`` for weights that are refused, such as an integer one, one that is tied to a weight that is
    not split, or one whose ``weight_g`` would take a name that is in use; ``NumbersError`` for NaN,
    infinities and norms that the dtype cannot hold. After an error the module is unchanged. Source:
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
    held = held_by_ddp(each for each, _ in modules_with_names(module))
    trained = ((weight.name, weight.module, (weight.w,)) for weight in chosen)
    refuse_in_ddp(trained, held, "split", "split the module before DistributedDataParallel wraps it")
    with UndoableEdits() as edits, torch.inference_mode(False), torch.no_grad():
        halves = _halves(chosen)
        edits.watch(weight.module for weight in chosen)
        for weight in chosen:
            g, v = halves[weight.key]
            del weight.module._parameters[weight.param]
            value = weight.w.detach().clone() if weight.form == "legacy" else weight.w
            put_in(weight.module, weight.param, {G: g, ORIGINAL: v}, weight, value, form=weight.form)
        refresh_flat_weights((weight.module, weight.param, weight.w.detach()) for weight in chosen)
        return Layers(
            layer_of(weight.name, weight.form, None if weight.dim == -1 else weight.dim, *halves[weight.key])
            for weight in chosen
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Plain:
    """A plain weight under all of its names.

    ``reason`` says why it cannot be split, if so, and ``fix`` what to do if not to exclude it; ``name``,
    ``dim`` and ``form`` say how to split it.
    """

    names: tuple[str, ...]
    module: nn.Module
    param: str
    w: nn.Parameter
    reason: str
    fix: str = ""
    name: str = ""
    dim: int = -1
    form: str = ""

    @property
    def place(self) -> tuple[int, str]:
        """A key that is equal for the same attribute of the same module."""
        return id(self.module), self.param

    @property
    def key(self) -> tuple[int, int]:
        """A key that is equal for weights that will share g and v."""
        return id(self.w), self.dim


def _plain_weights(root: nn.Module) -> list[_Plain]:
    """Every Parameter that is a weight itself, not one from which a weight is computed."""
    found = []
    modules = modules_with_names(root)
    sharded = held_by_fsdp(module for module, _ in modules)
    for module, prefixes in modules:
        if isinstance(module, ParametrizationList):
            continue
        computed = computed_by_hooks(module)
        inputs = {name: each for each in computed for name in each.inputs}
        targets = {each.target: each.kind for each in computed}
        for param, w in module._parameters.items():
            if w is None or (param in inputs and inputs[param].kind == "weight norm"):
                continue
            fix = ""
            if id(module) in sharded:
                reason, fix = IN_FSDP
            elif param in inputs:
                reason = f"{inputs[param].kind} computes {inputs[param].target} from it"
            elif param in targets:
                reason = f"{targets[param]} has a hook that computes it"
            elif isinstance(module, torch.jit.ScriptModule):
                reason = "it is compiled into a TorchScript module"
            else:
                against = reason_against_tensor("it", w) or Reason("" if w.dim() else "it has no axes")
                reason, fix = against.text, against.fix
            names = tuple(prefix + param for prefix in prefixes)
            found.append(_Plain(names, module, param, w, reason, fix))
    return found


def _by_globs(plain: list[_Plain], found: LiveFound, selection: Selection, form: str) -> list[_Plain]:
    if not selection.layers or selection.dim == AUTO:
        raise ArgumentError(
            "neither the weights to split nor their dim are given",
            fix="layers=… with dim=… (0 is torch's default, None the whole tensor), or like=… a split module",
        )
    if not (selection.dim is None or type(selection.dim) is int):
        raise ArgumentError(
            f"dim {selection.dim!r} is not an axis", fix="a number, or None for the whole tensor"
        )
    taken: dict[tuple[int, str], _Plain] = {}
    for glob in selection.layers:
        one = Selection(layers=(glob,))
        caught = [weight for weight in plain if _takes(weight, glob)]
        if not caught and not any(map(one.wants, found.names)):
            choices = [weight.names[0] for weight in plain if _is_usual(weight)]
            raise ArgumentError(
                f"layers={glob!r} matches no weight that can be split",
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
    """Whether a glob takes a weight; one with a wildcard takes only weights that are usually split."""
    if glob in weight.names:
        return True
    usual = _is_usual(weight) or is_lazy(weight.w)  # its rank is unknown: it is taken, and refused later
    return usual and any(map(Selection(layers=(glob,)).wants, weight.names))


def _is_usual(weight: _Plain) -> bool:
    is_embedding = isinstance(weight.module, (nn.Embedding, nn.EmbeddingBag))
    return not weight.reason and weight.w.dim() > 1 and not is_embedding


def _along(weight: _Plain, dim: int | None) -> _Plain:
    """The weight with its dim as torch stores it; refused if it has no such axis."""
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
        raise ArgumentError(
            "dim=… and like=… cannot be given together",
            fix="leave one of them out: like=… has the dims already",
        )
    models, _ = select(like, selection, "taken as a model")
    if not like.layers:
        raise ArgumentError("like=… has no weight-normalized layer", fix="pass a module that has some")
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
            fix="choose the layers that both have, by layers=… or exclude=…",
        )
    return list(chosen.values())


def _refuse(chosen: list[_Plain], plain: list[_Plain]) -> None:
    refused = []
    for weight in chosen:
        reason = weight.reason or reason_against_form(weight.module, weight.param, weight.form)
        if reason:
            refused.append(Refused(weight.name, reason, weight.fix))
        elif weight.w.is_meta:
            refused.append(Refused(weight.name, *ON_META))
    ways = {weight.place: weight.dim for weight in chosen}
    of_one: dict[int, list[_Plain]] = {}  # the weights that are one tensor
    for other in plain:
        of_one.setdefault(id(other.w), []).append(other)
    for weight in chosen:
        for other in of_one.get(id(weight.w), ()):
            if other.place != weight.place and ways.get(other.place, "") != weight.dim:
                reason = f"it is tied to {other.names[0]}, which is not split in the same way"
                refused.append(Refused(weight.name, reason, TIED_FIX))
                break
    raise_refused(refused, "split")


def _halves(chosen: list[_Plain]) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """g and v of each weight."""
    halves: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    bad: list[tuple[str, str]] = []
    for weight in chosen:
        if weight.key in halves:
            continue
        try:
            w = array_of(weight.w)
            g, v = split_array(w, None if weight.dim == -1 else weight.dim)
        except NumbersError as error:
            bad.append((f"layer {weight.name}", error.what))
        else:
            of_g: Tensor = made_like(weight.w, g)
            vars(of_g).update(settings_of(weight.w))
            halves[weight.key] = of_g, weight.w if v is w else made_as(weight.w, v)
    fix = f"exclude=… leaves {'it as it is' if len(bad) == 1 else 'them as they are'}"
    raise_listed(NumbersError, f"{len(bad)} weights cannot be split", bad, fix=fix)
    return halves
