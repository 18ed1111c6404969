"""Checks a folded ONNX model against the original: by onnx's checker, and by onnxruntime.

The arithmetic of every layer is cut out of the original and run; both whole models are run on made-up inputs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import field, replace
from pathlib import Path

from wnconvert.errors import InputError, VerifyError
from wnconvert.frozen import dataclass
from wnconvert.heap import give_back
from wnconvert.messages import REPORT_BUG, counted, listed, printable, to_install
from wnconvert.numerics.rows import RowPolicy
from wnconvert.onnx.file.model import Constant, Node, OnnxFunction
from wnconvert.onnx.file.outline import NOWHERE, outline_of
from wnconvert.onnx.file.reader import OnnxFile, stored_in
from wnconvert.onnx.file.unchanged import check_unchanged
from wnconvert.onnx.graph.plan import OnnxFold
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.plan.layout import Requantized
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.files import local_path, open_file
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import BLOCK_BYTES
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import ByteRange, StoredTensor
from wnconvert.verbs.conversion.onnx.compared import layer_tolerance
from wnconvert.verbs.conversion.onnx.evaluated import compare_evaluated
from wnconvert.verbs.conversion.onnx.layers import compare_layers
from wnconvert.verbs.conversion.onnx.ready import Ready
from wnconvert.verbs.conversion.onnx.run import (
    BETWEEN_ROUNDINGS,
    REQUANTIZED,
    WHOLE_NUMBERS,
    compare_whole,
    whole_tolerance,
)
from wnconvert.verbs.conversion.verify.structure import check_structure
from wnconvert.verbs.shared.options import Proving

__all__ = ["FoldCheck", "check_fold", "check_installed", "importing_checker", "refused"]


def check_installed(*, runs: bool = True) -> None:
    """Raise ``InputError`` if what checks every new model is not installed.

    That is onnx, and onnxruntime if the model ``runs``.
    """
    needed = ("onnx", "onnxruntime") if runs else ("onnx",)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        raise InputError(
            f"an ONNX model is checked before it is put in place, and {listed(missing)} {are} not installed",
            fix=to_install(*missing),
        )


@contextlib.contextmanager
def importing_checker() -> Iterator[None]:
    """Import onnx's checker while the body runs."""
    imports = threading.Thread(target=importlib.import_module, args=("onnx.checker",))
    imports.start()
    try:
        yield
    finally:
        imports.join()


@dataclass(frozen=True, slots=True)
class FoldCheck:
    """A check that a folded model passed: what was compared, in words, notes, and the tolerances.

    These are ``layers_rtol``, of each element of a weight, and ``outputs_of_largest``, a part of the largest
    element of an output, where the whole model was run.
    """

    by: str
    notes: tuple[str, ...]
    tolerance: Mapping[str, float | None] = field(default_factory=dict)


def check_fold(
    opened: OnnxFile,
    fold: OnnxFold,
    path: Path,
    numbers: RowPolicy = RowPolicy(),  # noqa: B008 - frozen
    *,
    verify: bool = False,
    proving: Proving = Proving(),  # noqa: B008 - frozen
    ready: Ready = Ready(),  # noqa: B008 - frozen
) -> FoldCheck:
    """Check the folded model at ``path`` against the original.

    Everything in the model except the edits is compared byte by byte; with ``verify``, tensors in data files
    too; ``proving`` says what is run, and how long; ``ready`` has what has been started already. Raises
    ``VerifyError`` if onnx's checker refuses the new model, or if it holds or computes something else.
    """
    original = local_path(opened.path, "onnxruntime runs it where it lies")
    written = check_structure(path, Container.ONNX)
    kept = _kept(opened, fold, written) if verify else ""
    with contextlib.ExitStack() as stack:
        if ready.runtime is None and proving.runs:
            ready = replace(ready, runtime=stack.enter_context(Runtime(proving.timeout)))
        notes = list(_checked(original, written, whole=verify))
        give_back()  # the checker had the model in memory
        try:
            ran = _run(opened, fold, written, ready, numbers=numbers, proving=proving)
        except VerifyError as error:
            # An invalid graph may be ambiguous, and readers may differ on it.
            if why := refused(original):
                error.fix = f"onnx.checker refuses the original too ({why}): export it again"
            raise
    with Source(opened.shards[:1]) as before, Source((path,)) as after:
        check_unchanged(before.files[0], opened, fold.edits, after.files[0])
    done = [ran.by, kept] if ran.by and kept else [ran.by or kept]
    by = "onnx.checker" + (f" and onnxruntime: {', '.join(done)}" if any(done) else "")
    return FoldCheck(by, (*notes, *ran.notes), ran.tolerance)


def _run(
    opened: OnnxFile,
    fold: OnnxFold,
    written: Checkpoint,
    ready: Ready,
    *,
    numbers: RowPolicy,
    proving: Proving,
) -> FoldCheck:
    """Run what is asked for, where onnxruntime is ready."""
    runtime, before = ready.runtime, ready.original()
    if runtime is None:
        return FoldCheck("", ())
    layers = compare_layers(opened, fold, written, numbers, runtime)
    done = [f"{counted(layers.alone, 'layer')} against the original's own arithmetic"] * bool(layers.alone)
    done += [f"{counted(count, 'layer')} against {formula}" for formula, count in layers.by_formula.items()]
    evaluated = compare_evaluated(opened, fold, written, runtime)
    done += [f"{counted(evaluated.alone, 'evaluated weight')} likewise"] * bool(evaluated.alone)
    notes = [*layers.notes, *evaluated.notes]
    dtypes = {tensor.dtype.name for tensor in fold.edits.tensors if tensor.dtype.foldable}
    tolerance: dict[str, float | None] = {"layers_rtol": layer_tolerance(dtypes)}
    if proving.proof == "model":
        assert written.onnx is not None  # noqa: S101 - it was read back before
        # Codes that are those of the original make what it makes; a last digit may become a quantum.
        if (dtypes or layers.rounded) and _rounds(written.onnx):
            dtypes.add(WHOLE_NUMBERS if layers.rounded else BETWEEN_ROUNDINGS)
        if any(isinstance(tensor.work, Requantized) for tensor in fold.edits.tensors):
            dtypes.add(REQUANTIZED)
        whole, more = compare_whole(
            opened,
            written.onnx,
            runtime,
            numbers,
            dtypes=dtypes,
            otherwise=layers.otherwise,
            before=before,
        )
        notes += more if whole else [f"{why}; {_instead(done)}" for why in more]
        done += [f"the whole model on {whole}"] * bool(whole)
        if whole:
            tolerance["outputs_of_largest"] = whole_tolerance(dtypes)
    return FoldCheck(", ".join(done), tuple(notes), tolerance)


def _instead(done: Sequence[str]) -> str:
    """What was compared where the whole model was not, given what was done of its parts.

    >>> _instead(["2 layers against the original's own arithmetic"]), _instead([])
    ('each layer was compared alone', 'no layer was run either, so no numbers were compared')
    """
    return "each layer was compared alone" if done else "no layer was run either, so no numbers were compared"


def _rounds(opened: OnnxFile) -> bool:
    """Whether a model rounds to whole numbers at run time, so that a last digit may become a quantum."""
    ops = {node.op for scope in opened.model.scopes() for node in scope.nodes}
    return any(op.endswith("QuantizeLinear") or op.startswith("QLinear") for op in ops)


def refused(model: Path | bytes, *, full_check: bool = False) -> str:
    """Why onnx's checker refuses a model; empty if it does not. ``full_check`` checks shapes too.

    Raises ``MemoryError`` if it needs more memory than there is.
    """
    import onnx.checker

    try:
        onnx.checker.check_model(model if isinstance(model, bytes) else str(model), full_check=full_check)
    except MemoryError:  # which says nothing of the model
        raise
    except Exception as error:  # noqa: BLE001 - it raises what its C++ raises
        return printable(str(error).strip().partition("\n")[0][:200]) or "without a reason"
    return ""


def _checked(original: Path, written: Checkpoint, *, whole: bool) -> Iterator[str]:
    """Check a model with onnx's checker; yields a note if it refuses the original too.

    The checker gets the ``whole`` file, or all of it but the elements of large tensors: of these it asks for
    their number alone, and our reader has held that against their shapes.
    """
    if why := refused(Path(written.path) if whole else _in_outline(written)):
        before = refused(original)
        if not before:
            raise VerifyError(f"onnx.checker refuses the new model ({why}); nothing is kept", fix=REPORT_BUG)
        yield f"onnx.checker refuses the original too: {before}"


def _in_outline(written: Checkpoint) -> Path | bytes:
    """An outline of a model for onnx's checker; the path of one with data files, which it looks for."""
    path = Path(written.path)
    if written.onnx is None or len(written.shards) > 1:
        return path
    with closing(open_file(path)) as file:
        return outline_of(file, written.onnx, NOWHERE)


def _kept(opened: OnnxFile, fold: OnnxFold, written: Checkpoint) -> str:
    """Compare the bytes of all tensors that are kept; their order is the same in both models."""
    assert written.onnx is not None  # noqa: S101 - it was read back before
    new = {tensor.name for tensor in fold.edits.tensors}
    gone = [item.record for item in _records(opened) if item.record.start in fold.edits.dropped]
    before = [
        tensor for tensor in _stored(opened) if not any(one.start <= tensor[1] < one.end for one in gone)
    ]
    after = [tensor for tensor in _stored(written.onnx) if tensor[0] not in new]
    wrong = VerifyError(
        "the new model does not hold all tensors that it should keep; nothing is kept", fix=REPORT_BUG
    )
    if len(before) != len(after):
        raise wrong
    with Source(opened.shards) as old_source, Source(written.shards) as new_source:
        for (_, _, old), (name, _, found) in zip(before, after, strict=True):
            if old.info.shape != found.info.shape or old.info.dtype != found.info.dtype:
                raise wrong
            for at in range(0, old.info.nbytes, BLOCK_BYTES):
                size = min(BLOCK_BYTES, old.info.nbytes - at)
                a, b = (
                    source.chunk(ByteRange(tensor.data.start + at, size, tensor.data.shard))
                    for source, tensor in ((old_source, old), (new_source, found))
                )
                if a != b:
                    what = f"{printable(name)} was read back with other values; nothing is kept"
                    raise VerifyError(what, fix=REPORT_BUG)
    return counted(len(before), "other tensor")


def _records(opened: OnnxFile) -> Iterator[OnnxFunction | Node | Constant]:
    """Everything in a model that an edit can leave out, and that may hold tensors."""
    yield from opened.model.functions
    for scope in opened.model.scopes():
        yield from scope.nodes
        yield from getattr(scope, "constants", ())


def _stored(opened: OnnxFile) -> Iterator[tuple[str, int, StoredTensor]]:
    """The names, records and places of all stored tensors whose elements lie in one run of bytes."""
    for scope in opened.model.scopes():
        for constant in stored_in(scope):
            if constant.tensor is not None:
                yield constant.name, constant.record.start, constant.tensor
