"""Norms that a class computes by itself, of the tensors of one: x·scale + shift, told by numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from wnconvert.frozen import dataclass
from wnconvert.verbs.recipes.finding.fits import line, rounded
from wnconvert.verbs.recipes.tracing.constants import CannotReplayError, replayed, scalars_of, steps_behind
from wnconvert.verbs.recipes.tracing.trace import Trace, TracedStep, TracedValue

__all__ = ["Frozen", "frozen_in"]


_EXACT = 1e-10
_ROLES = {"running_var": "variance", "running_mean": "mean", "weight": "gamma", "bias": "beta"}


@dataclass(frozen=True, slots=True)
class Frozen:
    """A norm that is computed as x·scale + shift: its two steps, the tensors by their roles, and its eps."""

    steps: tuple[TracedStep, TracedStep]
    tensors: Mapping[str, TracedValue]
    eps: float


def frozen_in(trace: Trace) -> Iterator[Frozen]:
    """The norms of a trace that are a product and a sum with something of running statistics."""
    for step in trace.steps:
        if step.name not in ("mul", "mul_") or not trace.is_live(step):
            continue
        scale = _constant(trace, step)
        if scale is None or not any(_last(trace, value) == "running_var" for value in trace.sources[scale]):
            continue
        then = trace.sole_user(step.outputs[0])
        if then is None or then.name not in ("add", "add_") or then.argument("alpha") != 1:
            continue
        shift = _constant(trace, then)
        found = shift and _told(trace, (step, then), scale, shift)
        if found:
            yield found


def _constant(trace: Trace, step: TracedStep) -> TracedValue | None:
    """The one operand that is computed of stored tensors, of one element a channel."""
    found = [value for value in step.inputs if value in trace.sources]
    rank = len(step.outputs[0].shape)
    if len(found) != 1 or len(step.inputs) != 2:
        return None
    sizes = [1] * (rank - len(found[0].shape)) + list(found[0].shape)
    channels = step.outputs[0].shape[1] if rank > 1 else 0
    return found[0] if sizes == [1, channels] + [1] * (rank - 2) else None


def _last(trace: Trace, value: TracedValue) -> str:
    return trace.stored[value][0].rpartition(".")[2]


def _told(
    trace: Trace, steps: tuple[TracedStep, TracedStep], scale: TracedValue, shift: TracedValue
) -> Frozen | None:
    """The norm that scale and shift are of; None if they are something else."""
    sources = trace.sources[scale] | trace.sources[shift]
    tensors = {_ROLES.get(_last(trace, value), ""): value for value in sources}
    if "" in tensors or len(tensors) != len(sources) or not {"variance", "mean"} <= set(tensors):
        return None
    if any(len(value.shape) != 1 for value in sources):
        return None
    stream = torch.Generator().manual_seed(0)
    numbers = {value: _drawn(value, stream) for value in sources}
    numbers[tensors["variance"]] = 10.0 ** (numbers[tensors["variance"]].abs() * 8 - 8)
    try:
        factor, offset = (replayed(trace, value, numbers).reshape(-1) for value in (scale, shift))
    except CannotReplayError:
        return None
    by_role = {role: numbers[value] for role, value in tensors.items()}
    eps = _eps(factor, by_role, scalars_of(steps_behind(trace, scale)))
    if eps is None or not _near(offset, by_role["mean"] * -factor + by_role.get("beta", torch.zeros(()))):
        return None
    return Frozen(steps, tensors, eps)


def _drawn(value: TracedValue, stream: torch.Generator) -> Tensor:
    return torch.rand(value.shape, generator=stream, dtype=torch.float64) + 0.5


def _eps(factor: Tensor, numbers: dict[str, Tensor], written: tuple[float, ...]) -> float | None:
    gamma = numbers.get("gamma", torch.ones(()).double())
    divisor = (gamma / factor).square()
    found = line(numbers["variance"], divisor)
    if found is None:
        return None
    eps = max(0.0, found.start / found.slope)
    eps = 0.0 if eps <= 1e-6 * float(numbers["variance"].min()) else rounded(eps, written, 1e-6)
    return eps if _near(factor, gamma / torch.sqrt(numbers["variance"] + eps)) else None


def _near(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() <= _EXACT * (1 + other.abs())).all())
