"""Fold checkpoints, folders and ONNX models; ``wnconvert fold`` and ``fold_file`` are one call.

With ``dry_run`` it returns the very plan that it would run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, overload

from wnconvert.layers.dims import AUTO
from wnconvert.storage.shards import DEFAULT_SHARD_SIZE
from wnconvert.tensors.dtypes import AnyDType
from wnconvert.verbs.conversion.jobs import Request
from wnconvert.verbs.conversion.run import plan_onnx_fold, run_conversion
from wnconvert.verbs.conversion.targets import StrPath
from wnconvert.verbs.shared.options import (
    TIMEOUT,
    DimOption,
    ProofOption,
    Proving,
    RunOptions,
    ZeroRows,
    dtype_of,
    numbers_of,
    renaming_of,
    selection_of,
)
from wnconvert.verbs.shared.progress import Progress, bytes_progress
from wnconvert.verbs.shared.recipes import recipe_given

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from wnconvert.layers.recipes import Recipe
    from wnconvert.plan.plan import Plan
    from wnconvert.verbs.conversion.convert import Result
    from wnconvert.verbs.conversion.files.overloads import FoldOptions

__all__ = ["fold_file"]


@overload
def fold_file(
    src: StrPath, out: StrPath | None = ..., *, dry_run: Literal[False] = ..., **options: Unpack[FoldOptions]
) -> Result: ...


@overload
def fold_file(
    src: StrPath, out: StrPath | None = ..., *, dry_run: Literal[True], **options: Unpack[FoldOptions]
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
    recipe: StrPath | Recipe | None = None,
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
    needs all of them. ``recipe``, a ``Recipe`` or its file, tells what keys do not: which norms fold into
    which layers, and what classes make of their weights. ``dim`` is an axis, None for the whole tensor, or
    ``"auto"``: read from shapes.
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

    told = recipe_given(recipe)
    selection = selection_of(layers, exclude, dim, kinds, told)
    others = _of_checkpoints(
        only, dtype, dim, recipe, keep_optimizer=keep_optimizer, drop_foreign=drop_foreign
    )
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
    only: str | None,
    dtype: AnyDType | None,
    dim: DimOption,
    recipe: object,
    *,
    keep_optimizer: bool,
    drop_foreign: bool,
) -> dict[str, object]:
    """The options that only checkpoints take, by their names; None for those that are not given."""
    return {
        "--only": only,
        "--dtype": dtype,
        "--keep-optimizer": keep_optimizer or None,
        "--drop-foreign": drop_foreign or None,
        "--dim": None if dim == AUTO else str(dim),
        "--recipe": recipe,
    }
