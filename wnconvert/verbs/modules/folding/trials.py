"""Small modules run by themselves: what one computes is told by running it, never by the name of its class.

A trial runs a bare copy: no hooks, float64 on the CPU, drawn numbers in place of its own. The module itself
is neither run nor changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import AffineBefore, NormBefore, NormBehind
from wnconvert.verbs.modules.finding.computed import tensor_of

__all__ = ["TRAINING", "bare", "drawn", "near", "on_axis", "ran", "remains_of", "why_not_affine"]


#: Why a norm in training mode is refused.
TRAINING = "it is in training mode, where it takes the mean and variance of the batch"

#: How far a module may be from what it should compute, as a part of the terms; some use float32 inside.
_NEAR = 1e-5
#: The numbers of axes of an input that are tried, after the most likely one.
_RANKS = (2, 3, 4, 5)


def bare(module: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy of a module without hooks, on the CPU and in float64; ``tensors`` replace its own, by name."""
    made: nn.Module = object.__new__(type(module))
    empty = vars(nn.Module())
    own = {
        key: (empty[key] if "hook" in key and key in empty else value) for key, value in vars(module).items()
    }
    vars(made).update(
        {key: _plain(value) if isinstance(value, Tensor) else value for key, value in own.items()}
    )
    given = tensors or {}
    for home in ("_parameters", "_buffers"):
        vars(made)[home] = {
            key: value if value is None else given[key] if key in given else _plain(value)
            for key, value in own[home].items()
        }
    vars(made)["_modules"] = {key: child and bare(child) for key, child in own["_modules"].items()}
    return made


def _plain(value: Tensor) -> Tensor:
    value = torch.zeros(value.shape) if value.is_meta else value.detach().cpu()
    return value.double() if value.is_floating_point() else value.clone()


def drawn(size: int, seed: int, low: float = -2.0, high: float = 2.0) -> Tensor:
    """Numbers between two bounds, the same for a seed; torch's random state is left alone."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, size))


def near(found: object, expected: Tensor, terms: Tensor) -> bool:
    """Whether a result is the expected tensor; ``terms`` are the sizes of what was added up for it."""
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    return bool(((found.double() - expected).abs() <= _NEAR * terms).all())


def ran(module: Callable[..., Any], x: Tensor) -> object:
    """What a module makes of an input, or None where it takes no such input."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        try:
            return module(x.clone())
        except Exception:  # noqa: BLE001 - whatever a user's class raises
            return None


def on_axis(values: Tensor, axis: int, rank: int) -> Tensor:
    """A vector that lies along an axis of tensors of so many axes."""
    return values.reshape([-1 if at == axis % rank else 1 for at in range(rank)])


def _inputs(channels: int, likely: int) -> Iterator[Tensor]:
    """Inputs of so many channels on axis 1."""
    for rank in dict.fromkeys((likely, *_RANKS)):
        shape = (3, channels, *(4, 3, 2)[: rank - 2])
        yield drawn(math.prod(shape), 11 + rank).reshape(shape)


@dataclass(frozen=True, slots=True, eq=False)
class _Statistics:
    """Drawn numbers of a norm, by the names of its tensors; small variances show what eps is."""

    numbers: Mapping[str, Tensor]
    operation: NormBehind | NormBefore

    @staticmethod
    def of(operation: NormBehind | NormBefore, channels: int) -> _Statistics:
        """Those of a norm of so many channels."""
        return _Statistics(
            {
                "weight": drawn(channels, 1),
                "bias": drawn(channels, 2),
                "running_mean": drawn(channels, 3),
                "running_var": 10 ** drawn(channels, 4, -6, 0),
            },
            operation,
        )

    def fitting(self, norm: nn.Module) -> dict[str, Tensor]:
        """Those that a norm has, in its shapes."""
        held = {name: tensor_of(norm, name) for name in self.numbers}
        return {name: self.numbers[name].reshape(old.shape) for name, old in held.items() if old is not None}

    def applied(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the norm makes of an input with channels on axis 1, and the sizes of its terms."""
        mean, variance, gamma, beta = (
            on_axis(self.numbers[name], 1, x.dim())
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        a = (gamma if self.operation.gain else 1) / torch.sqrt(variance + self.operation.eps)
        b = beta if self.operation.shift else torch.zeros_like(beta)
        return (x - mean) * a + b, (x.abs() + mean.abs()) * a.abs() + b.abs()


def remains_of(
    norm: nn.Module, operation: NormBehind | NormBefore, channels: int, rank: int
) -> tuple[type[nn.Module] | None, str]:
    """What remains of a norm with running statistics without the norm, or None and why nothing can.

    That is ``nn.Identity``, or ``nn.Sequential`` of what is in it: an activation. ``rank`` is the likely
    number of axes of its input.
    """
    drawn_numbers = _Statistics.of(operation, channels)
    known = (*drawn_numbers.numbers, "num_batches_tracked")
    held = {**norm._parameters, **norm._buffers}
    if beyond := [name for name, value in held.items() if value is not None and name not in known]:
        return None, f"it has a {beyond[0]} too"
    children = [child for child in norm._modules.values() if child is not None]
    trial = bare(norm, drawn_numbers.fitting(norm))
    rest = nn.Sequential(*map(bare, children))
    for x in _inputs(channels, rank):
        if not isinstance(found := ran(trial, x), Tensor):
            continue
        normed, terms = drawn_numbers.applied(x)
        expected = ran(rest, normed)
        if isinstance(expected, Tensor) and near(found, expected, terms.broadcast_to(expected.shape)):
            return (nn.Sequential if children else nn.Identity), ""
        if norm.training and remains_of(_evaluating(norm), operation, channels, rank)[0]:
            return None, TRAINING
        what = "the norm of the recipe" + " and what is in it" * bool(children)
        return (
            None,
            f"a {type(norm).__name__} computes something else than {what}, with eps {operation.eps:g}",
        )
    return None, f"a {type(norm).__name__} could not be run by itself"


def _evaluating(module: nn.Module) -> nn.Module:
    trial = bare(module)
    for each in trial.modules():
        each.training = False
    return trial


def why_not_affine(norm: nn.Module, operation: AffineBefore, channels: int) -> str:
    """Why what a norm multiplies by γ and adds as β is not an affine of its channels alone, or ``""``."""
    gamma, beta = drawn(channels, 1), drawn(channels, 2)
    ones = {
        "weight": torch.ones(channels, dtype=torch.float64),
        "bias": torch.zeros(channels, dtype=torch.float64),
    }
    trial = bare(norm, {"weight": gamma, "bias": beta} if operation.shift else {"weight": gamma})
    neutral = bare(norm, ones if operation.shift else {"weight": ones["weight"]})
    seen = False
    for rank in _RANKS:
        for axis in (-1, 1):
            shape = [3, 4, 3, 2, 5][:rank]
            shape[axis] = channels
            x = drawn(math.prod(shape), 11 + rank).reshape(shape)
            found, plain = ran(trial, x), ran(neutral, x)
            if not isinstance(found, Tensor) or not isinstance(plain, Tensor) or plain.shape != x.shape:
                continue
            seen = True
            a, b = (
                on_axis(gamma, axis, rank),
                on_axis(beta if operation.shift else torch.zeros_like(beta), axis, rank),
            )
            if near(found, plain * a + b, plain.abs() * a.abs() + b.abs() + 1e-12):
                return ""
    done = (
        "computes something else than a norm, times its weight, plus its bias"
        if seen
        else "could not be run by itself"
    )
    return f"a {type(norm).__name__} {done}"
