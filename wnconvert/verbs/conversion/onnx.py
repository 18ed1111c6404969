"""An ONNX model folded and put in place, with its data file.

Data files of a replaced model are deleted if they were ours and no other model needs them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wnconvert.errors import OutputError, WnconvertError
from wnconvert.onnx.file.reader import looks_like_onnx
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.sources import Source
from wnconvert.storage.staging import file_in, free_name, staged_folder
from wnconvert.storage.workers import Workers
from wnconvert.verbs.conversion.convert import Result, conversion_result
from wnconvert.verbs.conversion.executor import execute
from wnconvert.verbs.conversion.verify import check_structure
from wnconvert.verbs.options import RunOptions

if TYPE_CHECKING:
    from wnconvert.onnx.file.reader import OnnxFile
    from wnconvert.onnx.graph.plan import OnnxFold

__all__ = ["convert_onnx", "own_data_of", "remove_unused", "write_onnx"]


def own_data_of(target: Path) -> tuple[Path, ...]:
    """The data files of the ONNX model at ``target`` that are called as wnconvert calls them.

    None of them if there is no such model, or the target is a link.
    """
    if target.is_symlink():
        return ()
    name = re.compile(re.escape(target.name) + r"(?:\.\d+)?\.data")
    return tuple(
        path for path in _data_of(target) or () if path.parent == target.parent and name.fullmatch(path.name)
    )


def remove_unused(files: Iterable[Path], target: Path, needed: Iterable[Path]) -> Iterator[str]:
    """Delete data files that the model at ``target`` used before, unless another model needs them; notes.

    Other models are those in the same folder, whatever their names; ``needed`` are more files to keep. If one
    of the models cannot be read, all data files stay.
    """
    old = tuple(files)
    if not old:
        return
    used = {path.resolve() for path in needed if path != target}
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
        with path.open("rb") as file:
            return looks_like_onnx(file, path.stat().st_size)
    except OSError:
        return False


def _data_of(model: Path) -> tuple[Path, ...] | None:
    """The data files of an ONNX model; None if it cannot be read."""
    if not model.is_file():
        return ()
    try:
        return open_checkpoint(model).shards[1:]
    except WnconvertError:
        return None


def _check_apart(output: Path, data: Iterable[Path]) -> None:
    """Refuse to write a model over the data of its own source."""
    if any(output.exists() and path.exists() and output.samefile(path) for path in data):
        raise OutputError("the source keeps its data there", where=str(output), fix="choose another -o")


def convert_onnx(
    checkpoint: Checkpoint,
    fold: OnnxFold,
    output: Path,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Result:
    """Fold an opened ONNX model, run the result beside the original, and put it at ``output``.

    Where tensors of the source lie in data files, those of the output lie in one beside it, of a free name.
    With ``options.verify`` tensors that stay are read back too.

    Raises as ``convert`` does; ``InputError`` where onnx or onnxruntime is not there to check the result.
    """
    from wnconvert.verbs.conversion.onnx_check import check_fold, check_installed

    check_installed()

    def prove(folded: Path) -> tuple[str, tuple[str, ...]]:
        return check_fold(_opened(checkpoint), fold, folded, options.numbers, verify=options.verify)

    return _written(checkpoint, fold, output, options, data_name=free_name(output), prove=prove)


def write_onnx(
    checkpoint: Checkpoint,
    fold: OnnxFold,
    output: Path,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    data_name: str = "",
) -> Result:
    """Fold an opened ONNX model and put it at ``output`` without running it: the caller proves it.

    Its data file is called ``data_name``, by default a free name. Raises as ``convert`` does.
    """
    return _written(
        checkpoint,
        fold,
        output,
        options,
        data_name=data_name or free_name(output),
        prove=lambda _: ("", ()),
    )


def _opened(checkpoint: Checkpoint) -> OnnxFile:
    """The model of a checkpoint from which a fold of a graph was planned."""
    assert checkpoint.onnx is not None  # noqa: S101 - the plan was made from it
    return checkpoint.onnx


def _written(
    checkpoint: Checkpoint,
    fold: OnnxFold,
    output: Path,
    options: RunOptions,
    *,
    data_name: str,
    prove: Callable[[Path], tuple[str, tuple[str, ...]]],
) -> Result:
    """Write the folded model, have it proven before it is put in place, and delete data that it replaced.

    ``prove`` gets the path of the new model and returns who read it back, and notes.
    """
    from wnconvert.onnx.file.writer import onnx_layouts

    began = time.perf_counter()
    _check_apart(output, checkpoint.shards[1:])
    model, data = onnx_layouts(_opened(checkpoint), fold.edits, data_name)
    layouts = {output.name: model} if data is None else {data_name: data, output.name: model}
    size = sum(layout.size for layout in layouts.values())
    bytes_in = sum(path.stat().st_size for path in checkpoint.shards)
    old = own_data_of(output) if options.force else ()
    notes: tuple[str, ...] = ()
    with (
        staged_folder(output, force=options.force, size=size) as folder,
        Source(checkpoint.shards) as source,
    ):
        workers = Workers(options.threads, options.progress)
        policy = replace(options.numbers, can_cast=False)
        for name, layout in layouts.items():
            with file_in(folder, name, output) as target:
                notes += execute(source, target, layout, policy, workers)
        check_structure(folder / output.name, "onnx")
        verified, more = prove(folder / output.name)
    in_place = output.resolve() == checkpoint.path.resolve()
    deleted = remove_unused(old, output, () if in_place else checkpoint.shards)
    return conversion_result(
        checkpoint,
        fold.plan,
        output,
        began,
        bytes_in=bytes_in,
        bytes_out=size,
        notes=(*notes, *more, *deleted),
        verified=verified,
    )
