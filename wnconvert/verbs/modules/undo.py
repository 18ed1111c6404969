"""Edits of modules that can be undone: all of them after a failure, or those that nobody has changed since.

A ``Parametrized…`` class may be shared by copies of a module, so it is never edited: the instance gets a
class of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from inspect import getattr_static
from types import TracebackType
from typing import Any

from torch import nn

from wnconvert.frozen import dataclass
from wnconvert.verbs.modules.finding.computed import HELD

__all__ = ["UndoableEdits", "become", "parametrized_class", "refill"]


_CONTAINERS = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_non_persistent_buffers_set",
)


class UndoableEdits:
    """Edits of some modules that can be undone; used in a ``with`` statement, an exception undoes them.

    Undoing puts back everything that the edits changed, in its place and order. It leaves alone what others
    did to the modules after ``settle``: hooks that they registered, Parameters that they replaced, other
    tensors that they parametrized. It may be interrupted and repeated: the state to restore is computed
    completely before anything is put back.
    """

    def __init__(self) -> None:
        self._before: list[_State] = []
        self._after: list[_State] | None = None
        self._undone: list[_State] | None = None

    def watch(self, modules: Iterable[nn.Module]) -> None:
        """Remember the modules as they are; the edits begin."""
        self._before = [_State.of(module) for module in {id(module): module for module in modules}.values()]

    def settle(self) -> None:
        """The edits are done; whatever changes from now on is changed by others."""
        self._after = [_State.of(state.module) for state in self._before]

    def __enter__(self) -> UndoableEdits:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.undo()

    def undo(self) -> None:
        """Put everything back; a second call changes nothing."""
        try:
            self._put_back()
        except BaseException:  # an interrupt: if only half were undone, g and v would be lost
            self._put_back()
            raise

    def _put_back(self) -> None:
        if self._undone is None:
            self._undone = (
                self._before
                if self._after is None
                else [_undone(*states) for states in zip(self._before, self._after, strict=True)]
            )
        for state in self._undone:
            state.restore()


@dataclass(frozen=True, slots=True)
class _State:
    """Everything of a module that edits may change: its class, attributes, and contents of its containers.

    ``held`` has the contents by the container's name; ``held["parametrizations"]`` is the content of the
    ``ModuleDict`` of that name.
    """

    module: nn.Module
    cls: type
    own: dict[Any, Any]
    held: dict[str, dict[Any, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> _State:
        """A module's state now."""
        own = module.__dict__
        held = {
            name: dict.fromkeys(own[name], True) if isinstance(own[name], set) else dict(own[name])
            for name in _CONTAINERS
        }
        made_by = module._modules.get(HELD)
        held[HELD] = dict(made_by._modules) if isinstance(made_by, nn.ModuleDict) else {}
        return cls(module, type(module), dict(own), held)

    def restore(self) -> None:
        """Restore the module; containers stay the same objects, because handles of hooks refer to them."""
        own = self.module.__dict__
        made_by = self.held["_modules"].get(HELD)
        if isinstance(made_by, nn.ModuleDict):
            refill(made_by._modules, self.held[HELD])
        for name in _CONTAINERS:
            refill(own[name], self.held[name])
        for key in [key for key in own if key not in self.own]:
            del own[key]
        own.update(self.own)
        become(self.module, self.cls)


def refill(container: Any, contents: Mapping[Any, Any]) -> None:
    """Give a container other contents."""
    container.clear()
    container.update(contents)


def become(module: nn.Module, cls: type) -> None:
    """Give an instance another class."""
    if type(module) is not cls:
        object.__setattr__(module, "__class__", cls)


def _undone(before: _State, after: _State) -> _State:
    """The state of a module after undoing the edits that took it from ``before`` to ``after``."""
    now = _State.of(before.module)
    held = {name: _merged(before.held[name], after.held[name], now.held[name]) for name in now.held}
    made_by, modules = held[HELD], held["_modules"]
    # A parametrization that others put on a weight that the edits made goes with that weight.
    homes = ("_parameters", "_buffers")
    for param in {key for home in homes for key in after.held[home] if key not in before.held[home]}:
        if param not in before.held[HELD]:
            made_by.pop(param, None)
    if made_by:
        modules[HELD] = before.held["_modules"].get(HELD, now.held["_modules"].get(HELD))
    elif now.held[HELD]:
        modules.pop(HELD, None)
    return _State(
        before.module,
        _class_of(before, after, now, made_by),
        _merged(before.own, after.own, now.own),
        held,
    )


def _merged(before: Mapping[Any, Any], after: Mapping[Any, Any], now: Mapping[Any, Any]) -> dict[Any, Any]:
    """``now`` without the changes from ``before`` to ``after``: the order of ``before``, then later items."""
    merged = {}
    for key, value in before.items():
        if key not in after or after[key] is not value:
            merged[key] = value
        elif key in now:
            merged[key] = now[key]
    return merged | {key: value for key, value in now.items() if key not in before and key not in after}


def _class_of(before: _State, after: _State, now: _State, made_by: Collection[str]) -> type:
    """The class with a property for each parametrized tensor, based on what others made of the class."""
    if now.cls is after.cls and now.held[HELD].keys() == after.held[HELD].keys():
        return before.cls
    if before.cls is after.cls and now.held[HELD].keys() == set(made_by):
        return now.cls
    base = now.cls.__bases__[0] if now.held[HELD] else now.cls
    if not made_by:
        return base
    names = {*before.held[HELD], *now.held[HELD]}
    found = {name: getattr_static(before.cls, name, getattr_static(now.cls, name, None)) for name in made_by}
    return parametrized_class(
        before.cls if before.held[HELD] else now.cls, base, without=names, properties=found
    )


def parametrized_class(
    like: type, base: type, *, without: Collection[str] = (), properties: Mapping[str, Any] | None = None
) -> type:
    """A new ``Parametrized…`` class for one instance: like ``like``, on ``base``, with other properties."""
    left_out = {*without, "__dict__", "__weakref__"}
    namespace = {name: value for name, value in vars(like).items() if name not in left_out}
    made: type = type(f"Parametrized{base.__name__}", (base,), namespace | dict(properties or {}))
    return made
