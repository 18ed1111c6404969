"""One conversion of a file or a folder: open it, plan, write; errors say which file it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from wnconvert.errors import ArgumentError, InputError, LayerError, OutputError, WnconvertError
from wnconvert.layers.schemes import Selection
from wnconvert.messages import listed, refuse_other_than_path
from wnconvert.plan.names.renaming import Renaming
from wnconvert.plan.names.trees import NewNames, renamed_keys, weights_of
from wnconvert.plan.plan import Plan
from wnconvert.plan.selection.scope import choose
from wnconvert.storage.checkpoint import Checkpoint, container_of, no_graph, open_checkpoint
from wnconvert.storage.files import located, output_path
from wnconvert.storage.shards import DEFAULT_SHARD_SIZE, bytes_of
from wnconvert.tensors.containers import Container
from wnconvert.tensors.foreign import check_true_name
from wnconvert.tensors.tree import Tree
from wnconvert.verbs.conversion.piped import goes_to_stdout, to_stdout
from wnconvert.verbs.conversion.targets import (
    FolderTarget,
    StrPath,
    check_apart,
    default_output,
    has_suffix,
    is_folder_target,
)
from wnconvert.verbs.conversion.unfound import noting_unfound
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
    renaming: Renaming,
    only: str | None,
    like: StrPath | None = None,
    reference: Tree | None = None,
    max_shard_size: str | int,
    dry_run: bool,
) -> Result | Plan:
    """Open ``src``, rename, plan what goes into ``out``, and write it; errors say which file it was.

    ``reference`` is the tree of ``like``: a rule of ``renaming`` may meet its names alone.
    """
    refuse_other_than_path(src)
    if out is not None:
        refuse_other_than_path(out, "an output")
    if goes_to_stdout(src, out):

        def convert_to(path: StrPath) -> Result | Plan:
            return run_conversion(
                src,
                path,
                kind,
                make_plan,
                plan_graph=plan_graph,
                options=options,
                renaming=renaming,
                only=only,
                like=like,
                reference=reference,
                max_shard_size=max_shard_size,
                dry_run=dry_run,
            )

        return to_stdout(src, convert_to, dry_run=dry_run)
    source = located(src)
    if out is not None and not os.fspath(out):
        raise ArgumentError("the name of the output is empty", fix="-o OUT, or leave it out")
    output = default_output(source, kind) if out is None else output_path(out)
    bytes_of(max_shard_size)
    with _errors_name(source, output):
        opened = open_checkpoint(source)
        _check_not_frozen(opened)
        names = _new_names(opened, renaming, only, reference)
        checkpoint = opened.renamed(names) if names else opened
        to_folder = _makes_folder(checkpoint, output if out is None else out, max_shard_size)
        if out is not None:
            _check_name(checkpoint, out, to_folder=to_folder)
        if checkpoint.onnx is not None and plan_graph is not None:
            _check_suffix(output)
            job = _to_onnx(checkpoint, plan_graph(checkpoint.onnx), output)
        elif to_folder:
            plan: Callable[[Tree, Container], Plan] = partial(_named, make_plan, names)
            if checkpoint.folder is not None:
                plan = noting_unfound(plan, checkpoint.folder.root)
            job = _to_folder(checkpoint, plan, output, max_shard_size, like)
        else:
            _check_is_checkpoint(checkpoint, output, kind)
            job = _to_file(
                checkpoint, _named(make_plan, names, checkpoint.tree, container_of(output)), output
            )
        return job.plan if dry_run else job.run(options)


@contextlib.contextmanager
def _errors_name(source: PurePath, output: Path) -> Iterator[None]:
    """Errors that are raised inside say which file it was."""
    try:
        yield
    except OutputError as error:
        error.where = error.where or str(output)
        raise
    except WnconvertError as error:
        if error.where != str(source) and not error.where.startswith(f"{source}{os.sep}"):
            error.where = f"{source}: {error.where}" if error.where else str(source)
        raise


def _new_names(
    checkpoint: Checkpoint, renaming: Renaming, only: str | None, reference: Tree | None
) -> Mapping[str, NewNames]:
    """The new names of the state dicts that are converted, by path."""
    if not renaming:
        return {}
    if checkpoint.onnx is not None:
        raise ArgumentError(
            "names are changed in checkpoints, and this is an ONNX model",
            fix="leave --strip-prefix, --add-prefix and --rename out",
        )
    states = () if reference is None else reference.state_dicts
    beside = [name for state in states for name in weights_of(state).values()]
    return renamed_keys(checkpoint.tree, choose(checkpoint.tree, only), renaming, beside)


def _named(
    make_plan: Callable[[Tree, Container], Plan],
    names: Mapping[str, NewNames],
    tree: Tree,
    container: Container,
) -> Plan:
    """A plan that counts the names that are new in it. Raises ``LayerError`` for a module's own names."""
    plan = make_plan(tree, container)
    changed = {
        planned.path: names[planned.path].changed for planned in plan.state_dicts if planned.path in names
    }
    for path, count in changed.items():
        if count and tree.state_dict(path).is_module and container is not Container.SAFETENSORS:
            raise LayerError(
                "a whole pickled module, whose names are in its code too, cannot be renamed in the file",
                where=path,
                fix="-o OUT.safetensors for its tensors alone",
            )
    return replace(plan, renamed=sum(changed.values()))


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


def _check_name(checkpoint: Checkpoint, out: StrPath, *, to_folder: bool) -> None:
    """An output is what its suffix says; a folder that ends in a slash, or exists, may have any name."""
    path = output_path(out)
    if checkpoint.onnx:
        check_true_name(path.name, Container.ONNX.facts.noun, "-o OUT.onnx")
    elif not to_folder:
        check_true_name(path.name, container_of(path).facts.noun)
    elif not os.fspath(out).endswith(os.sep) and not path.is_dir():
        check_true_name(path.name, "a folder")


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


def _check_not_frozen(checkpoint: Checkpoint) -> None:
    """Raise ``InputError`` for a TorchScript archive without weights that could be told from its code."""
    if checkpoint.torch is not None and checkpoint.torch.is_frozen:
        from wnconvert.formats.torch.reader import FROZEN

        raise InputError(
            FROZEN,
            fix="use the archive from before torch.jit.freeze, or a checkpoint of the module",
        )


def open_reference(like: StrPath) -> Tree:
    """The tree of the checkpoint that ``--like`` names."""
    refuse_other_than_path(like, "the reference")
    return no_graph(open_checkpoint(like), "the reference of a split").tree
