"""The arithmetic of each operation of a rule: what it makes of a fold, from the innermost outwards.

A new kind of operation is a file beside this one, and a function here. Each function imports what its
operation needs, so that a fold of weight norm loads no other arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import singledispatch
from typing import TYPE_CHECKING, Protocol

from wnconvert.errors import LayerError
from wnconvert.layers.dims import refuse_large
from wnconvert.layers.rules import (
    DIVISOR,
    ORIGINAL,
    AffineBefore,
    Equalized,
    Guard,
    Mask,
    Neighbour,
    Norm,
    NormBefore,
    NormBehind,
    Operation,
    Over,
    Rule,
    Spectral,
    SpectralStep,
    Standardize,
    Unit,
    UnitVector,
)
from wnconvert.numerics.kernel.choice import block_sums
from wnconvert.numerics.kernel.plain import keeps_subnormals
from wnconvert.numerics.norms import RowSource
from wnconvert.numerics.rounding import name_of
from wnconvert.numerics.rows import Divisor
from wnconvert.numerics.rules.factors import Alone, Common, Scale
from wnconvert.numerics.rules.norm import NormScale
from wnconvert.numerics.rules.parts import RuleParts
from wnconvert.numerics.sums import Way, accurate_sums
from wnconvert.tensors.blocks import Read
from wnconvert.tensors.tree import Dim, rows_of

if TYPE_CHECKING:
    from wnconvert.numerics.rules.spectral.matrix import Matrix
    from wnconvert.numerics.rules.spectral.sigma import SpectralFactor

__all__ = ["CommonFactor", "Stage", "stage_of"]


class CommonFactor(Protocol):
    """A factor of all elements, which a reading of the tensor finds."""

    def find(self) -> tuple[Common, Divisor]:
        """The factor, and what to say of what it divides by."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A fold as far as some operations make it: what is read, the factor of each row, the factor of all."""

    read: Read
    shape: tuple[int, ...]
    dtype: str
    out: str
    limit: int
    is_alone: bool
    scale: Scale | None = None
    common: CommonFactor | None = None

    def source(self, dim: Dim, *dtypes: str) -> RowSource:
        """What is read, seen as rows, which are worked on with numbers of other dtypes too."""
        return RowSource(*self.rows(dim, *dtypes))

    def rows(self, dim: Dim, *dtypes: str) -> tuple[Read, tuple[int, ...], Dim, str, int, Way]:
        """What a source of rows is made of."""
        is_narrow = "float64" not in (self.dtype, self.out, *dtypes) and keeps_subnormals()
        way = block_sums if is_narrow else accurate_sums
        return self.read, self.shape, dim, self.dtype, self.limit, way


def stage_of(rule: Rule, parts: RuleParts, out: str, limit: int) -> Stage:
    """A rule's fold. Raises ``LayerError`` for parts that do not fit it."""
    refuse_large({role: parts[role].count for role in rule.roles})
    original = parts[ORIGINAL]
    stage = Stage(original.read, original.shape, original.name, out, limit, len(rule.operations) == 1)
    for operation in rule.operations:
        stage = applied(operation, stage, parts)
    return stage


@singledispatch
def applied(operation: Operation, stage: Stage, parts: RuleParts) -> Stage:
    """A fold, and one more operation."""
    raise NotImplementedError(type(operation))


@applied.register
def _mask(operation: Mask, stage: Stage, parts: RuleParts) -> Stage:
    from wnconvert.numerics.rules.mask import exactly_masked, masked

    mask = parts["mask"]
    name_of(mask.dtype)
    if mask.shape != stage.shape:
        raise LayerError(f"mask {mask.shape} does not fit original {stage.shape}")
    _refuse_second(operation, stage.scale, stage.common)
    way = (
        masked
        if stage.out == "float64" or "float64" not in (stage.dtype, name_of(mask.dtype))
        else exactly_masked
    )
    return replace(stage, read=way(stage.read, mask.read))


@applied.register
def _norm(operation: Norm, stage: Stage, parts: RuleParts) -> Stage:
    g = parts["g"]
    if g.count != rows_of(stage.shape, operation.dim):
        raise LayerError(f"g {g.shape} does not fit v {stage.shape} along dim {operation.dim}")
    _refuse_second(operation, stage.scale, stage.common)
    source = stage.source(operation.dim, g.name, *_wide_by(operation.guard))
    keeps = stage.is_alone
    if operation.guard is None:
        return replace(stage, scale=NormScale(source, g.rows(), stage.out, keeps=keeps))
    from wnconvert.numerics.rules.computed.guarded import GuardedScale

    scale = GuardedScale(source, g.rows(), None, operation.guard, stage.out, keeps=keeps)
    return replace(stage, scale=scale)


@applied.register
def _unit_vector(operation: UnitVector, stage: Stage, _parts: RuleParts) -> Stage:
    from wnconvert.numerics.rules.computed.guarded import GuardedScale

    _refuse_second(operation, stage.scale, stage.common)
    guard = Guard(operation.eps) if operation.eps else None
    source = stage.source(None, *_wide_by(guard))
    return replace(stage, scale=GuardedScale.of_one(source, Fraction(1), guard, stage.out))


@applied.register
def _unit(operation: Unit, stage: Stage, _parts: RuleParts) -> Stage:
    from wnconvert.numerics.rules.computed.guarded import GuardedScale

    _refuse_second(operation, stage.scale, stage.common)
    source = stage.source(operation.dim, *_wide_if_far(operation.scale), *_wide_by(operation.guard))
    return replace(stage, scale=GuardedScale.of_one(source, operation.scale, operation.guard, stage.out))


@applied.register
def _over(operation: Over, stage: Stage, parts: RuleParts) -> Stage:
    from wnconvert.numerics.rules.computed.guarded import GuardedScale
    from wnconvert.numerics.rules.computed.over import OverScale, SquareSource

    _refuse_second(operation, stage.scale, stage.common)
    divisor, g = parts[DIVISOR], parts["g"].rows() if operation.gain else None
    if divisor.shape != stage.shape:
        raise LayerError(f"divisor {divisor.shape} does not fit original {stage.shape}")
    numbers = (*_wide_if_far(operation.scale), *_wide_by(operation.guard), *([g.dtype] if g else []))
    source = stage.source(operation.dim, divisor.name, *numbers)
    beside = replace(stage, read=divisor.read, dtype=divisor.name)
    kind = SquareSource if operation.squares else RowSource
    summed = kind(*beside.rows(operation.dim, stage.dtype, *numbers))
    if g is None:
        one = GuardedScale.of_one(source, operation.scale, None, stage.out)
        scale = OverScale(source, summed, one.g, one.exact, operation.guard, stage.out)
    elif g.count != source.count:
        raise LayerError(f"g {g.shape} does not fit original {stage.shape} along dim {operation.dim}")
    else:
        scale = OverScale(source, summed, g, None, operation.guard, stage.out)
    return replace(stage, scale=scale)


@applied.register
def _equalized(operation: Equalized, stage: Stage, _parts: RuleParts) -> Stage:
    from wnconvert.numerics.rules.computed.equalized import EqualizedScale

    _refuse_second(operation, stage.scale, stage.common)
    source = stage.source(None, *_wide_if_far(operation.scale))
    return replace(stage, scale=EqualizedScale(source, operation.scale, stage.out))


@applied.register
def _standardize(operation: Standardize, stage: Stage, parts: RuleParts) -> Stage:
    from wnconvert.numerics.rules.computed.formula import Standard
    from wnconvert.numerics.rules.computed.moments import MomentSource
    from wnconvert.numerics.rules.computed.standard import StandardScale

    _refuse_second(operation, stage.scale, stage.common)
    count = rows_of(stage.shape, operation.dim)
    values = {}
    for role in operation.roles:
        if parts[role].count != count:
            raise LayerError(
                f"{role} {parts[role].shape} does not fit weight {stage.shape} along dim {operation.dim}"
            )
        values[role] = parts[role].rows()
    dtypes = [each.dtype for each in values.values()]
    source = MomentSource(*stage.rows(operation.dim, *dtypes, *_wide_if_far(operation.scale)))
    if operation.std == "unbiased" and source.length == 1:
        raise LayerError("a row of one element has no unbiased deviation")
    formula = Standard(operation, source.length)
    scale = StandardScale(source, formula, values.get("gain"), values.get("shift"), stage.out)
    return replace(stage, scale=scale)


def _wide_by(guard: Guard | None) -> tuple[str, ...]:
    """The dtype that the numbers of a guard have, if they are none that narrow sums are added to."""
    return (*_wide_if_far(guard.eps), *_wide_if_far(guard.share)) if guard else ()


def _wide_if_far(number: float | Fraction) -> tuple[str, ...]:
    """The dtype that a constant factor has, if it is none that products of at most 24 bits are made with."""
    size = abs(Fraction(number))
    return () if not size or 2.0**-200 < size < 2.0**200 else ("float64",)


@applied.register
def _spectral(operation: Spectral, stage: Stage, parts: RuleParts) -> Stage:
    from wnconvert.numerics.rules.spectral.matrix import Matrix
    from wnconvert.numerics.rules.spectral.square import SquareFactor

    _refuse_second(operation, stage.common, None if type(stage.scale) is NormScale else stage.scale)
    dims = (0, 1) if operation.dim is None else (operation.dim,)
    matrices = [Matrix(stage.read, stage.shape, dim, stage.dtype, stage.limit) for dim in dims]
    factors = [_sigma_factor(stage, matrix, parts) for matrix in matrices]
    scale = stage.scale or Alone(stage.source(None), stage.out)
    return replace(stage, scale=scale, common=SquareFactor(*factors) if len(factors) > 1 else factors[0])


def _sigma_factor(stage: Stage, matrix: Matrix, parts: RuleParts) -> SpectralFactor:
    if isinstance(stage.scale, NormScale):
        from wnconvert.numerics.rules.spectral.normed import NormedSpectralFactor

        return NormedSpectralFactor(matrix, parts["u"], parts["v"], stage.out, stage.scale)
    from wnconvert.numerics.rules.spectral.sigma import SpectralFactor

    return SpectralFactor(matrix, parts["u"], parts["v"], stage.out)


@applied.register
def _step(operation: SpectralStep, stage: Stage, parts: RuleParts) -> Stage:
    from wnconvert.numerics.rules.spectral.matrix import Matrix
    from wnconvert.numerics.rules.spectral.step import StepFactor

    _refuse_second(operation, stage.scale, stage.common)
    matrix = Matrix(stage.read, stage.shape, operation.dim, stage.dtype, stage.limit)
    alone = Alone(stage.source(None), stage.out)
    return replace(stage, scale=alone, common=StepFactor(matrix, parts["u"], stage.out))


@applied.register(NormBehind)
@applied.register(NormBefore)
@applied.register(AffineBefore)
def _neighbour(operation: Neighbour, stage: Stage, parts: RuleParts) -> Stage:
    from wnconvert.numerics.rules.channels.scale import ChannelScale
    from wnconvert.numerics.rules.channels.vector import channels_of

    inner = None if isinstance(stage.scale, Alone) else stage.scale
    rows = stage.source(None)
    channels = channels_of(operation, parts, stage.shape)
    return replace(stage, scale=ChannelScale(channels, operation, rows, stage.shape, inner, stage.out))


def _refuse_second(operation: Operation, *others: object) -> None:
    if any(other is not None for other in others):
        raise LayerError(f"{type(operation).__name__} does not come after the operations before it")
