"""What a layer computes its weight by, told by numbers: standardized, unit or scaled rows, with which eps.

A weight is computed again on drawn numbers, and row by row it is held against w' = a·w + b. No name of a
class is looked at: of ten public classes of one name, one multiplies where the others divide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import RecipeFold
from wnconvert.verbs.recipes.finding.fits import Line, constant, line, near_to, rounded
from wnconvert.verbs.recipes.finding.layers import PARAMETRIZED, Linear, is_parametrized
from wnconvert.verbs.recipes.tracing.constants import CannotReplayError, replayed, scalars_of, steps_behind
from wnconvert.verbs.recipes.tracing.trace import Trace, TracedValue

__all__ = ["Explained", "explained", "told_by_numbers"]


#: A formula is the weight's if it gives every factor to this, relatively.
_EXACT = 1e-10
#: Rows that are held against a formula, at least: of a small weight several are drawn.
_ROWS = 48
#: The name of the weight of a fold until it has its own.
_UNNAMED = "weight"


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of weights before and after: their sums, and the line w' = a·w + b of each.

    ``parts`` are the other tensors that the weight is computed of, an element a row, by the last part of
    their names.
    """

    size: int
    total: int
    mean: Tensor
    variance: Tensor
    square: Tensor
    factor: Tensor
    shift: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Explained:
    """The layers of a trace, the folds of their weights, and the weights that stay, each with the reason."""

    linears: tuple[Linear, ...]
    folds: tuple[RecipeFold, ...]
    left: Mapping[str, str]


def explained(trace: Trace, linears: Iterable[Linear]) -> Explained:
    """Tell what layers compute their weights by, as far as the table of rules has it."""
    told: dict[object, RecipeFold | None] = {}
    found: dict[str, set[RecipeFold | None]] = {}
    every: list[Linear] = []
    left: dict[str, str] = {}
    for linear in linears:
        if linear.made is None or linear.base is None:
            every.append(linear)
            continue
        if is_parametrized(linear.weight):
            every.append(linear)
            left[linear.weight] = PARAMETRIZED
            continue
        key = _structure(trace, linear.made)
        if key not in told:
            told[key] = told_by_numbers(trace, linear.made, linear.base, linear.weight)
        fold = told[key]
        fold = fold and replace(fold, weight=linear.weight)
        found.setdefault(linear.weight, set()).add(fold)
        trouble = linear.trouble or ("" if fold else "its weight is computed as no fold does")
        every.append(replace(linear, trouble=trouble))
    folds = [fold for folds in found.values() if len(folds) == 1 for fold in folds if fold and _is_one(fold)]
    unknown = [name for name, folds in found.items() if len(folds) > 1 or None in folds]
    return Explained(
        tuple(every), tuple(folds), left | dict.fromkeys(unknown, "it is computed as no fold does")
    )


def _is_one(fold: RecipeFold) -> bool:
    """Whether a fold changes anything."""
    return fold.kind != "equalized" or fold.scale != 1.0


def _structure(trace: Trace, value: TracedValue) -> str:
    """What is equal for values that are computed alike, of tensors of the same shapes and last names."""
    numbers: dict[TracedValue, int] = {}

    def told(argument: object) -> object:
        if isinstance(argument, TracedValue):
            names = trace.stored.get(argument, ("",))
            place = numbers.setdefault(argument, len(numbers))
            return place, argument.shape, names[0].rpartition(".")[2]
        if isinstance(argument, (tuple, list)):
            return [told(each) for each in argument]
        return argument

    steps = steps_behind(trace, value)
    return repr([(str(step.operator), told(step.args), told(list(step.kwargs.items()))) for step in steps])


def told_by_numbers(trace: Trace, value: TracedValue, weight: TracedValue, name: str) -> RecipeFold | None:
    """The fold that makes ``value`` of the stored tensor ``weight``; None if no row of the table explains it.

    ``name`` is the name of the weight. What else it is computed of must stand beside it.
    """
    numbers = scalars_of(steps_behind(trace, value))
    for dim in _axes(value.shape):
        try:
            rows = _rows(trace, value, weight, dim)
        except CannotReplayError:
            return None
        if rows is None:
            continue
        for formula in (_scaled, _unit, _standardized):
            for fold in formula(rows, dim, numbers):
                return replace(fold, weight=name)
    return None


def _axes(shape: tuple[int, ...]) -> Iterator[int]:
    yield from dict.fromkeys((0, min(1, len(shape) - 1), len(shape) - 1))


def _rows(trace: Trace, value: TracedValue, weight: TracedValue, dim: int) -> _Rows | None:
    """Draw weights whose rows along ``dim`` are of very different sizes; None if the result is no line."""
    found: list[_Rows] = []
    count = value.shape[dim]
    size = math.prod(value.shape) // count
    if size < 2:
        return None
    for seed in range(max(1, -(-_ROWS // count))):
        stream = torch.Generator().manual_seed(seed)
        numbers = {each: _drawn(each, stream) for each in trace.sources[value]}
        numbers[weight] = _of_all_sizes(weight.shape, dim, stream, tiny=len(numbers) == 1)
        before = numbers[weight].movedim(dim, 0).reshape(count, -1)
        after = replayed(trace, value, numbers)
        if after.shape != weight.shape:
            return None
        rows = _lines(before, after.movedim(dim, 0).reshape(count, -1))
        if rows is None:
            return None
        factor, shift = rows
        parts = {
            trace.stored[each][0].rpartition(".")[2]: number.reshape(-1)
            for each, number in numbers.items()
            if each != weight and number.numel() == count
        }
        mean = before.mean(1)
        variance = (before - mean[:, None]).square().mean(1)
        square = before.square().sum(1)
        found.append(_Rows(size, size * count, mean, variance, square, factor, shift, parts))
    return _together(found)


def _together(every: list[_Rows]) -> _Rows:
    def joined(pick: Callable[[_Rows], Tensor]) -> Tensor:
        return torch.cat([pick(each) for each in every])

    parts = {name: torch.cat([each.parts[name] for each in every]) for name in every[0].parts}
    return _Rows(
        every[0].size,
        every[0].total,
        joined(lambda each: each.mean),
        joined(lambda each: each.variance),
        joined(lambda each: each.square),
        joined(lambda each: each.factor),
        joined(lambda each: each.shift),
        parts,
    )


def _drawn(value: TracedValue, stream: torch.Generator) -> Tensor:
    if not value.dtype.is_floating_point:
        raise CannotReplayError
    size = 0.5 + torch.rand(value.shape, generator=stream, dtype=torch.float64)
    return size * (torch.randint(0, 2, value.shape, generator=stream) * 2 - 1)


def _of_all_sizes(shape: tuple[int, ...], dim: int, stream: torch.Generator, *, tiny: bool) -> Tensor:
    """A weight with rows from 1e-6 to 10 in size, each with a mean of its own.

    With ``tiny`` some are of 1e-14: beside what is added to a row, nothing would be left of them.
    """
    sizes = [1] * len(shape)
    sizes[dim] = shape[dim]
    powers = torch.rand(shape[dim], generator=stream, dtype=torch.float64) * 7 - 6
    chosen = torch.rand(shape[dim], generator=stream, dtype=torch.float64) < 0.2 * tiny
    scale = (10.0 ** torch.where(chosen, torch.full_like(powers, -14.0), powers)).reshape(sizes)
    mean = torch.randn(sizes, generator=stream, dtype=torch.float64)
    return (torch.randn(shape, generator=stream, dtype=torch.float64) + mean) * scale


def _lines(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor] | None:
    """a and b of w' = a·w + b for each row; None if a row is no line."""
    mean, to = before.mean(1), after.mean(1)
    off, off_to = before - mean[:, None], after - to[:, None]
    factor = (off * off_to).sum(1) / off.square().sum(1)
    shift = to - factor * mean
    guess = factor[:, None] * before + shift[:, None]
    size = after.abs().amax(1).clamp_min(1e-300)
    near = (guess - after).abs().amax(1) <= 1e-9 * size
    fits = torch.isfinite(after).all() and after.any() and near.all()
    return (factor, shift) if fits else None


# -- the rows of the table


def _scaled(rows: _Rows, _: int, numbers: tuple[float, ...]) -> Iterator[RecipeFold]:
    """w' = c·w."""
    if not _passes_through_zero(rows):
        return
    scale = constant(rows.factor, _EXACT)
    if scale is not None:
        yield RecipeFold("equalized", _UNNAMED, scale=rounded(scale, numbers))


def _passes_through_zero(rows: _Rows) -> bool:
    size = rows.factor.abs() * rows.square.sqrt()
    return bool((rows.shift.abs() <= 1e-9 * size).all())


def _unit(rows: _Rows, dim: int, numbers: tuple[float, ...]) -> Iterator[RecipeFold]:
    """w' = c·w/max(‖w‖, eps)."""
    if not _passes_through_zero(rows):
        return
    norm = rows.square.sqrt()
    far = norm > norm.max() * 1e-3
    scale = constant((rows.factor * norm)[far], _EXACT)
    if scale is None:
        return
    near_zero = norm == norm.min()
    eps = abs(scale / float(rows.factor[near_zero][0]))
    eps = 0.0 if near_to(eps, float(norm.min()), 1e-9) else rounded(eps, numbers, 1e-8)
    scale = rounded(scale, numbers)
    if near_all(rows.factor, scale / norm.clamp_min(eps)):
        yield RecipeFold("unit", _UNNAMED, eps=eps, scale=scale, dim=dim)


def _standardized(rows: _Rows, dim: int, numbers: tuple[float, ...]) -> Iterator[RecipeFold]:
    """w' = (w − mean)·γ·c/d + β, with each γ and β that may be among the tensors."""
    for shift, beta in ((None, None), *rows.parts.items()):
        rest = rows.shift + rows.mean * rows.factor - (0 if beta is None else beta)
        size = (rows.mean * rows.factor).abs() + rows.shift.abs()
        if not bool((rest.abs() <= 1e-9 * size).all()):
            continue
        for gain, gamma in ((None, torch.ones_like(rows.factor)), *rows.parts.items()):
            for fold in _divided(rows, dim, gamma / rows.factor, numbers):
                yield _with(fold, gain, shift)


def _with(fold: RecipeFold, gain: str | None, shift: str | None) -> RecipeFold:
    return replace(fold, gain=gain or "", shift=shift or "")


def _divided(rows: _Rows, dim: int, divisor: Tensor, numbers: tuple[float, ...]) -> Iterator[RecipeFold]:
    """What the divisors d/c of rows are, of their variances."""
    if not bool((divisor > 0).all()) and not bool((divisor < 0).all()):
        return
    n = rows.size
    told: list[RecipeFold] = []
    for std, variance in (("biased", rows.variance), ("unbiased", rows.variance * (n / (n - 1)))):
        lines = (*_eps_inside(variance, divisor, numbers), *_eps_outside(variance, divisor, numbers))
        told += [_as(fold, std, dim) for fold in lines]
    told += [_as(fold, "biased", dim) for fold in _greater(rows, divisor, numbers)]
    yield from sorted(told, key=_oddness)[:1]


def _as(fold: RecipeFold, std: str, dim: int) -> RecipeFold:
    return replace(fold, std="unbiased" if std == "unbiased" else "biased", dim=dim)


def _oddness(fold: RecipeFold) -> tuple[bool, int]:
    """How odd the numbers of an explanation are: one function can be said with either deviation."""
    return fold.scale not in (1.0, -1.0), len(repr(fold.eps))


def _eps_inside(variance: Tensor, divisor: Tensor, numbers: tuple[float, ...]) -> Iterator[RecipeFold]:
    found = line(variance, divisor.square())
    yield from _of_line(found, variance, divisor, numbers, "var")


def _eps_outside(variance: Tensor, divisor: Tensor, numbers: tuple[float, ...]) -> Iterator[RecipeFold]:
    found = line(variance.sqrt(), divisor.abs())
    yield from _of_line(found, variance, divisor, numbers, "std")


def _of_line(
    found: Line | None, variance: Tensor, divisor: Tensor, numbers: tuple[float, ...], eps_at: str
) -> Iterator[RecipeFold]:
    if found is None or found.slope <= 0:
        return
    sign = 1.0 if float(divisor[0]) > 0 else -1.0
    inside = eps_at == "var"
    scale = rounded(sign * found.slope ** (-0.5 if inside else -1.0), numbers)
    eps = max(0.0, found.start / found.slope)
    least = float(variance.min()) if inside else float(variance.min().sqrt())
    eps = 0.0 if eps <= 1e-6 * least else rounded(eps, numbers, 1e-6)
    d = torch.sqrt(variance + eps) if inside else variance.sqrt() + eps
    if near_all(divisor, d / scale):
        yield RecipeFold("standardize", _UNNAMED, eps_at="var" if inside else "std", eps=eps, scale=scale)


def _greater(rows: _Rows, divisor: Tensor, numbers: tuple[float, ...]) -> Iterator[RecipeFold]:
    """√max(V·fan, eps): of large rows the fan, of small ones eps."""
    squared = divisor.square()
    far, least = rows.variance == rows.variance.max(), rows.variance == rows.variance.min()
    slope = float((squared / rows.variance)[far][0])
    for fan in (rows.size, rows.total, 1):
        scale = rounded((fan / slope) ** 0.5, numbers)
        if scale != 1.0 and fan != 1:
            continue
        eps = rounded(float(squared[least][0]) * scale**2, numbers, 1e-6)
        if near_all(divisor.abs(), torch.sqrt((rows.variance * fan).clamp_min(eps)) / scale):
            sign = 1.0 if float(divisor[0]) > 0 else -1.0
            yield RecipeFold("standardize", _UNNAMED, eps_at="max", eps=eps, scale=sign * scale, fan=fan)


def near_all(one: Tensor, other: Tensor) -> bool:
    """Whether numbers are equal, as near as a formula must be."""
    return bool(((one - other).abs() <= _EXACT * other.abs()).all())
