"""Frozen dataclasses with slots, whose methods are made when one of them is first asked for.

``dataclasses`` writes the methods of a class as texts and compiles each, which takes 0.4 ms. A command loads
a hundred and forty classes and makes objects of less than half of them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection
from importlib import import_module  # of dataclasses, which `--help` need not wait for
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, slots=False, **options):
        """The decorator ``dataclasses.dataclass``, which type checkers take it for.

        Of a class that is frozen and has slots, and no more ``options`` than ``eq`` and ``repr``, the methods
        are made later: what ``dataclasses`` refuses in it is raised when an object is first made.

        >>> from dataclasses import replace
        >>> @dataclass(frozen=True, slots=True)
        ... class Point:
        ...     x: int
        ...     y: int = 0
        >>> Point(1), Point(1) == Point(1, 0), replace(Point(1), y=2)
        (Point(x=1, y=0), True, Point(x=1, y=2))
        """
        if frozen and slots and options.keys() <= {"eq", "repr"}:
            return lambda cls: _slotted(cls, **options)
        return import_module("dataclasses").dataclass(cls, frozen=frozen, slots=slots, **options)


__all__ = ["dataclass"]


#: What ``dataclasses`` gives every frozen class; from Python 3.13 on a method for ``copy.replace`` too.
_ALWAYS = {
    "__init__",
    "__setattr__",
    "__delattr__",
    "__match_args__",
    "__dataclass_fields__",
    "__dataclass_params__",
}
_ALWAYS |= {"__replace__"} if sys.version_info >= (3, 13) else set()
#: One thread makes them; while it does, the fields of the class's bases are asked for.
_MAKING = threading.RLock()


class _Pending:
    """A method that is still to be made, with others, by a function that is given the class."""

    def __init__(self, make: Callable[[type], None]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, instance: object, asked: type) -> Any:
        self._make(self._owner)
        made = vars(self._owner)[self._name]
        return made.__get__(instance, asked) if hasattr(made, "__get__") else made


def _slotted(cls: type, *, eq: bool = True, repr: bool = True) -> type:  # noqa: A002 -- as in dataclasses
    """The class with slots for its fields, and its methods pending."""
    inherited = {name for base in cls.__mro__[1:] for name in vars(base).get("__slots__", ())}
    fields = [name for name, kind in cls.__annotations__.items() if not str(kind).startswith("ClassVar")]
    kept = {name: value for name, value in _definition(cls).items() if name not in fields}
    compared = {name for name in ("__eq__", "__hash__") if eq and kept.get(name) is None}
    shown = {name for name in ("__repr__",) if repr and name not in kept}
    making = (
        (_ALWAYS - kept.keys(), {"eq": False, "repr": False}),
        (compared | shown, {"eq": eq, "repr": repr, "init": False}),
    )
    methods: dict[str, Any] = {"__getstate__": _state, "__setstate__": _take_state, **kept}
    for names, options in making:
        make = _maker(cls, names, options)
        methods |= {name: _Pending(make) for name in names}
    slots = tuple(name for name in fields if name not in inherited)
    return type(cls)(cls.__name__, cls.__bases__, {**methods, "__slots__": slots})


def _definition(cls: type) -> dict[str, Any]:
    """What a class was defined with."""
    defined = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return {**defined, "__qualname__": cls.__qualname__}


def _maker(cls: type, names: Collection[str], options: dict[str, bool]) -> Callable[[type], None]:
    """A function that puts methods in their places, made once by ``dataclasses`` from a definition."""

    def make(target: type) -> None:
        with _MAKING:
            if any(isinstance(vars(target)[name], _Pending) for name in names):
                dataclasses = import_module("dataclasses")
                twin = type(cls)(cls.__name__, cls.__bases__, _definition(cls))
                made = vars(dataclasses.dataclass(frozen=True, **options)(twin))
                for name in names:
                    setattr(target, name, made[name])

    return make


def _state(self: Any) -> list[Any]:
    """The values of the fields, for pickles and copies."""
    return [getattr(self, name) for name in _stored(self)]


def _take_state(self: Any, state: list[Any]) -> None:
    """Have the values of another object."""
    for name, value in zip(_stored(self), state, strict=True):
        object.__setattr__(self, name, value)


def _stored(self: Any) -> list[str]:
    """The fields of which an object has values: ``__dataclass_fields__`` names those of its class, too."""
    return [each.name for each in import_module("dataclasses").fields(self)]
