"""For overloads, which tell a type checker that ``dry_run`` decides between Result and Plan.

The options of each verb, which its real signature spells out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypedDict

from wnconvert.plan.names.kernels import Framework
from wnconvert.tensors.dtypes import AnyDType
from wnconvert.verbs.conversion.targets import StrPath
from wnconvert.verbs.shared.options import DimOption, NamedForm, ProofOption, ZeroRows
from wnconvert.verbs.shared.progress import Progress
from wnconvert.verbs.shared.proofs import Prove

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from wnconvert.layers.recipes import Recipe
    from wnconvert.plan.plan import Plan

__all__ = ["FoldOptions", "MigrateOptions", "SplitOptions"]


class _Options(TypedDict, total=False):
    """What all of them take."""

    only: str | None
    strip_prefix: Iterable[str]
    add_prefix: str
    rename: Iterable[str] | Mapping[str, str]
    layers: Iterable[str]
    exclude: Iterable[str]
    drop_foreign: bool
    copy: bool
    require_layers: int | None
    as_folder: bool
    in_place: bool
    max_shard_size: str | int
    verify: bool
    force: bool
    clean: bool
    threads: int | None
    progress: Progress
    on_plan: Callable[[Plan], None] | None
    executor: Executor | None


class FoldOptions(_Options, total=False):
    """What fold takes."""

    dtype: AnyDType | None
    kinds: Iterable[str]
    recipe: StrPath | Recipe | None
    record: bool
    norm: Iterable[str]
    standardize: Iterable[str]
    eps: float | None
    std: str | None
    eps_at: str | None
    gain: str | None
    scale: float | str | None
    keep_norms: bool
    constants: bool
    require_folded: bool
    dim: DimOption
    zero_rows: ZeroRows
    allow_nonfinite: bool
    keep_optimizer: bool
    requantize: bool
    proof: ProofOption
    prove: Prove | None
    timeout: float


class SplitOptions(_Options, total=False):
    """What split takes."""

    to: NamedForm | None
    like: StrPath | None
    dim: DimOption
    keep_optimizer: bool


class MigrateOptions(_Options, total=False):
    """What migrate takes."""

    to: NamedForm | Framework
    framework: Framework | None
    layout: Iterable[str]
    kinds: Iterable[str]
    drop_optimizer: bool
