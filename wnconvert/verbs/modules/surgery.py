"""Taking what computes a weight out of an ``nn.Module``, so that it is plain.

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

from wnconvert.layers.rules import ORIGINAL
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.memory import made_like
from wnconvert.verbs.modules.finding.chains import Link
from wnconvert.verbs.modules.finding.computed import HELD
from wnconvert.verbs.modules.finding.live import Live
from wnconvert.verbs.modules.undo import become, parametrized_class, refill

__all__ = ["fold_to", "hold", "made_as", "refresh_flat_weights", "settings_of", "take_out"]


def fold_to(live: Live, w: Tensor) -> None:
    """Put a plain weight in place of all that it is computed from, which may be another plain weight."""
    fleeting = live.chain.places[ORIGINAL].is_fleeting
    _put_plain(live.module, live.param, w, place_of=live.chain.below(live.module), fleeting=fleeting)
    if live.chain.links:
        take_out(live)


# -- out


def take_out(live: Live) -> None:
    """Remove what computes a weight and all that torch put beside it; the module then has no such weight."""
    module = live.module
    for link in live.chain.links:
        if link.home is not module:
            continue  # it is inside a parametrization, which goes as a whole
        if link.is_hook:
            _take_hook(module, link)
        else:
            _take_parametrizations(module, link.target)
        _forget(module, link.target)
    for name in live.chain.below(module):
        module._parameters.pop(name, None)
        module._buffers.pop(name, None)
        module._non_persistent_buffers_set.discard(name)


def _take_hook(module: nn.Module, link: Link) -> None:
    for hooks in (module._forward_pre_hooks, module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key in [key for key, hook in hooks.items() if _belongs(getattr(hook, "hook", hook), link)]:
            del hooks[key]
    module.__dict__.pop(link.target, None)


def _belongs(hook: object, link: Link) -> bool:
    """Whether a hook is the link's own, or one that torch put beside it."""
    if hook is link.by:
        return True
    return isinstance(hook, link.manner.helpers) and getattr(hook.fn, link.manner.target) == link.target  # type: ignore[attr-defined]


def _take_parametrizations(module: nn.Module, param: str) -> None:
    made_by = module._modules.get(HELD)
    if made_by is None or param not in made_by._modules:
        return  # the first of several has taken them
    cls = type(module)
    del made_by._modules[param]
    if made_by._modules:
        become(module, parametrized_class(cls, cls.__bases__[0], without=(param,)))
    else:
        del module._modules[HELD]
        become(module, cls.__bases__[0])


def _forget(module: nn.Module, param: str) -> None:
    """Remove torch's load hooks for a parametrized weight (which rename keys) and its cached value."""
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


def _put_plain(
    module: nn.Module, param: str, w: Tensor, *, place_of: Collection[str], fleeting: bool
) -> None:
    """Give a module a plain weight, in place of the first of ``place_of``, or at the end."""
    for home in (module._parameters, module._buffers):
        if home.get(param) is None:
            home.pop(param, None)  # None may hold the name
    hold(module, param, w, fleeting=fleeting)
    home = module._parameters if param in module._parameters else module._buffers
    items: dict[str, Any] = {}
    for name, value in home.items():
        if name in place_of:
            items.setdefault(param, w)
        items.setdefault(name, value)
    refill(home, items)


def hold(module: nn.Module, name: str, value: Tensor, *, fleeting: bool) -> None:
    """Give a module a Parameter or a buffer; ``fleeting`` says that a state dict leaves it out."""
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
