"""One conversion of a file or a folder: open it, plan, write; errors say which file it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wnconvert.errors import ArgumentError, OutputError, WnconvertError
from wnconvert.layers.schemes import Selection
from wnconvert.messages import listed, refuse_other_than_path
from wnconvert.plan.plan import Plan
from wnconvert.storage.checkpoint import Checkpoint, container_of, no_graph, open_checkpoint
from wnconvert.storage.shards import DEFAULT_SHARD_SIZE, bytes_of
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Tree
from wnconvert.verbs.conversion.targets import (
    FolderTarget,
    StrPath,
    check_apart,
    default_output,
    has_suffix,
    is_folder_target,
)
from wnconvert.verbs.options import RunOptions

if TYPE_CHECKING:
    from wnconvert.onnx.file.reader import OnnxFile
    from wnconvert.onnx.graph.plan import OnnxFold
    from wnconvert.verbs.conversion.convert import Result

__all__ = ["open_reference", "plan_onnx_fold", "run_conversion"]


def run_conversion(
    src: StrPath,
    out: StrPath | None,
    kind: str,
    make_plan: Callable[[Tree, Container], Plan],
    *,
    plan_graph: Callable[[OnnxFile], OnnxFold] | None = None,
    options: RunOptions,
    like: StrPath | None = None,
    max_shard_size: str | int,
    dry_run: bool,
) -> Result | Plan:
    """Open ``src``, plan what goes into ``out``, and write it; errors say which file it was."""
    refuse_other_than_path(src)
    if out is not None:
        refuse_other_than_path(out, "an output")
    source = Path(src)
    if out is not None and not os.fspath(out):
        raise ArgumentError("the name of the output is empty", fix="-o OUT, or leave it out")
    output = default_output(source, kind) if out is None else Path(out)
    bytes_of(max_shard_size)
    try:
        checkpoint = open_checkpoint(source)
        to_folder = _makes_folder(checkpoint, output if out is None else out, max_shard_size)
        if checkpoint.onnx is not None and plan_graph is not None:
            _check_suffix(output)
            job = _to_onnx(checkpoint, plan_graph(checkpoint.onnx), output)
        elif to_folder:
            job = _to_folder(checkpoint, make_plan, output, max_shard_size, like)
        else:
            _check_is_checkpoint(checkpoint, output, kind)
            job = _to_file(checkpoint, make_plan(checkpoint.tree, container_of(output)), output)
        return job.plan if dry_run else job.run(options)
    except OutputError as error:
        error.where = error.where or str(output)
        raise
    except WnconvertError as error:
        if error.where != str(source) and not error.where.startswith(f"{source}{os.sep}"):
            error.where = f"{source}: {error.where}" if error.where else str(source)
        raise


@dataclass(frozen=True, slots=True)
class _Job:
    """A plan, and the function that runs it."""

    plan: Plan
    run: Callable[[RunOptions], Result]


def _to_onnx(checkpoint: Checkpoint, fold: OnnxFold, output: Path) -> _Job:
    def run(options: RunOptions) -> Result:
        from wnconvert.verbs.conversion.onnx.fold import convert_onnx

        return convert_onnx(checkpoint, fold, output, options)

    return _Job(fold.plan, run)


def _to_folder(
    checkpoint: Checkpoint,
    make_plan: Callable[[Tree, Container], Plan],
    output: Path,
    max_shard_size: str | int,
    like: StrPath | None,
) -> _Job:
    target = FolderTarget.of(checkpoint, output, max_shard_size)
    plan = target.planned(make_plan(checkpoint.tree, target.container), checkpoint)

    def run(options: RunOptions) -> Result:
        from wnconvert.verbs.conversion.convert import convert_folder

        target.check(checkpoint, like)
        return convert_folder(checkpoint, plan, target.beside, output, options)

    return _Job(plan, run)


def _to_file(checkpoint: Checkpoint, plan: Plan, output: Path) -> _Job:
    def run(options: RunOptions) -> Result:
        from wnconvert.verbs.conversion.convert import convert

        if checkpoint.folder:
            check_apart(checkpoint, output)
        return convert(checkpoint, plan, output, options)

    return _Job(plan, run)


def _makes_folder(checkpoint: Checkpoint, out: StrPath, max_shard_size: str | int) -> bool:
    """Whether the output is a folder; raise ``ArgumentError`` for options that only fit the other."""
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
            f"only checkpoints take {listed(given)}, and this is an ONNX model",
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
    """Only ``fold`` takes ONNX models, and no checkpoint can become one."""
    no_graph(checkpoint, kind if kind == "split" else "migrated")
    if container_of(output) is Container.ONNX:
        raise ArgumentError(
            f"{output.name} would be an ONNX model, and a checkpoint has no graph",
            fix="wnconvert export, which takes the module's code too; or -o OUT.safetensors",
        )


def open_reference(like: StrPath) -> Tree:
    """The tree of the checkpoint that ``--like`` names."""
    refuse_other_than_path(like, "the reference")
    return no_graph(open_checkpoint(Path(like)), "the reference of a split").tree
