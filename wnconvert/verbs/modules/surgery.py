"""Surgery on instances of ``nn.Module``: taking weight norm out, and putting it in.

The containers of ``nn.Module`` (``_parameters``, ``_modules``, hooks) are edited directly, not through
attributes, so a class with its own ``__setattr__`` behaves like any other.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.weight_norm import WeightNorm

from wnconvert.tensors.blocks import Array
from wnconvert.tensors.memory import made_like
from wnconvert.verbs.modules.finding.computed import is_on_class, parametrizations_of
from wnconvert.verbs.modules.finding.live import Live
from wnconvert.verbs.modules.undo import HELD, become, parametrized_class, refill

__all__ = [
    "fold_to",
    "made_as",
    "move_to",
    "put_in",
    "reason_against_form",
    "refresh_flat_weights",
    "settings_of",
]


def fold_to(live: Live, w: Tensor) -> None:
    """Put a plain weight in place of a layer's g and v."""
    (_, fleeting), halves = _fleeting(live), _halves(live)
    _put_plain(live.module, live.param, w, place_of=halves, fleeting=fleeting)
    _take_out(live)


def move_to(live: Live, w: Tensor | None, form: str) -> None:
    """Change a layer to a form; w is the cached weight of the legacy form."""
    fleeting = _fleeting(live)
    _take_out(live)
    put_in(live.module, live.param, live.g, live.v, w, dim=live.stated, form=form, fleeting=fleeting)


def _halves(live: Live) -> tuple[str, ...]:
    """The names of g and v, if they are in the module itself."""
    return (f"{live.param}_g", f"{live.param}_v") if live.layer.form == "legacy" else ()


def _fleeting(live: Live) -> tuple[bool, bool]:
    """Whether g and v are buffers that are not saved in a state dict."""
    if live.layer.form == "legacy":
        names, held = (f"{live.param}_g", f"{live.param}_v"), live.module
    else:
        names, held = ("original0", "original1"), parametrizations_of(live.module)[live.param]
    left_out = held._non_persistent_buffers_set
    return names[0] in left_out, names[1] in left_out


# -- out


def _take_out(live: Live) -> None:
    """Remove weight norm and all that torch put beside it; the module then has no such weight."""
    module, param = live.module, live.param
    if live.layer.form == "legacy":
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if _is_norm_of(hook, param)]:
            del hooks[key]
        for half in _halves(live):
            module._parameters.pop(half, None)
            module._buffers.pop(half, None)
            module._non_persistent_buffers_set.discard(half)
        module.__dict__.pop(param, None)
    else:
        made_by = module._modules[HELD]
        assert made_by is not None  # noqa: S101 - the layer was found in it
        cls = type(module)
        del made_by._modules[param]
        if made_by._modules:
            become(module, parametrized_class(cls, cls.__bases__[0], without=(param,)))
        else:
            del module._modules[HELD]
            become(module, cls.__bases__[0])
    _forget(module, param)


def _is_norm_of(hook: object, param: str) -> bool:
    return isinstance(hook, WeightNorm) and hook.name == param


def _forget(module: nn.Module, param: str) -> None:
    """Remove torch's load hooks for a weight (which rename keys) and its cached value."""
    hooks = module._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if _compat_name(hook) == param]:
        del hooks[key]
    parametrize._cache.pop((id(module), param), None)


def _compat_name(hook: object) -> str | None:
    """The weight that a load hook is for, if the hook is ``_weight_norm_compat_hook``."""
    function = getattr(hook, "hook", hook)
    if not isinstance(function, FunctionType) or function.__module__ != weight_norm.__module__:
        return None
    code = function.__code__
    if code.co_name != "_weight_norm_compat_hook":
        return None
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    name = cells["name"].cell_contents if "name" in cells else None
    return name if isinstance(name, str) else None


# -- in


def reason_against_form(module: nn.Module, param: str, form: str) -> str:
    """Why weight norm cannot be put on a weight, or ``""``: something else has a name that it needs."""
    if form == "legacy":
        needed = [f"{param}_g", f"{param}_v"]
    elif torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch cannot parametrize it inside a transform of torch.func"
    else:
        needed = [] if _is_torchs(module) else [HELD]
    taken = [f"the name {name} is taken by {what}" for name in needed if (what := _holder(module, name))]
    if not taken and param not in parametrizations_of(module) and is_on_class(module, param):
        return f"the name {param} is taken by an attribute of its class"
    return taken[0] if taken else ""


def _is_torchs(module: nn.Module) -> bool:
    """Whether torch made a module's ``parametrizations``, and the class that goes with them."""
    held = module._modules.get(HELD)
    if not isinstance(held, nn.ModuleDict) or not held._modules:
        return False
    made = parametrizations_of(module).keys() & vars(type(module)).keys()
    return made == held._modules.keys()


def _holder(module: nn.Module, name: str) -> str:
    """A description of whatever has a name in a module, or ``""``."""
    homes: dict[str, Mapping[str, object]] = {
        "Parameter": module._parameters,
        "buffer": module._buffers,
        "submodule": module._modules,
        "attribute": vars(module),
    }
    kind = next((kind for kind, home in homes.items() if name in home), "")
    if kind:
        return f"{'an' if kind == 'attribute' else 'a'} {kind} of the module"
    return "an attribute of its class" if is_on_class(module, name) else ""


def _put_plain(
    module: nn.Module, param: str, w: Tensor, *, place_of: Collection[str], fleeting: bool
) -> None:
    """Give a module a plain weight, in place of the first of ``place_of``, or at the end."""
    for home in (module._parameters, module._buffers):
        home.pop(param, None)  # None may hold the name
    _hold(module, param, w, fleeting=fleeting)
    home = module._parameters if param in module._parameters else module._buffers
    items: dict[str, Any] = {}
    for name, value in home.items():
        if name in place_of:
            items.setdefault(param, w)
        items.setdefault(name, value)
    refill(home, items)


def put_in(
    module: nn.Module,
    param: str,
    g: Tensor,
    v: Tensor,
    w: Tensor | None,
    *,
    dim: int,
    form: str,
    fleeting: tuple[bool, bool] = (False, False),
) -> None:
    """Give a module weight norm in a form, as torch's function for it does; g and v are not copied.

    w is the cached weight of the legacy form. ``dim`` is torch's: -1 stands for the whole tensor.
    ``fleeting`` says whether g and v are buffers that are not saved in a state dict.
    """
    if form == "legacy":
        holder, names = module, (f"{param}_g", f"{param}_v")
        _put_hook(module, WeightNorm(param, dim))
        module.__dict__[param] = w
    else:
        holder, names = _put_parametrization(module, param, v.dim(), dim), ("original0", "original1")
    for name, value, is_fleeting in zip(names, (g, v), fleeting, strict=True):
        _hold(holder, name, value, fleeting=is_fleeting)


def _put_hook(module: nn.Module, hook: WeightNorm) -> None:
    """Register the hook as ``torch.nn.utils.weight_norm`` does, but before all other hooks.

    In the parametrize form, too, the other hooks see the current weight.
    """
    hooks = module._forward_pre_hooks
    others = [key for key, other in hooks.items() if not isinstance(other, WeightNorm)]
    module.register_forward_pre_hook(hook)
    for key in others:
        hooks[key] = hooks.pop(key)


def _put_parametrization(module: nn.Module, param: str, rank: int, dim: int) -> nn.Module:
    """Apply ``torch.nn.utils.parametrizations.weight_norm`` itself, to a stand-in of one element."""
    cls, is_first = type(module), HELD not in module._modules
    # torch's function sets and deletes attributes; methods of the class that interfere are bypassed.
    unminding = {name: vars(nn.Module)[name] for name in ("__getattr__", "__setattr__", "__delattr__")}
    become(module, type(f"Parametrized{cls.__name__}", (cls,), unminding))
    stand_in = torch.zeros((1,) * rank, device="cpu")
    module._parameters[param] = nn.Parameter(stand_in, requires_grad=False)
    weight_norm(module, param, dim)
    made = type(module)
    # torch adds a second property to the class that it made for the first, which copies share.
    become(
        module,
        parametrized_class(made, cls)
        if is_first
        else parametrized_class(cls, cls.__bases__[0], properties={param: vars(made)[param]}),
    )
    made_by = parametrizations_of(module)[param]
    made_by._parameters.clear()
    made_by.training = module.training
    if is_first:
        module._modules[HELD].training = module.training  # type: ignore[union-attr]
    return made_by


def _hold(module: nn.Module, name: str, value: Tensor, *, fleeting: bool) -> None:
    container: dict[str, Any] = module._parameters if isinstance(value, nn.Parameter) else module._buffers
    container[name] = value
    if fleeting and container is module._buffers:
        module._non_persistent_buffers_set.add(name)
    else:
        module._non_persistent_buffers_set.discard(name)


# -- tensors


def made_as(old: Tensor, array: Array) -> Tensor:
    """New elements as a tensor like ``old`` in class, attributes and memory format; shapes are equal."""
    with torch._C.DisableTorchFunctionSubclass():
        made: Tensor = made_like(old, array)
        if not old.is_contiguous():
            made.data = torch.empty_like(old).copy_(made.data)
        if type(old) not in (Tensor, nn.Parameter):
            made = made.detach().as_subclass(type(old)).requires_grad_(made.requires_grad)
    vars(made).update(settings_of(old))
    return made


def settings_of(tensor: Tensor) -> dict[str, Any]:
    """The attributes that a user set on a tensor, such as ``no_decay``, except tensors."""
    return {name: value for name, value in vars(tensor).items() if not isinstance(value, Tensor)}


# -- recurrent layers


def refresh_flat_weights(edited: Iterable[tuple[nn.Module, str, Tensor | None]]) -> None:
    """Update ``_flat_weights`` of every RNN, LSTM and GRU among edited modules to match its attributes.

    Each item is a module, the name of an edited weight, and its value. Entries that are not Parameters are
    detached, because tensors that are part of a graph cannot be deep-copied; the next forward renews them.
    """
    values: dict[int, dict[str, Tensor | None]] = {}
    modules = {}
    for module, param, w in edited:
        modules[id(module)] = module
        values.setdefault(id(module), {})[param] = w
    for key, module in modules.items():
        if isinstance(module, nn.RNNBase):
            _refresh(module, values[key])


def _refresh(module: nn.RNNBase, values: Mapping[str, Tensor | None]) -> None:
    own = module.__dict__
    value: Tensor | None
    flat: list[Tensor | None] = []
    for name, old in zip(own["_flat_weights_names"], own["_flat_weights"], strict=True):
        value = module._parameters.get(name)
        if value is None:
            value = values.get(name, old)
        flat.append(value.detach() if value is not None and not isinstance(value, nn.Parameter) else value)
    own["_flat_weights"] = flat
    own["_flat_weight_refs"] = [None if value is None else weakref.ref(value) for value in flat]
    if all(isinstance(value, nn.Parameter) for value in flat):
        module.flatten_parameters()  # one block of memory, for cuDNN
