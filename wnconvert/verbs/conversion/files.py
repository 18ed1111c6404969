"""The verbs on files and folders: open, plan, convert; ``wnconvert fold`` and ``fold_file`` are one call.

With ``dry_run`` each of them returns the very plan that it would run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, TypedDict, overload

from wnconvert.layers.dims import AUTO
from wnconvert.storage.shards import DEFAULT_SHARD_SIZE
from wnconvert.tensors.dtypes import AnyDType
from wnconvert.verbs.conversion.jobs import Request
from wnconvert.verbs.conversion.run import open_reference, plan_onnx_fold, run_conversion
from wnconvert.verbs.conversion.targets import StrPath
from wnconvert.verbs.shared.options import (
    TIMEOUT,
    DimOption,
    Form,
    ProofOption,
    Proving,
    RunOptions,
    ZeroRows,
    check_form,
    dtype_of,
    numbers_of,
    renaming_of,
    selection_of,
)
from wnconvert.verbs.shared.progress import Progress, bytes_progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from wnconvert.plan.plan import Plan
    from wnconvert.verbs.conversion.convert import Result

    # For the overloads, which tell a type checker that `dry_run` decides between Result and Plan: the options
    # of each verb, which its real signature spells out.

    class _Options(TypedDict, total=False):
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

    class _FoldOptions(_Options, total=False):
        dtype: AnyDType | None
        kinds: Iterable[str]
        dim: DimOption
        zero_rows: ZeroRows
        allow_nonfinite: bool
        keep_optimizer: bool
        proof: ProofOption
        timeout: float

    class _SplitOptions(_Options, total=False):
        to: Form | None
        like: StrPath | None
        dim: DimOption
        keep_optimizer: bool

    class _MigrateOptions(_Options, total=False):
        to: Form
        kinds: Iterable[str]
        drop_optimizer: bool


__all__ = ["fold_file", "migrate_file", "split_file"]


@overload
def fold_file(
    src: StrPath, out: StrPath | None = ..., *, dry_run: Literal[False] = ..., **options: Unpack[_FoldOptions]
) -> Result: ...


@overload
def fold_file(
    src: StrPath, out: StrPath | None = ..., *, dry_run: Literal[True], **options: Unpack[_FoldOptions]
) -> Plan: ...


def fold_file(
    src: StrPath,
    out: StrPath | None = None,
    *,
    only: str | None = None,
    strip_prefix: Iterable[str] = (),
    add_prefix: str = "",
    rename: Iterable[str] | Mapping[str, str] = (),
    dtype: AnyDType | None = None,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    kinds: Iterable[str] = ("weight",),
    dim: DimOption = AUTO,
    zero_rows: ZeroRows = "error",
    allow_nonfinite: bool = False,
    keep_optimizer: bool = False,
    drop_foreign: bool = False,
    proof: ProofOption = "model",
    timeout: float = TIMEOUT,
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
) -> Result | Plan:
    """Fold the weight-normalized layers of a checkpoint, or of an ONNX model, into plain weights.

    ``src`` is a checkpoint of any readable format; ``out`` is written as safetensors or .npz if that is
    its suffix, else as a torch zip (default: ``.folded`` before the suffix of ``src``). ``"-"`` is stdin and
    stdout. An ONNX model stays one, and runs beside the original before it is put in place (this needs onnx
    and onnxruntime): with ``proof="layers"`` only the arithmetic of each layer does, with ``"none"`` nothing;
    what takes longer than ``timeout`` seconds in all is not run, and a note says so. It takes none of
    ``only``, ``dtype``, ``dim``, ``keep_optimizer`` and ``drop_foreign``. A file goes into ``out`` if that is
    a folder.

    A folder with weights, the index of one, or a pipeline of diffusers becomes a folder, unless ``out`` has a
    checkpoint's suffix; a file does with ``as_folder``. Its weights lie in files of at most
    ``max_shard_size`` (bytes, or ``"5GB"``, ``"2GiB"``); all other files go along. With ``force`` an old
    folder is replaced whole, if wnconvert wrote all that is in it. ``in_place`` writes over ``src``: the
    notes of the plan say what cannot be brought back. What killed runs left beside the output is named in
    notes; ``clean`` deletes it.

    If no layer changes, nothing is written, ``Result.output`` is None and a note says why; unless ``copy``,
    ``only``, ``dtype``, ``drop_foreign``, new names or another container ask for one. With fewer layers than
    ``require_layers`` nothing is written, and ``TooFewLayersError`` is raised.

    ``only`` is the path of the one state dict to keep. ``drop_foreign`` leaves out what lies beside the
    state dicts and names classes or functions that ``torch.load(weights_only=True)`` does not know. Names are
    changed as the file is opened: the first of ``strip_prefix`` is taken off, then each ``rename`` made
    (``"OLD=NEW"`` or a mapping: whole dotted parts wherever they stand, ``*`` for one of them), then
    ``add_prefix`` put before; ``layers`` and ``exclude`` are globs on the new names of weights. ``dtype``
    (``"float16"`` or ``"fp16"``, ``torch.bfloat16``, ``numpy.float32`` …) folds and casts in one rounding.
    ``kinds`` are those of the layers to fold: ``"weight"`` norm, ``"spectral"`` norm, ``"prune"``,
    ``"spectral-step"`` (ports that take a step in eval), ``"all"`` for the first three; a layer under several
    needs all of them. ``dim`` is an axis, None for the whole tensor, or ``"auto"``: read from shapes.
    ``zero_rows`` is ``"error"`` or ``"zero"``. ``progress`` is called with the bytes done and in all, or True
    for a bar; ``on_plan`` once with the ``Plan``, before anything is written. With ``dry_run`` nothing is
    written and the ``Plan`` is returned.

    Raises ``WnconvertError``: ``InputError``, ``LayerError``, ``NumbersError``, ``OutputError``,
    ``ArgumentError``, ``TooFewLayersError``, ``VerifyError``; nothing is written then.

    >>> plan = fold_file("fixtures/g_02500000", dry_run=True)
    >>> len(plan.layers), plan.layers[0].name
    (78, 'conv_pre.weight')
    """
    from wnconvert.plan.fold import plan_fold

    selection = selection_of(layers, exclude, dim, kinds)
    others = _of_checkpoints(only, dtype, dim, keep_optimizer=keep_optimizer, drop_foreign=drop_foreign)
    make_plan = partial(
        plan_fold, selection=selection, only=only, dtype=dtype_of(dtype), keep_optimizer=keep_optimizer
    )
    request = Request(
        src,
        out,
        "folded",
        renaming=renaming_of(strip_prefix, add_prefix, rename),
        only=only,
        max_shard_size=max_shard_size,
        as_folder=as_folder,
        in_place=in_place,
        drop_foreign=drop_foreign,
        copy=copy,
        rewrites=dtype is not None,
        require_layers=require_layers,
        clean=clean,
        dry_run=dry_run,
        on_plan=on_plan,
    )
    numbers = numbers_of(zero_rows, allow_nonfinite=allow_nonfinite)
    options = RunOptions(force, threads, verify, numbers, Proving(proof, timeout), bytes_progress(progress))
    plan_graph = partial(plan_onnx_fold, selection=selection, others=others)
    return run_conversion(request, make_plan, plan_graph=plan_graph, options=options)


def _of_checkpoints(
    only: str | None, dtype: AnyDType | None, dim: DimOption, *, keep_optimizer: bool, drop_foreign: bool
) -> dict[str, object]:
    """The options that only checkpoints take, by their names; None for those that are not given."""
    return {
        "--only": only,
        "--dtype": dtype,
        "--keep-optimizer": keep_optimizer or None,
        "--drop-foreign": drop_foreign or None,
        "--dim": None if dim == AUTO else str(dim),
    }


@overload
def split_file(
    src: StrPath,
    out: StrPath | None = ...,
    *,
    dry_run: Literal[False] = ...,
    **options: Unpack[_SplitOptions],
) -> Result: ...


@overload
def split_file(
    src: StrPath, out: StrPath | None = ..., *, dry_run: Literal[True], **options: Unpack[_SplitOptions]
) -> Plan: ...


def split_file(
    src: StrPath,
    out: StrPath | None = None,
    *,
    to: Form | None = None,
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
    from wnconvert.plan.split.plan import plan_split

    check_form(to)
    request = Request(
        src,
        out,
        "split",
        like=like,
        reference=None if like is None else open_reference(like),
        renaming=renaming_of(strip_prefix, add_prefix, rename),
        only=only,
        max_shard_size=max_shard_size,
        as_folder=as_folder,
        in_place=in_place,
        drop_foreign=drop_foreign,
        copy=copy,
        require_layers=require_layers,
        clean=clean,
        dry_run=dry_run,
        on_plan=on_plan,
    )
    make_plan = partial(
        plan_split,
        to=to,
        like=None if request.reference is None else request.reference.tree,
        renaming=request.renaming,
        selection=selection_of(layers, exclude, dim),
        only=only,
        keep_optimizer=keep_optimizer,
    )
    options = RunOptions(force=force, threads=threads, verify=verify, progress=bytes_progress(progress))
    return run_conversion(request, make_plan, options=options)


@overload
def migrate_file(
    src: StrPath,
    out: StrPath | None = ...,
    *,
    dry_run: Literal[False] = ...,
    **options: Unpack[_MigrateOptions],
) -> Result: ...


@overload
def migrate_file(
    src: StrPath, out: StrPath | None = ..., *, dry_run: Literal[True], **options: Unpack[_MigrateOptions]
) -> Plan: ...


def migrate_file(
    src: StrPath,
    out: StrPath | None = None,
    *,
    to: Form = "parametrize",
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
) -> Result | Plan:
    """Give the layers of a checkpoint file the names of the other of torch's forms; no tensor changes.

    ``to`` is ``"parametrize"`` (``torch.nn.utils.parametrizations.weight_norm``, from torch 2.1 on) or
    ``"legacy"`` (``torch.nn.utils.weight_norm``); a mixture ends in that form. Keys stand where torch
    has them, ``_metadata`` follows, and going back gives the same bytes again. The state of an optimizer
    stays valid, since the parameters keep their order; where they would not it is an error, and
    ``drop_optimizer`` leaves the state out. ``kinds`` are those of the layers to migrate, as for
    ``fold_file``: ``"spectral"`` norm computes the same in eval, to the bit; prune has no other form. Other
    options as for ``fold_file``.

    Raises as ``fold_file`` does; ``LayerError`` also for a whole pickled module.

    >>> plan = migrate_file("fixtures/g_02500000", dry_run=True)
    >>> plan.layers[0].before.g.name, plan.layers[0].after.g.name
    ('conv_pre.weight_g', 'conv_pre.parametrizations.weight.original0')
    """
    from wnconvert.plan.migrate import plan_migrate

    check_form(str(to))  # here None is not a choice
    request = Request(
        src,
        out,
        to,
        renaming=renaming_of(strip_prefix, add_prefix, rename),
        only=only,
        max_shard_size=max_shard_size,
        as_folder=as_folder,
        in_place=in_place,
        drop_foreign=drop_foreign,
        copy=copy,
        require_layers=require_layers,
        clean=clean,
        dry_run=dry_run,
        on_plan=on_plan,
    )
    return run_conversion(
        request,
        partial(
            plan_migrate,
            to=to,
            selection=selection_of(layers, exclude, AUTO, kinds),
            only=only,
            drop_optimizer=drop_optimizer,
        ),
        options=RunOptions(force=force, threads=threads, verify=verify, progress=bytes_progress(progress)),
    )
