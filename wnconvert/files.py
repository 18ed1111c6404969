"""The verbs on files: open, plan, convert. ``wnconvert fold`` and ``fold_file`` are the same call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeAlias, overload

from wnconvert.checkpoint import container_of, open_checkpoint
from wnconvert.convert import Result, convert
from wnconvert.dims import AUTO
from wnconvert.errors import ArgumentError, OutputError, WnconvertError
from wnconvert.options import dtype_of, numbers_of, selection_of
from wnconvert.plan import Plan, plan_fold

__all__ = ["default_output", "fold_file"]

StrPath: TypeAlias = str | os.PathLike[str]

# Longest first: x.pth.tar has the suffix .pth.tar, not .tar.
_SUFFIXES = (
    ".pth.tar",
    ".pt.tar",
    ".ckpt.tar",
    ".safetensors",
    ".ckpt",
    ".pth",
    ".bin",
    ".pt",
    ".th",
    ".pkl",
    ".tar",
)


def default_output(source: StrPath, verb: str) -> Path:
    """Where a conversion writes unless it is told: beside the source, ``.folded`` before the known suffix.

    >>> default_output("x.pth.tar", "folded").name, default_output("g_02500000", "folded").name
    ('x.folded.pth.tar', 'g_02500000.folded')
    """
    path = Path(source)
    if not path.name:
        return path  # "." has no name to change, and is no checkpoint either
    for suffix in _SUFFIXES:
        stem = path.name.removesuffix(suffix)
        if stem != path.name and stem:
            return path.with_name(f"{stem}.{verb}{suffix}")
    return path.with_name(f"{path.name}.{verb}")


@overload
def fold_file(
    src: StrPath,
    out: StrPath | None = ...,
    *,
    only: str | None = ...,
    dtype: str | None = ...,
    layers: Iterable[str] = ...,
    exclude: Iterable[str] = ...,
    dim: int | str | None = ...,
    zero_rows: str = ...,
    allow_nonfinite: bool = ...,
    keep_optimizer: bool = ...,
    verify: bool = ...,
    force: bool = ...,
    threads: int | None = ...,
    dry_run: Literal[False] = ...,
    progress: Callable[[int, int], None] = ...,
) -> Result: ...


@overload
def fold_file(
    src: StrPath,
    out: StrPath | None = ...,
    *,
    only: str | None = ...,
    dtype: str | None = ...,
    layers: Iterable[str] = ...,
    exclude: Iterable[str] = ...,
    dim: int | str | None = ...,
    zero_rows: str = ...,
    allow_nonfinite: bool = ...,
    keep_optimizer: bool = ...,
    verify: bool = ...,
    force: bool = ...,
    threads: int | None = ...,
    dry_run: Literal[True],
    progress: Callable[[int, int], None] = ...,
) -> Plan: ...


def fold_file(
    src: StrPath,
    out: StrPath | None = None,
    *,
    only: str | None = None,
    dtype: str | None = None,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dim: int | str | None = AUTO,
    zero_rows: str = "error",
    allow_nonfinite: bool = False,
    keep_optimizer: bool = False,
    verify: bool = False,
    force: bool = False,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result | Plan:
    """Fold the weight-normalized layers of a checkpoint file into plain weights.

    ``src`` is a checkpoint of any readable format; ``out`` is written as safetensors where its suffix says
    so, else as a torch zip (default: ``.folded`` before the suffix of ``src``). ``only`` is the path of
    the one state dict to keep. ``dtype`` (``"float16"``, ``"bfloat16"``, ``"float32"``) folds and casts
    in one rounding. ``layers`` and ``exclude`` are globs on weights' names. ``dim`` is an axis, None for
    the whole tensor, or ``"auto"``: read from g's shape. ``zero_rows`` is ``"error"`` or ``"zero"``.
    ``progress`` is called with the bytes done and in all. With ``dry_run`` nothing is written and the
    ``Plan`` is returned.

    Raises ``WnconvertError``: ``InputError``, ``LayerError``, ``NumbersError``, ``OutputError``,
    ``ArgumentError``, ``VerifyError``; nothing is written then.

    >>> plan = fold_file("fixtures/g_02500000", dry_run=True)
    >>> len(plan.layers), plan.layers[0][1].name
    (78, 'conv_pre.weight')
    """
    source = Path(src)
    if out is not None and not os.fspath(out):
        raise ArgumentError("the name of the output is empty", fix="-o OUT, or leave it out")
    output = default_output(source, "folded") if out is None else Path(out)
    numbers = numbers_of(zero_rows, allow_nonfinite=allow_nonfinite)
    if threads is not None and threads < 1:
        raise ArgumentError(f"{threads} threads cannot work", fix="--threads 1 or more")
    try:
        checkpoint = open_checkpoint(source)
        plan = plan_fold(
            checkpoint.tree,
            container_of(output),
            selection=selection_of(layers, exclude, dim),
            only=only,
            dtype=dtype_of(dtype),
            keep_optimizer=keep_optimizer,
        )
        if dry_run:
            return plan
        return convert(
            checkpoint,
            plan,
            output,
            force=force,
            threads=threads,
            numbers=numbers,
            verify=verify,
            progress=progress,
        )
    except OutputError as error:
        error.where = error.where or str(output)
        raise
    except WnconvertError as error:
        if error.where != str(source):
            error.where = f"{source}: {error.where}" if error.where else str(source)
        raise
