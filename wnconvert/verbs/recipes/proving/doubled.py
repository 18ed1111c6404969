"""A forward in float64, whatever dtype its code asks for; its layers may be handed other weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from wnconvert.frozen import dataclass
from wnconvert.verbs.recipes.tracing.constants import in_double
from wnconvert.verbs.recipes.tracing.trace import Operator, Trace, TracedStep

__all__ = ["Handed", "Ran", "in_float64", "places"]


#: Operators that one dtype needs and another does not; steps are counted without them.
_UNCOUNTED = frozenset("_to_copy to clone alias detach lift_fresh empty contiguous".split())


@dataclass(frozen=True, slots=True)
class Handed:
    """The weight of a layer, as the operator takes it, and its bias; None where it keeps what it has."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Ran:
    """What was seen of a forward: its operators' names; by their places, what some were handed and made."""

    names: list[str] = field(default_factory=list)
    handed: dict[int, Handed] = field(default_factory=dict)
    made: dict[int, Tensor] = field(default_factory=dict)


def places(trace: Trace) -> dict[TracedStep, int]:
    """The place of each step among those that are the same in every dtype."""
    every = [step for step in trace.steps if step.name not in _UNCOUNTED]
    return {step: place for place, step in enumerate(every)}


@contextlib.contextmanager
def in_float64(
    dtype: torch.dtype,
    *,
    layers: frozenset[int] = frozenset(),
    watched: frozenset[int] = frozenset(),
    instead: Mapping[int, Handed] | None = None,
    whole: Mapping[int, Tensor] | None = None,
) -> Iterator[Ran]:
    """Run what is inside in float64, though its code sees tensors of ``dtype`` wherever it asks.

    Code that chooses by the dtype of its input chooses as it does for ``dtype``. At the places ``layers``,
    what the operator is handed is kept, or taken from ``instead``; at the places ``watched``, some thousands
    of the elements that it makes. With ``whole``, all of them are kept there, and the forward goes on with
    what ``whole`` has for the place. Inputs and stored tensors must be float64.
    """
    ran = Ran()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Dressed(dtype), _Doubled(ran, layers, watched, instead or {}, whole):
            yield ran
    finally:
        torch.set_default_dtype(before)


class _Dressed(TorchFunctionMode):
    """Tensors say that they have another dtype than float64."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch's; the dtype of a tensor is answered in place of torch."""
        found = func(*args, **(kwargs or {}))
        return self.dtype if found is torch.float64 and func == _DTYPE else found


_DTYPE = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]  # torch's stubs have a plain attribute


class _Doubled(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is untyped
    """Every operator computes in float64."""

    def __init__(
        self,
        ran: Ran,
        layers: frozenset[int],
        watched: frozenset[int],
        instead: Mapping[int, Handed],
        whole: Mapping[int, Tensor] | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is untyped
        self.ran, self.layers, self.watched = ran, layers, watched
        self.instead, self.whole = instead, whole

    def __torch_dispatch__(
        self, func: Operator, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator on float64 tensors."""
        args, kwargs = in_double(args), in_double(kwargs or {})
        name = str(func._schema.name).partition("::")[2]
        if name in _UNCOUNTED:
            return func(*args, **kwargs)
        place = len(self.ran.names)
        self.ran.names.append(name)
        made = self._layer(place, name, func, args) if place in self.layers else func(*args, **kwargs)
        if place in self.watched:
            self._watch(place, made[0] if isinstance(made, (tuple, list)) else made)
        return made

    def _watch(self, place: int, made: Tensor) -> None:
        """Keep what is made at a place, and put in place of it what the forward is to go on with."""
        if self.whole is None:
            self.ran.made[place] = some_of(made)
            return
        self.ran.made[place] = made.clone()
        if place in self.whole:
            made.copy_(self.whole[place])

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, which takes seconds, only to keep that out of here."""
        return False

    def _layer(self, place: int, name: str, func: Operator, args: tuple[Any, ...]) -> Any:
        """Run a layer with what it is handed, or with what it is to be handed instead."""
        at = {"mm": (1, None), "addmm": (2, 0)}.get(name, (1, 2))
        bias = args[at[1]] if at[1] is not None and at[1] < len(args) else None
        self.ran.handed[place] = Handed(args[at[0]], bias)
        if place not in self.instead:
            return func(*args)
        instead = self.instead[place]
        bias = bias if instead.bias is None else instead.bias
        if name in ("mm", "addmm"):
            made = torch.ops.aten.mm.default(args[at[0] - 1], instead.weight)
            return made if bias is None else made + bias
        return func(args[0], instead.weight, bias, *args[3:])


_MOST = 1 << 14


def some_of(value: Tensor) -> Tensor:
    """At most some thousands of elements of a tensor, spread over all of it."""
    flat = value.reshape(-1)
    step = -(-flat.numel() // _MOST)
    return flat[:: step | 1].clone()
