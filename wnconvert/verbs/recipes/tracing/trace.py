"""One forward of a module as data: every operator of torch's that it ran, on which tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from wnconvert.frozen import dataclass

__all__ = ["Operator", "Trace", "TracedStep", "TracedValue", "traced", "values_in"]


#: An operator of torch's dispatcher, such as ``aten.convolution.default``.
Operator: TypeAlias = Any


@dataclass(frozen=True, slots=True, eq=False)
class TracedValue:
    """A tensor of a forward at one moment; what is written in place is another value from then on.

    It equals itself alone, which is fast: there are many, and all are keys.
    """

    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class TracedStep:
    """An operator that ran: its arguments with values in place of tensors, and the values that it made.

    What it wrote in place is among its outputs, as the value that it has since then, and so are all views of
    that memory.
    """

    number: int
    operator: Operator
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[TracedValue, ...]

    @property
    def name(self) -> str:
        """The name of its operator, without namespace and overload: ``convolution``."""
        return str(self.operator._schema.name).partition("::")[2]

    @property
    def inputs(self) -> tuple[TracedValue, ...]:
        """The values among its arguments, as often as they stand there."""
        return tuple(values_in((self.args, self.kwargs)))

    def argument(self, name: str, otherwise: Any = None) -> Any:
        """The argument of this name in the operator's schema, or its default."""
        for place, each in enumerate(self.operator._schema.arguments):
            if each.name == name:
                if place < len(self.args):
                    return self.args[place]
                return self.kwargs.get(name, each.default_value if each.has_default_value() else otherwise)
        return otherwise


@dataclass(frozen=True)
class Trace:
    """One forward: its steps in order, and which values were there before it.

    ``stored`` are the parameters and buffers of the module, by all their names; ``given`` its inputs;
    ``constants`` other tensors that were there before; ``returned`` what it returns.
    """

    steps: tuple[TracedStep, ...]
    stored: Mapping[TracedValue, tuple[str, ...]]
    given: frozenset[TracedValue]
    constants: Mapping[TracedValue, Tensor]
    returned: frozenset[TracedValue]

    @cached_property
    def makers(self) -> Mapping[TracedValue, TracedStep]:
        """The step that made each value."""
        return {value: step for step in self.steps for value in step.outputs}

    @cached_property
    def users(self) -> Mapping[TracedValue, tuple[TracedStep, ...]]:
        """The steps that read each value; one that reads it twice stands there twice."""
        found: dict[TracedValue, list[TracedStep]] = {}
        for step in self.steps:
            for value in step.inputs:
                found.setdefault(value, []).append(step)
        return {value: tuple(steps) for value, steps in found.items()}

    @cached_property
    def sources(self) -> Mapping[TracedValue, frozenset[TracedValue]]:
        """The stored tensors on which each value depends that does not depend on an input, or on chance."""
        found: dict[TracedValue, frozenset[TracedValue]] = {
            value: frozenset((value,)) for value in self.stored
        }
        found |= {value: frozenset[TracedValue]() for value in self.constants}
        for step in self.steps:
            drawn = torch.Tag.nondeterministic_seeded in step.operator.tags
            if not drawn and all(value in found for value in step.inputs):
                of_all = frozenset[TracedValue]().union(*(found[value] for value in step.inputs))
                found |= dict.fromkeys(step.outputs, of_all)
        return found

    @cached_property
    def readers(self) -> Mapping[TracedValue, tuple[TracedStep, ...]]:
        """The steps that compute with an input and with something of a stored tensor, for each of these."""
        found: dict[TracedValue, list[TracedStep]] = {}
        for step in self.steps:
            if all(value in self.sources for value in step.inputs):
                continue
            for value in step.inputs:
                for source in self.sources.get(value, ()):
                    found.setdefault(source, []).append(step)
        return {value: tuple(steps) for value, steps in found.items()}

    @cached_property
    def named(self) -> Mapping[str, TracedValue]:
        """The stored tensors by their names."""
        return {name: value for value, names in self.stored.items() for name in names}

    @cached_property
    def shown(self) -> frozenset[TracedValue]:
        """The stored tensors of which something is returned."""
        return frozenset[TracedValue]().union(*(self.sources.get(value, ()) for value in self.returned))

    def is_live(self, step: TracedStep) -> bool:
        """Whether it computes with an input."""
        return any(value not in self.sources for value in step.outputs)

    def sole_user(self, value: TracedValue) -> TracedStep | None:
        """The only step that reads a value; None if there are several, or if it is returned too."""
        users = self.users.get(value, ())
        return users[0] if len(users) == 1 and value not in self.returned else None


def values_in(arguments: Any) -> Iterator[TracedValue]:
    """The values in arguments, also inside lists."""
    if isinstance(arguments, TracedValue):
        yield arguments
    elif isinstance(arguments, (tuple, list)):
        for each in arguments:
            yield from values_in(each)
    elif isinstance(arguments, Mapping):
        yield from values_in(list(arguments.values()))


def traced(module: nn.Module, call: Callable[[], Iterable[Tensor]], inputs: Iterable[Tensor]) -> Trace:
    """Trace a forward of ``module``: ``call`` runs it, on ``inputs``, and gives the tensors that it returns.

    The module may be on the meta device, and its inputs with it. It is run as it is: in eval mode only if it
    is in that. What ``call`` raises is not caught.

    >>> linear, x = nn.Linear(3, 2), torch.ones(1, 3)
    >>> [step.name for step in traced(linear, lambda: [linear(x)], [x]).steps]
    ['t', 'addmm']
    """
    recorder = _Recorder()
    names: dict[int, tuple[Tensor, list[str]]] = {}
    for kind in (module.named_parameters, module.named_buffers):
        for name, tensor in kind(remove_duplicate=False):
            names.setdefault(id(tensor), (tensor, []))[1].append(name)
    stored = {recorder.new(tensor): tuple(every) for tensor, every in names.values()}
    given = frozenset(recorder.new(tensor) for tensor in inputs)
    with torch.no_grad(), _plain_paths(), recorder:
        returned = list(call())
    last = frozenset(recorder.value(tensor) for tensor in returned)
    return Trace(tuple(recorder.steps), stored, given, dict(recorder.found), last)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is untyped
    """Records the steps of a forward. A tensor is known by its identity: all are held until the end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is untyped
        self.steps: list[TracedStep] = []
        self.found: dict[TracedValue, Tensor] = {}
        self._now: dict[int, tuple[Tensor, TracedValue]] = {}
        self._views: dict[int, list[Tensor]] = {}
        self._count = 0

    def __torch_dispatch__(
        self, func: Operator, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, and keep what it was given and what it made."""
        kwargs = kwargs or {}
        before, named = self._as_values(args), self._as_values(kwargs)
        made = func(*args, **kwargs)
        written = [
            value
            for each, value in zip(func._schema.arguments, args, strict=False)
            if each.alias_info is not None and each.alias_info.is_write
        ]
        written += [
            kwargs[each.name]
            for each in func._schema.arguments
            if each.name in kwargs and each.alias_info is not None and each.alias_info.is_write
        ]
        views = [view for each in _tensors_in(written) for view in self._views.get(_memory(each), ())]
        fresh = {id(tensor): tensor for tensor in _tensors_in([made, written, views])}
        outputs = tuple(self.new(tensor) for tensor in fresh.values())
        self.steps.append(TracedStep(len(self.steps), func, before, named, outputs))
        return made

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, which takes seconds, only to keep that out of here."""
        return False

    def new(self, tensor: Tensor) -> TracedValue:
        """The value that a tensor has from now on."""
        value = TracedValue(self._count, tuple(tensor.shape), tensor.dtype)
        self._count += 1
        if id(tensor) not in self._now:
            self._views.setdefault(_memory(tensor), []).append(tensor)
        self._now[id(tensor)] = tensor, value
        return value

    def value(self, tensor: Tensor) -> TracedValue:
        """The value of a tensor now; one that no step has made was there before."""
        if id(tensor) not in self._now:
            self.found[self.new(tensor)] = tensor
        return self._now[id(tensor)][1]

    def _as_values(self, arguments: Any) -> Any:
        if isinstance(arguments, Tensor):
            return self.value(arguments)
        if isinstance(arguments, (tuple, list)):
            return type(arguments)(self._as_values(each) for each in arguments)
        if isinstance(arguments, dict):
            return {key: self._as_values(each) for key, each in arguments.items()}
        return arguments


def _memory(tensor: Tensor) -> int:
    """What tells the memory of a tensor from others, for as long as the tensor is held."""
    if tensor.layout is not torch.strided:
        return -id(tensor)
    return int(tensor.untyped_storage()._cdata)


def _tensors_in(made: Any) -> Iterator[Tensor]:
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, (tuple, list)):
        for each in made:
            yield from _tensors_in(each)


@contextlib.contextmanager
def _plain_paths() -> Iterator[None]:
    """Have torch's transformer layers run operator by operator: their fast path hides the layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
