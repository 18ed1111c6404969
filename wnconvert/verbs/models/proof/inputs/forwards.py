"""What a model takes: the arguments of its forward, told by the model, or by its class before it is built."""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, printable

__all__ = ["Forward", "class_promised", "forward_of", "forward_of_class"]


_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


@dataclass(frozen=True, slots=True)
class Forward:
    """The arguments of a model in order, and those of them that are needed.

    ``defaults`` are the others' values as Python writes them, by name. ``takes_others`` says whether inputs
    of other names are taken too (``**kwargs``), and ``who`` is what errors call it.
    """

    names: tuple[str, ...]
    needed: tuple[str, ...]
    takes_others: bool = False
    defaults: Mapping[str, str] = field(default_factory=dict)
    who: str = "forward"

    def check(self, names: Sequence[str]) -> None:
        """Raise ``ArgumentError`` for a name that is no argument, and for an input that is lacking.

        >>> Forward(("mel", "f0"), ("mel",)).check(["f0"])
        Traceback (most recent call last):
        wnconvert.errors.ArgumentError: forward needs mel too
        fix: give --input 'mel=float32[…]', with its dtype and shape
        """
        has = f"the inputs of {self.who} are: {listed(map(printable, self.names)) or '(there are none)'}"
        for name in names:
            if name not in self.names and (not self.takes_others or not name.isidentifier()):
                near = get_close_matches(name, self.names, 1)
                fix = f"did you mean {printable(near[0])}? {has}" if near else has
                free = [printable(each) for each in (*self.needed, *self.names) if each not in names]
                if free:
                    both = f"{free[0]}:{printable(name)}"
                    fix += f"; if {printable(name)} is the ONNX model's name of {free[0]}, give '{both}=…'"
                raise ArgumentError(f"the model has no input {printable(name)!r}", fix=fix)
        lacking = [name for name in self.needed if name not in names]
        if lacking:
            more = " ".join(f"--input '{printable(name)}=float32[…]'" for name in lacking[:4])
            raise ArgumentError(
                f"{self.who} needs {listed(map(printable, lacking))} too",
                fix=f"give {more}, with its dtype and shape",
            )


def forward_of(model: nn.Module | ExportedProgram) -> Forward:
    """What a model takes.

    >>> forward_of(nn.Linear(3, 2)).names
    ('input',)
    """
    if isinstance(model, ExportedProgram):
        names = tuple(map(str, model.graph_signature.user_inputs))
        return Forward(names, names, who="the exported program")
    if isinstance(model, torch.jit.ScriptModule):
        schema: Any = model.forward
        arguments = schema.schema.arguments[1:]
        needed = tuple(each.name for each in arguments if not each.has_default_value())
        defaults = {each.name: repr(each.default_value) for each in arguments if each.has_default_value()}
        return Forward(tuple(each.name for each in arguments), needed, defaults=defaults)
    return _of_parameters(inspect.signature(model.forward).parameters)


def forward_of_class(cls: type) -> Forward | None:
    """What all instances of a class take; None if a class gives its instances another forward, or has none.

    >>> forward_of_class(nn.Linear).needed
    ('input',)
    """
    if not issubclass(cls, nn.Module) or cls.forward is nn.Module.forward or _makes_its_own(cls):
        return None
    _, *parameters = inspect.signature(cls.forward).parameters.items()
    return _of_parameters(dict(parameters))


def class_promised(factory: object) -> type[nn.Module] | None:
    """The class of the model that a factory makes, if that is said before it is called; else None.

    A class makes its own instances, a classmethod of it that begins with ``from_`` too, and a function is
    annotated with what it returns. Not where a subclass, which may be returned as well, takes other inputs.

    >>> class_promised(nn.Linear).__name__
    'Linear'
    """
    made = factory if isinstance(factory, type) else _returned(factory)
    if made is None or not issubclass(made, nn.Module):
        return None
    others = () if made is factory else _subclasses(made)
    forward = forward_of_class(made)
    return made if all(forward_of_class(each) == forward for each in others) else None


def _returned(factory: Any) -> type | None:
    """The class that a function or a classmethod returns."""
    owner, name = getattr(factory, "__self__", None), getattr(factory, "__name__", "")
    if isinstance(owner, type):
        return owner if name.startswith("from_") else None
    with contextlib.suppress(Exception):  # names that are there for type checkers alone
        found = typing.get_type_hints(factory).get("return")
        return found if isinstance(found, type) else None
    return None


def _makes_its_own(cls: type[nn.Module]) -> bool:
    """Whether instances may be of another class, or have a forward of their own."""
    if cls.__new__ is not object.__new__:
        return True
    bases = cls.__mro__[: cls.__mro__.index(nn.Module)]
    found: list[Any] = [inspect.unwrap(vars(base)["__init__"]) for base in bases if "__init__" in vars(base)]
    return any(inspect.isfunction(init) and "forward" in init.__code__.co_names for init in found)


def _subclasses(cls: type) -> Iterator[type]:
    below: type
    for below in cls.__subclasses__():
        yield below
        yield from _subclasses(below)


def _of_parameters(parameters: Mapping[str, inspect.Parameter]) -> Forward:
    named = {name: each for name, each in parameters.items() if each.kind not in _VARIADIC}
    defaults = {
        name: repr(each.default)
        for name, each in named.items()
        if each.default is not inspect.Parameter.empty
    }
    return Forward(
        tuple(named),
        tuple(name for name in named if name not in defaults),
        len(named) < len(parameters),
        defaults,
    )
