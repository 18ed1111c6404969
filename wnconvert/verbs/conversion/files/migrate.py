"""Migrate checkpoints between the forms of torch; ``wnconvert migrate`` and ``migrate_file`` are one call.

With ``dry_run`` it returns the very plan that it would run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, cast, overload

from wnconvert.errors import ArgumentError
from wnconvert.layers.dims import AUTO
from wnconvert.layers.schemes import NAMED_FORMS
from wnconvert.messages import option
from wnconvert.plan.names.frameworks import Relayout, check_framework, said_kinds
from wnconvert.plan.names.kernels import FRAMEWORKS, Framework
from wnconvert.storage.shards import DEFAULT_SHARD_SIZE
from wnconvert.verbs.conversion.files.relayout import as_framework_has_it
from wnconvert.verbs.conversion.jobs import Request
from wnconvert.verbs.conversion.run import run_conversion
from wnconvert.verbs.conversion.targets import StrPath
from wnconvert.verbs.shared.options import NamedForm, RunOptions, check_form, renaming_of
from wnconvert.verbs.shared.progress import Progress, bytes_progress
from wnconvert.verbs.shared.selections import selection_of, texts_of

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from typing_extensions import Unpack

    from wnconvert.plan.plan import Plan
    from wnconvert.verbs.conversion.convert import Result
    from wnconvert.verbs.conversion.files.overloads import MigrateOptions

__all__ = ["migrate_file"]


@overload
def migrate_file(
    src: StrPath,
    out: StrPath | None = ...,
    *,
    dry_run: Literal[False] = ...,
    **options: Unpack[MigrateOptions],
) -> Result: ...


@overload
def migrate_file(
    src: StrPath, out: StrPath | None = ..., *, dry_run: Literal[True], **options: Unpack[MigrateOptions]
) -> Plan: ...


def migrate_file(
    src: StrPath,
    out: StrPath | None = None,
    *,
    to: NamedForm | Framework = "parametrize",
    framework: Framework | None = None,
    layout: Iterable[str] = (),
    only: str | None = None,
    strip_prefix: Iterable[str] = (),
    add_prefix: str = "",
    rename: Iterable[str] | Mapping[str, str] = (),
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    kinds: Iterable[str] = ("weight",),
    drop_optimizer: bool = False,
    drop_foreign: bool = False,
    copy: bool = False,
    require_layers: int | None = None,
    as_folder: bool = False,
    in_place: bool = False,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    verify: bool = False,
    force: bool = False,
    clean: bool = False,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress = False,
    on_plan: Callable[[Plan], None] | None = None,
    executor: Executor | None = None,
) -> Result | Plan:
    """Give the layers of a checkpoint file the names of the other of torch's forms; no tensor changes.

    ``to`` is ``"parametrize"`` (``torch.nn.utils.parametrizations.weight_norm``, from torch 2.1 on) or
    ``"legacy"`` (``torch.nn.utils.weight_norm``); a mixture ends in that form. Keys stand where torch
    has them, ``_metadata`` follows, and going back gives the same bytes again. The state of an optimizer
    stays valid, since the parameters keep their order; where they would not it is an error, and
    ``drop_optimizer`` leaves the state out. ``kinds`` are those of the layers to migrate, as for
    ``fold_file``: ``"spectral"`` norm computes the same in eval, to the bit; prune has no other form. Other
    options as for ``fold_file``.

    ``to`` may also be a framework: ``"torch"``, ``"flax"`` (linen), ``"nnx"`` or ``"mlx"``. The file becomes
    what that framework loads: names, the axes of kernels, the shapes of g. ``framework`` is that of the
    source, where neither names nor the file tell it; ``layout`` are kinds of kernels that nothing tells,
    each ``GLOB=KIND``.

    Raises as ``fold_file`` does; ``LayerError`` also for a whole pickled module.

    >>> plan = migrate_file("fixtures/g_02500000", dry_run=True)
    >>> plan.layers[0].before.g.name, plan.layers[0].after.g.name
    ('conv_pre.weight_g', 'conv_pre.parametrizations.weight.original0')
    """
    # The options by their names: whatever follows takes those that it needs.
    return _migrate(src, out, cast("MigrateOptions", locals()), dry_run=dry_run)


def _relayout(given: MigrateOptions) -> Relayout | None:
    """The framework that a file is taken to; None where it is one of torch's forms."""
    to, source, said = given["to"], given["framework"], said_kinds(texts_of(given["layout"]))
    if to not in FRAMEWORKS:
        if source or said:
            raise ArgumentError(
                f"{to} is a form, and frameworks differ in their layout",
                fix=f"{option('to', metavar='FRAMEWORK')}, one of {', '.join(FRAMEWORKS)}",
            )
        return None
    if given["layers"] or given["exclude"]:
        raise ArgumentError(f"--to {to} takes the whole file", fix="leave --layers and --exclude out")
    return Relayout(check_framework(to), check_framework(source) if source else None, said)


def _migrate(src: StrPath, out: StrPath | None, given: MigrateOptions, *, dry_run: bool) -> Result | Plan:
    """Migrate, or plan it, with all of the options given."""
    from wnconvert.plan.migrate import plan_migrate

    to = given["to"]
    relayout = _relayout(given)
    if relayout is None:
        check_form(str(to), NAMED_FORMS)  # here None is not a choice
    request = Request(
        src,
        out,
        to,
        renaming=renaming_of(given["strip_prefix"], given["add_prefix"], given["rename"]),
        relayout=partial(as_framework_has_it, asked=relayout, only=given["only"]) if relayout else None,
        only=given["only"],
        max_shard_size=given["max_shard_size"],
        as_folder=given["as_folder"],
        in_place=given["in_place"],
        drop_foreign=given["drop_foreign"],
        copy=given["copy"],
        require_layers=given["require_layers"],
        clean=given["clean"],
        dry_run=dry_run,
        on_plan=given["on_plan"],
    )
    make_plan = partial(
        plan_migrate,
        to=to,
        selection=selection_of(given["layers"], given["exclude"], AUTO, given["kinds"]),
        only=given["only"],
        drop_optimizer=given["drop_optimizer"],
    )
    options = RunOptions(
        force=given["force"],
        threads=given["threads"],
        verify=given["verify"],
        progress=bytes_progress(given["progress"]),
        executor=given["executor"],
    )
    return run_conversion(request, make_plan, options=options)
