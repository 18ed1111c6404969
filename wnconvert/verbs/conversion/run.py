"""One conversion of a file or a folder: open it, plan, write; errors say which file it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wnconvert.errors import ArgumentError, OutputError, WnconvertError
from wnconvert.layers.schemes import Selection
from wnconvert.messages import listed
from wnconvert.numerics.rows import RowPolicy
from wnconvert.plan.plan import Plan
from wnconvert.storage.checkpoint import Checkpoint, container_of, no_graph, open_checkpoint
from wnconvert.storage.shards import DEFAULT_SHARD_SIZE, bytes_of
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Tree
from wnconvert.verbs.conversion.convert import Result, convert, convert_folder
from wnconvert.verbs.conversion.onnx import convert_onnx
from wnconvert.verbs.conversion.targets import (
    FolderTarget,
    StrPath,
    check_apart,
    default_output,
    has_suffix,
    is_folder_target,
)

if TYPE_CHECKING:
    from wnconvert.onnx.file.reader import OnnxFile
    from wnconvert.onnx.graph.plan import OnnxFold

__all__ = ["open_reference", "plan_onnx_fold", "run_conversion"]


def run_conversion(
    src: StrPath,
    out: StrPath | None,
    kind: str,
    make_plan: Callable[[Tree, Container], Plan],
    *,
    plan_graph: Callable[[OnnxFile], OnnxFold] | None = None,
    numbers: RowPolicy = RowPolicy(),  # noqa: B008 - frozen
    like: StrPath | None = None,
    max_shard_size: str | int,
    verify: bool,
    force: bool,
    threads: int | None,
    dry_run: bool,
    progress: Callable[[int, int], None],
) -> Result | Plan:
    """Open ``src``, plan what goes into ``out``, and write it; errors say which file it was."""
    source = Path(src)
    if out is not None and not os.fspath(out):
        raise ArgumentError("the name of the output is empty", fix="-o OUT, or leave it out")
    output = default_output(source, kind) if out is None else Path(out)
    if threads is not None and threads < 1:
        raise ArgumentError(f"{threads} threads cannot work", fix="--threads 1 or more")
    bytes_of(max_shard_size)
    try:
        checkpoint = open_checkpoint(source)
        to_folder = _makes_folder(checkpoint, output if out is None else out, max_shard_size)
        if checkpoint.onnx is not None and plan_graph is not None:
            _check_suffix(output)
            fold = plan_graph(checkpoint.onnx)
            plan, write = fold.plan, partial(convert_onnx, checkpoint, fold, output)
        elif to_folder:
            target = FolderTarget.of(checkpoint, output, max_shard_size)
            plan = target.planned(make_plan(checkpoint.tree, target.container), checkpoint)
            if not dry_run:
                target.check(checkpoint, like)
            write = partial(convert_folder, checkpoint, plan, target.beside, output)
        else:
            _check_is_checkpoint(checkpoint, output, kind)
            plan = make_plan(checkpoint.tree, container_of(output))
            if checkpoint.folder and not dry_run:
                check_apart(checkpoint, output)
            write = partial(convert, checkpoint, plan, output)
        if dry_run:
            return plan
        return write(force=force, threads=threads, numbers=numbers, verify=verify, progress=progress)
    except OutputError as error:
        error.where = error.where or str(output)
        raise
    except WnconvertError as error:
        if error.where != str(source) and not error.where.startswith(f"{source}{os.sep}"):
            error.where = f"{source}: {error.where}" if error.where else str(source)
        raise


def _makes_folder(checkpoint: Checkpoint, out: StrPath, max_shard_size: str | int) -> bool:
    """Whether the output is a folder; raise ``ArgumentError`` for what only fits the other."""
    to_folder = is_folder_target(out, from_folder=checkpoint.folder is not None)
    if to_folder and checkpoint.onnx:
        raise ArgumentError(f"an ONNX model is a file, and {out} a folder", fix="-o OUT.onnx")
    if max_shard_size != DEFAULT_SHARD_SIZE and not to_folder:
        raise ArgumentError(
            f"--max-shard-size cuts the weights of a folder, and {out} will be a file", fix="-o FOLDER/"
        )
    return to_folder


def plan_onnx_fold(opened: OnnxFile, *, selection: Selection, given: list[str]) -> OnnxFold:
    """The fold of an ONNX model; ``ArgumentError`` for options ``given`` that only checkpoints have."""
    from wnconvert.onnx.graph.plan import plan_onnx

    if given:
        raise ArgumentError(
            f"{listed(given)} can only be said of a checkpoint, and this is an ONNX model",
            fix="leave it out; --layers and --exclude choose layers",
        )
    return plan_onnx(opened, selection)


def _check_suffix(output: Path) -> None:
    """An ONNX model stays one: its graph has no place in a checkpoint."""
    name = output.name.lower()
    if not name.endswith(".onnx") and has_suffix(name):
        raise ArgumentError(
            f"{output.name} would be a checkpoint, and the graph of an ONNX model has no place in one",
            fix="-o OUT.onnx; or fold the checkpoint that the model was exported from",
        )


def _check_is_checkpoint(checkpoint: Checkpoint, output: Path, kind: str) -> None:
    """What is not folded is no ONNX model, and no checkpoint becomes one."""
    no_graph(checkpoint, kind if kind == "split" else "migrated")
    if container_of(output) is Container.ONNX:
        raise ArgumentError(
            f"{output.name} would be an ONNX model, and a checkpoint has no graph",
            fix="wnconvert export, which takes the module's code too; or -o OUT.safetensors",
        )


def open_reference(like: StrPath) -> Tree:
    """The tree of the checkpoint that ``--like`` names."""
    return no_graph(open_checkpoint(Path(like)), "the reference of a split").tree
