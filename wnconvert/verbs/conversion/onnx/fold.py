"""An ONNX model folded and put in place, with its data file.

Data files of a replaced model are deleted if they were ours and no other model needs them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from wnconvert.errors import InputError, OutputError, WnconvertError
from wnconvert.layers.schemes import Selection
from wnconvert.numerics.rows import RowPolicy, Wider
from wnconvert.onnx.file.provenance import made_step
from wnconvert.onnx.file.reader import looks_like_onnx
from wnconvert.plan.layout import Layout
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.files import check_as_seen, common_mode, open_file, real_of, status_of
from wnconvert.storage.sources import Source
from wnconvert.storage.staging import file_in, free_name, put_in_place, scratch_folder
from wnconvert.storage.stores.temporary import mark_replaced
from wnconvert.storage.workers import Workers
from wnconvert.verbs.conversion.convert import Result, conversion_result
from wnconvert.verbs.conversion.executor import execute
from wnconvert.verbs.conversion.onnx import works as _works  # noqa: F401 - kinds of work that it does
from wnconvert.verbs.conversion.onnx.ready import Ready
from wnconvert.verbs.conversion.onnx.record import append_record, without_record
from wnconvert.verbs.shared.digests import sha256_beside
from wnconvert.verbs.shared.options import RunOptions

if TYPE_CHECKING:
    from wnconvert.onnx.file.reader import OnnxFile
    from wnconvert.onnx.graph.plan import Evaluation, OnnxFold
    from wnconvert.onnx.graph.weights import EvaluatedWeight, RunWeight
    from wnconvert.verbs.conversion.onnx.check import FoldCheck

__all__ = ["convert_onnx", "model_layouts", "own_data_of", "plan_graph_fold", "remove_unused", "write_model"]


def plan_graph_fold(
    opened: OnnxFile, selection: Selection, *, constants: bool, requantize: bool = False
) -> OnnxFold:
    """Plan the fold of an ONNX model as ``plan_onnx`` does, which evaluates what no rule knows.

    Raises ``InputError`` if onnx, which does that, is not installed and something is to be evaluated.
    """
    from wnconvert.onnx.graph.plan import plan_onnx

    with ExitStack() as stack:

        @cache
        def first_needed() -> Evaluation:
            from wnconvert.onnx.evaluation import evaluation_by
            from wnconvert.onnx.slices import Slices
            from wnconvert.verbs.conversion.onnx.check import check_installed

            check_installed(runs=False)
            return evaluation_by(Slices(opened, stack.enter_context(Source(opened.shards)).files))

        def evaluation(weight: RunWeight) -> EvaluatedWeight | str:
            return first_needed()(weight)

        return plan_onnx(opened, selection, evaluation, constants=constants, requantize=requantize)


def own_data_of(target: Path) -> tuple[Path, ...]:
    """The data files of the ONNX model at ``target`` that are called as wnconvert calls them.

    None of them if there is no such model, or the target is a link.
    """
    if target.is_symlink() or not target.is_file():
        return ()
    name = re.compile(re.escape(target.name) + r"(?:\.\d+)?\.data")
    if not any(name.fullmatch(each.name) for each in target.parent.iterdir()):
        return ()  # so the model need not be read
    return tuple(
        path for path in _data_of(target) or () if path.parent == target.parent and name.fullmatch(path.name)
    )


def remove_unused(files: Iterable[Path], target: Path, needed: Iterable[PurePath]) -> Iterator[str]:
    """Delete data files that the model at ``target`` used before, unless another model needs them; notes.

    Other models are those in the same folder, whatever their names; ``needed`` are more files to keep. If one
    of the models cannot be read, all data files stay.
    """
    old = tuple(files)
    if not old:
        return
    used: set[PurePath] = {real_of(path) for path in needed if path != target}
    for model in target.parent.iterdir():
        data = _data_of(model) if model not in old and _is_model(model) else ()
        if data is None:
            used |= {path.resolve() for path in old}
        else:
            used |= {path.resolve() for path in data}
    for path in old:
        if path.resolve() in used:
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError:
            continue
        yield f"{path.name}, the data of the model that was replaced, is deleted"


def _is_model(path: Path) -> bool:
    if path.suffix == ".onnx":
        return True
    try:
        if not path.is_file():
            return False
        with closing(open_file(path)) as file:
            return looks_like_onnx(file)
    except (OSError, InputError):
        return False


def _data_of(model: Path) -> tuple[Path, ...] | None:
    """The data files of an ONNX model; None if it cannot be read."""
    if not model.is_file():
        return ()
    try:
        return tuple(map(Path, open_checkpoint(model).shards[1:]))
    except WnconvertError:
        return None


def _check_apart(output: Path, data: Iterable[PurePath]) -> None:
    """Refuse to write a model over the data of its own source."""
    here = (path for path in data if isinstance(path, Path))
    if any(output.exists() and path.exists() and output.samefile(path) for path in here):
        raise OutputError("the source keeps its data there", where=str(output), fix="choose another -o")


def model_layouts(opened: OnnxFile, fold: OnnxFold, target: Path) -> dict[str, Layout]:
    """The files that a folded model consists of, by name: its data first, where the source has data files."""
    from wnconvert.onnx.file.writer import onnx_layouts

    data_name = free_name(target)
    with closing(open_file(opened.path)) as file:
        model, data = onnx_layouts(file, opened, fold.edits, data_name)
    return {target.name: model} if data is None else {data_name: data, target.name: model}


def write_model(
    checkpoint: Checkpoint,
    layouts: Mapping[str, Layout],
    folder: Path,
    target: Path,
    *,
    numbers: RowPolicy = RowPolicy(),  # noqa: B008 - frozen
    workers: Workers,
) -> tuple[str, ...]:
    """Write the files of a folded model into ``folder``, on their way to ``target``; returns notes."""
    notes: tuple[str, ...] = ()
    mode = common_mode(checkpoint.shards)
    with Source(checkpoint.shards, opener=checkpoint.reopen) as source:
        for name, layout in layouts.items():
            with file_in(folder, name, target, mode) as file:
                notes += execute(source, file, layout, replace(numbers, wider=Wider.NEVER), workers)
    return notes


def convert_onnx(
    checkpoint: Checkpoint,
    fold: OnnxFold,
    output: Path,
    options: RunOptions,
    ready: Ready,
) -> Result:
    """Fold an opened ONNX model, run the result beside the original, and put it at ``output``.

    ``ready`` is what has been started to run them. If tensors of the source lie in data files, those of the
    output lie in one beside it, under a free name.
    With ``options.verify`` the tensors that stay are read back too.

    Raises as ``convert`` does, and ``InputError`` if onnx or onnxruntime is not there to check the result.
    """
    from wnconvert.verbs.conversion.onnx.check import check_fold, check_installed, importing_checker

    began = time.perf_counter()
    opened = checkpoint.onnx
    assert opened is not None  # noqa: S101 - the plan was made from it
    check_installed(runs=options.proving.runs)
    if fold.makes_weights:
        fold = without_record(opened, fold)
    _check_apart(output, checkpoint.shards[1:])
    layouts = model_layouts(opened, fold, output)
    size = sum(layout.size for layout in layouts.values())
    bytes_in = sum(status_of(path).size for path in checkpoint.shards)
    old = own_data_of(output) if options.force else ()

    def last_look() -> None:
        check_as_seen(checkpoint.seen)
        mark_replaced(scratch, old)  # in place these are the source's own: another name would be a change

    in_place = real_of(output) == real_of(checkpoint.path)
    with (
        scratch_folder(output, force=options.force, size=size) as scratch,
        importing_checker(),
    ):
        folder = scratch / "new"
        folder.mkdir(0o700)
        workers = Workers(options.threads, options.progress)
        notes = write_model(checkpoint, layouts, folder, output, numbers=options.numbers, workers=workers)
        recorded = checkpoint.shards if options.record and fold.makes_weights else ()
        with sha256_beside(*recorded) as digests:
            checked = check_fold(
                opened,
                fold,
                folder / output.name,
                options.numbers,
                verify=options.verify,
                proving=options.proving,
                ready=ready,
            )
            if sha256 := digests():
                step = _step(fold, sha256, checked)
                size += append_record(folder / output.name, opened.provenance.steps, step)
        put_in_place(folder, output, force=options.force, check=last_look)
        deleted = tuple(remove_unused(old, output, () if in_place else checkpoint.shards))
    return conversion_result(
        checkpoint,
        fold.plan,
        output,
        began,
        bytes_in=bytes_in,
        bytes_out=size,
        notes=(*notes, *checked.notes, *deleted),
        verified=checked.by,
    )


def _step(fold: OnnxFold, sha256: Sequence[str], checked: FoldCheck) -> dict[str, Any]:
    """The record of a fold."""
    kinds = {item.layer.name: item.layer.rule.kind for item in fold.layers}
    return made_step(
        "fold",
        sha256=sha256,
        folded=kinds,
        proof=checked.by,
        tolerance=checked.tolerance,
        constants=[item.name for item in fold.plan.constants],
    )
