"""Surgery on instances of ``nn.Module``: weight norm taken out and put in, and all of it undone.

Edits go to the containers that ``nn.Module`` keeps (``_parameters``, ``_modules``, hooks), not through
attributes, so classes with a ``__setattr__`` of their own behave like any other. A ``Parametrized…`` class
may be shared by copies of a module, so it is never edited: the instance gets another class.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Mapping
from types import FunctionType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.weight_norm import WeightNorm

from wnconvert.live import Live, parametrizations_of

__all__ = ["Edits", "put_in", "put_plain", "refresh_flat_weights", "take_out"]

_CONTAINERS = ("_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_load_state_dict_pre_hooks")


class Edits:
    """Surgery on some modules that can be undone; as a context it is undone where an exception passes.

    Undoing puts back what the surgery changed, in its place and order, and leaves alone what others did to
    the modules since: hooks that they registered, Parameters that they replaced.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        every = {id(module): module for module in modules}
        for module in list(every.values()):
            held = module._modules.get("parametrizations")
            if held is not None:
                every[id(held)] = held
        self._snapshots = [_Snapshot(module) for module in every.values()]

    def __enter__(self) -> Edits:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.undo()
        else:
            for snapshot in self._snapshots:
                snapshot.settle()

    def undo(self) -> None:
        """Put everything back."""
        for snapshot in self._snapshots:
            snapshot.undo()


class _Snapshot:
    """What surgery may change of a module: its class, its own attributes, the contents of its containers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.cls = type(module)
        self.before = self._state()
        self.after: dict[str, dict[Any, Any]] | None = None

    def _state(self) -> dict[str, dict[Any, Any]]:
        own = self.module.__dict__
        return {"": dict(own)} | {name: dict(own[name]) for name in _CONTAINERS}

    def settle(self) -> None:
        """The surgery is done; what changes from now on, others change."""
        self.after = self._state()

    def undo(self) -> None:
        after = self._state() if self.after is None else self.after
        if type(self.module) is not self.cls:
            object.__setattr__(self.module, "__class__", self.cls)
        # The containers stay the same objects: handles of hooks refer to them.
        for name in _CONTAINERS:
            _undo(self.module.__dict__[name], self.before[name], after[name])
        own, before, now = self.module.__dict__, self.before[""], after[""]
        for key in {**before, **now}:
            if key not in before:
                own.pop(key, None)
            elif key not in now or now[key] is not before[key]:
                own[key] = before[key]


def _undo(container: dict[Any, Any], before: Mapping[Any, Any], after: Mapping[Any, Any]) -> None:
    """Undo what took ``before`` to ``after``; the order is that of ``before``, then what came since."""
    now = dict(container)
    container.clear()
    for key, value in before.items():
        if key not in after or after[key] is not value:
            container[key] = value
        elif key in now:
            container[key] = now[key]
    container.update({key: value for key, value in now.items() if key not in before and key not in after})


# -- out


def take_out(live: Live) -> None:
    """Take weight norm off a weight, and all that torch put beside it: the module has no such weight then."""
    module, param = live.module, live.param
    if live.layer.form == "legacy":
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if _is_norm_of(hook, param)]:
            del hooks[key]
        for half in (f"{param}_g", f"{param}_v"):
            module._parameters.pop(half, None)
            module._buffers.pop(half, None)
        module.__dict__.pop(param, None)
    else:
        held = module._modules["parametrizations"]
        assert held is not None  # noqa: S101 - the layer was found in it
        del held._modules[param]
        if held._modules:
            _give_own_class(module, without=param)
        else:
            del module._modules["parametrizations"]
            object.__setattr__(module, "__class__", type(module).__bases__[0])
    _forget(module, param)


def _is_norm_of(hook: object, param: str) -> bool:
    return isinstance(hook, WeightNorm) and hook.name == param


def _give_own_class(module: nn.Module, without: str = "") -> None:
    """A ``Parametrized…`` class of the instance's own, less one property."""
    cls = type(module)
    left_out = {without, "__dict__", "__weakref__"}
    namespace = {name: value for name, value in vars(cls).items() if name not in left_out}
    made: type = type(cls.__name__, cls.__bases__, namespace)
    object.__setattr__(module, "__class__", made)


def _forget(module: nn.Module, param: str) -> None:
    """Drop torch's load hooks for a weight (which rename keys) and its cached value."""
    hooks = module._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if _compat_name(hook) == param]:
        del hooks[key]
    parametrize._cache.pop((id(module), param), None)


def _compat_name(hook: object) -> str | None:
    """The weight that a load hook is for, where it is ``_weight_norm_compat_hook``."""
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


def put_plain(module: nn.Module, param: str, w: Tensor, *, place_of: Collection[str] = ()) -> None:
    """Give a module a plain weight, in the place of the first of some others, or at the end."""
    container = _home(module, w)
    items = list(container.items())
    container.clear()
    for name, value in items:
        if name in place_of:
            container.setdefault(param, w)
        container[name] = value
    container.setdefault(param, w)


def put_in(
    module: nn.Module, param: str, g: Tensor, v: Tensor, w: Tensor | None, *, dim: int, form: str
) -> None:
    """Give a module weight norm in a form, as torch's function for it does; g and v themselves, not copies.

    w is the legacy form's cached weight. ``dim`` is torch's: -1 stands for the whole tensor.
    """
    if form == "legacy":
        _put_legacy(module, param, g, v, dim)
        module.__dict__[param] = w
    else:
        _put_parametrize(module, param, g, v, dim)


def _put_legacy(module: nn.Module, param: str, g: Tensor, v: Tensor, dim: int) -> None:
    """As ``torch.nn.utils.weight_norm`` does it, but for its hook's place: before all others.

    In the other form those saw the weight of the moment too.
    """
    for name, value in ((f"{param}_g", g), (f"{param}_v", v)):
        _home(module, value)[name] = value
    hooks = module._forward_pre_hooks
    others = [key for key, hook in hooks.items() if not isinstance(hook, WeightNorm)]
    module.register_forward_pre_hook(WeightNorm(param, dim))
    for key in others:
        hooks[key] = hooks.pop(key)


def _put_parametrize(module: nn.Module, param: str, g: Tensor, v: Tensor, dim: int) -> None:
    """By ``torch.nn.utils.parametrizations.weight_norm`` itself, on a stand-in of one element."""
    if parametrizations_of(module):
        _give_own_class(module)  # torch would put the property on the class that copies share
    stand_in = torch.zeros((1,) * v.dim(), device="cpu")
    module._parameters[param] = nn.Parameter(stand_in, requires_grad=False)
    weight_norm(module, param, dim)
    made = parametrizations_of(module)[param]
    made._parameters.clear()
    for name, value in (("original0", g), ("original1", v)):
        _home(made, value)[name] = value
    for each in (module._modules["parametrizations"], made):
        if each is not None:
            each.training = module.training


def _home(module: nn.Module, value: Tensor) -> dict[str, Any]:
    container: dict[str, Any] = module._parameters if isinstance(value, nn.Parameter) else module._buffers
    return container


# -- recurrent layers


def refresh_flat_weights(edited: Iterable[tuple[nn.Module, str, Tensor | None]]) -> None:
    """Make ``_flat_weights`` of every RNN, LSTM and GRU among edited modules what its attributes are.

    Each item is a module, an edited weight of it and its value. Entries that are no Parameters are taken
    off their graph, on which they could not be deep-copied; the next forward renews them.
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
        module.flatten_parameters()  # one block of memory, where cuDNN computes it
