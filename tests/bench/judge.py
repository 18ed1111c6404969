"""What folded weights and biases exactly are, and what people's own ways make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from mpmath import mp  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from wnconvert.layers.rules import AffineBefore, Neighbour, Norm, NormBefore, NormBehind, Rule, Standardize
from wnconvert.verbs.modules.folding.layers import by_channel

__all__ = ["exact_biases", "exact_weights", "usual"]

#: 2 to this power makes an integer of any float32.
_POWER = 149
_BITS = 300

_Parts: TypeAlias = Mapping[str, Tensor]
_Index: TypeAlias = tuple[int, ...]


# -- exactly


def exact_weights(rule: Rule, parts: _Parts, places: Tensor) -> Tensor:
    """Elements of a float32 weight, correctly rounded: 300 bits, then one rounding."""
    mp.prec = _BITS
    inner, norm, shape = _inner(rule, parts), rule.neighbour, tuple(parts["original"].shape)
    found = []
    for place in places.tolist():
        index = tuple(int(each) for each in np.unravel_index(place, shape))
        factor = mp.mpf(1) if norm is None else _factor(norm, _channel(norm, index, shape), parts)
        found.append(_nearest(inner(index) * factor))
    return torch.tensor(found, dtype=torch.float32)


def exact_biases(rule: Rule, parts: _Parts, places: Tensor) -> Tensor:
    """Elements of a float32 bias, correctly rounded, of a layer that a norm is folded into."""
    mp.prec = _BITS
    norm = rule.neighbour
    found = []
    for channel in places.tolist():
        old = _number(parts, "bias", channel)
        if isinstance(norm, NormBehind):
            mean, shift = _number(parts, "mean", channel), _number(parts, "beta", channel)
            found.append(_nearest((old - mean) * _factor(norm, channel, parts) + shift))
        elif norm is not None and norm.dim == 1:
            found.append(_nearest(old + _moved(rule, norm, parts, channel)))
        else:
            raise NotImplementedError(type(norm).__name__)
    return torch.tensor(found, dtype=torch.float32)


def _moved(rule: Rule, norm: Neighbour, parts: _Parts, out: int) -> Any:
    """What the shifts of a norm before a layer add to an output."""
    inner, shape = _inner(rule, parts), tuple(parts["original"].shape)
    pairs = []
    for rest in np.ndindex(shape[1:]):
        channel = _channel(norm, (out, *rest), shape)
        shift = _number(parts, "beta", channel)
        if not isinstance(norm, AffineBefore):
            shift -= _number(parts, "mean", channel) * _factor(norm, channel, parts)
        pairs.append((inner((out, *rest)), shift))
    return mp.fdot(pairs)


def _inner(rule: Rule, parts: _Parts) -> Callable[[_Index], Any]:
    """An element of the weight before any norm beside its layer."""
    w = parts["original"].double()
    operations = [each for each in rule.operations if each is not rule.neighbour]
    if not operations:
        values = w.numpy()
        return lambda index: mp.mpf(float(values[index]))
    (operation,) = operations
    if not isinstance(operation, (Standardize, Norm)) or operation.dim is None:
        raise NotImplementedError(type(operation).__name__)
    dim, rows = operation.dim, dict[int, tuple[Any, Any]]()

    def element(index: _Index) -> Any:
        at = index[dim]
        if at not in rows:
            row = w.select(dim, at)
            rows[at] = (
                _standard(operation, row, parts, at)
                if isinstance(operation, Standardize)
                else (mp.mpf(0), _number(parts, "g", at) / mp.sqrt(_sums(row)[2]))
            )
        mean, factor = rows[at]
        return (mp.mpf(w[index].item()) - mean) * factor

    return element


def _standard(operation: Standardize, row: Tensor, parts: _Parts, at: int) -> tuple[Any, Any]:
    """The mean and the factor of a row."""
    count, total, squares = _sums(row)
    mean = total / count
    variance = (squares - total * mean) / (count if operation.std == "biased" else count - 1)
    if operation.eps_at == "var":
        divisor = mp.sqrt(variance + mp.mpf(operation.eps))
    elif operation.eps_at == "std":
        divisor = mp.sqrt(variance) + mp.mpf(operation.eps)
    else:
        divisor = mp.sqrt(max(variance * operation.fan, mp.mpf(operation.eps)))
    gain = _number(parts, "gain", at) if operation.gain else mp.mpf(1)
    return mean, gain * mp.mpf(operation.scale) / divisor


def _sums(row: Tensor) -> tuple[int, Any, Any]:
    """The number of elements of a row, their sum and the sum of their squares, exactly: in integers."""
    values = [int(value * 2.0**_POWER) for value in row.reshape(-1).tolist()]
    total, squares = sum(values), sum(value * value for value in values)
    return len(values), mp.ldexp(mp.mpf(total), -_POWER), mp.ldexp(mp.mpf(squares), -2 * _POWER)


def _number(parts: _Parts, role: str, at: int) -> Any:
    """A number of a vector; 0 where there is none."""
    return mp.mpf(parts[role].reshape(-1)[at].item()) if role in parts else mp.mpf(0)


def _channel(operation: Neighbour, index: _Index, shape: tuple[int, ...]) -> int:
    """The channel of the norm that an element belongs to."""
    channel = index[operation.dim]
    if operation.dim == 1:
        channel += index[0] // (shape[0] // operation.groups) * shape[1]
    return channel


def _factor(operation: Neighbour, channel: int, parts: _Parts) -> Any:
    """What the elements of a channel are multiplied by for the norm."""
    gamma = _number(parts, "gamma", channel) if "gamma" in operation.roles else mp.mpf(1)
    if isinstance(operation, AffineBefore):
        return gamma
    return gamma / mp.sqrt(_number(parts, "variance", channel) + mp.mpf(operation.eps))


def _nearest(value: Any) -> float:
    """The float32 next to a number of many digits, decided among neighbours and not by two roundings."""
    guess = torch.tensor(float(value), dtype=torch.float32)
    ends = [guess, *(torch.nextafter(guess, torch.tensor(end)) for end in (float("inf"), -float("inf")))]
    return min((each.item() for each in ends), key=lambda each: abs(mp.mpf(each) - value))


# -- as people do it


def usual(rule: Rule, parts: _Parts) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias that people's own ways give, in float32.

    Those are torch's ``_weight_norm``, what timm's classes compute, and ``torch.nn.utils.fusion``; for norms
    before a layer, which torch has no function for, its formula in torch.
    """
    w, bias = parts["original"], parts.get("bias")
    for operation in rule.operations:
        if isinstance(operation, Standardize):
            w = _as_timm(operation, w, parts)
        elif isinstance(operation, Norm) and operation.dim is not None:
            w = torch._weight_norm(w, parts["g"], operation.dim)
        elif isinstance(operation, NormBehind):
            w, bias = _fused(operation, w, parts)
        elif isinstance(operation, (NormBefore, AffineBefore)):
            w, bias = _scaled(operation, w, parts)
        else:
            raise NotImplementedError(type(operation).__name__)
    return w, bias


def _as_timm(operation: Standardize, w: Tensor, parts: _Parts) -> Tensor:
    """Batch norm of the rows."""
    gain = parts["gain"].reshape(-1) * operation.scale if operation.gain else None
    rows = w.reshape(1, w.shape[0], -1)
    return nn.functional.batch_norm(
        rows, None, None, weight=gain, training=True, momentum=0.0, eps=operation.eps
    ).reshape(w.shape)


def _fused(operation: NormBehind, w: Tensor, parts: _Parts) -> tuple[Tensor, Tensor]:
    """torch's own functions for batch norm behind a layer."""
    mean, variance = parts["mean"], parts["variance"]
    gamma = parts.get("gamma", torch.ones_like(mean))
    beta = parts.get("beta", torch.zeros_like(mean))
    given = (parts.get("bias"), mean, variance, operation.eps, gamma, beta)
    if w.dim() == 2:
        weight, bias = fuse_linear_bn_weights(w, *given)
    else:
        weight, bias = fuse_conv_bn_weights(w, *given, transpose=operation.dim == 1)
    return weight.detach(), bias.detach()


def _scaled(operation: NormBefore | AffineBefore, w: Tensor, parts: _Parts) -> tuple[Tensor, Tensor | None]:
    """The formula of a norm before a layer, in torch."""
    factor = parts.get("gamma", torch.tensor(1.0))
    shift = parts.get("beta")
    if isinstance(operation, NormBefore):
        factor = factor * torch.rsqrt(parts["variance"] + operation.eps)
        shift = (0 if shift is None else shift) - parts["mean"] * factor
    bias = parts.get("bias")
    if shift is not None:
        moved = (w * by_channel(shift, operation, tuple(w.shape))).flatten(1).sum(1)
        bias = moved if bias is None else moved + bias
    return w * by_channel(factor, operation, tuple(w.shape)), bias
