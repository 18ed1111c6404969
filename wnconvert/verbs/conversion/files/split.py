"""Split plain weights of checkpoints into g and v; ``wnconvert split`` and ``split_file`` are one call.

With ``dry_run`` it returns the very plan that it would run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, cast, overload

from wnconvert.layers.dims import AUTO
from wnconvert.layers.schemes import NAMED_FORMS
from wnconvert.storage.shards import DEFAULT_SHARD_SIZE
from wnconvert.verbs.conversion.jobs import Request
from wnconvert.verbs.conversion.run import open_reference, run_conversion
from wnconvert.verbs.conversion.targets import StrPath
from wnconvert.verbs.shared.options import DimOption, NamedForm, RunOptions, check_form, renaming_of
from wnconvert.verbs.shared.progress import Progress, bytes_progress
from wnconvert.verbs.shared.selections import selection_of

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from typing_extensions import Unpack

    from wnconvert.plan.plan import Plan
    from wnconvert.verbs.conversion.convert import Result
    from wnconvert.verbs.conversion.files.overloads import SplitOptions

__all__ = ["split_file"]


@overload
def split_file(
    src: StrPath,
    out: StrPath | None = ...,
    *,
    dry_run: Literal[False] = ...,
    **options: Unpack[SplitOptions],
) -> Result: ...


@overload
def split_file(
    src: StrPath, out: StrPath | None = ..., *, dry_run: Literal[True], **options: Unpack[SplitOptions]
) -> Plan: ...


def split_file(
    src: StrPath,
    out: StrPath | None = None,
    *,
    to: NamedForm | None = None,
    like: StrPath | None = None,
    only: str | None = None,
    strip_prefix: Iterable[str] = (),
    add_prefix: str = "",
    rename: Iterable[str] | Mapping[str, str] = (),
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dim: DimOption = AUTO,
    keep_optimizer: bool = False,
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
    """Split plain weights of a checkpoint file into g = ‖w‖ and v = w; folded, they are w again, bit for bit.

    The weights, their dims and their form (``to``: ``"parametrize"``, ``"legacy"``) come from ``like``,
    another checkpoint with layers; else from ``layers`` (globs) and ``dim`` (an axis, None for the whole
    tensor); else from the record that ``fold`` left in the file, with names, shapes and places. Layers that
    are split already are left alone and counted (``Plan.already``). Rows of zeros get g = 0 and a uniform
    unit direction. The names in ``like`` may be those of the file before they are changed, or after. Other
    options as for ``fold_file``.

    Raises as ``fold_file`` does: ``ArgumentError`` if nothing says what to split, ``LayerError`` if a layer
    is missing or has another shape, ``NumbersError`` for a row whose norm its dtype cannot hold.

    >>> plan = split_file("fixtures/plain.pt", layers="conv.weight", dim=0, to="legacy", dry_run=True)
    >>> [(layer.name, layer.after.g.name, layer.after.g.shape) for layer in plan.layers]
    [('conv.weight', 'conv.weight_g', (8, 1, 1))]
    """
    # The options by their names: whatever follows takes those that it needs.
    return _split(src, out, cast("SplitOptions", locals()), dry_run=dry_run)


def _split(src: StrPath, out: StrPath | None, given: SplitOptions, *, dry_run: bool) -> Result | Plan:
    """Split, or plan it, with all of the options given."""
    from wnconvert.plan.split.plan import plan_split

    check_form(given["to"], NAMED_FORMS)
    like = None if given["like"] is None else open_reference(given["like"])
    renaming = renaming_of(given["strip_prefix"], given["add_prefix"], given["rename"])
    request = Request(
        src,
        out,
        "split",
        like=given["like"],
        reference=like,
        renaming=renaming,
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
        plan_split,
        to=given["to"],
        like=None if like is None else like.tree,
        renaming=renaming,
        selection=selection_of(given["layers"], given["exclude"], given["dim"]),
        only=given["only"],
        keep_optimizer=given["keep_optimizer"],
    )
    options = RunOptions(
        force=given["force"],
        threads=given["threads"],
        verify=given["verify"],
        progress=bytes_progress(given["progress"]),
        executor=given["executor"],
    )
    return run_conversion(request, make_plan, options=options)
