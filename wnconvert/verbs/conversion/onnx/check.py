"""Checks a folded ONNX model against the original: by onnx's checker, and by onnxruntime.

The arithmetic of every layer is cut out of the original and run; both whole models are run on made-up inputs.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from wnconvert.errors import InputError, VerifyError, WnconvertError
from wnconvert.messages import REPORT_BUG, counted, listed, printable, to_install, told
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.numerics.rows import RowPolicy
from wnconvert.onnx.file.model import Constant, NewTensor, Node, OnnxFunction
from wnconvert.onnx.file.reader import OnnxFile, stored_in
from wnconvert.onnx.file.unchanged import check_unchanged
from wnconvert.onnx.graph.index import ValueId
from wnconvert.onnx.graph.plan import OnnxFold
from wnconvert.onnx.runtime import open_model, run
from wnconvert.onnx.slices import Slices, UnreachableError
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.files import local_path
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import BLOCK_BYTES, Array
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import ByteRange, StoredTensor
from wnconvert.verbs.conversion.onnx.run import compare_whole

__all__ = ["check_fold", "check_installed"]


#: How far an element that onnxruntime computes may be off, relatively: it rounds at every step.
_RTOL = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-3, "bfloat16": 8e-3}


def check_installed() -> None:
    """Raise ``InputError`` if onnx or onnxruntime is not installed: they check every new model."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        raise InputError(
            f"an ONNX model is checked before it is put in place, and {listed(missing)} {are} not installed",
            fix=to_install(*missing),
        )


def check_fold(
    opened: OnnxFile,
    fold: OnnxFold,
    path: Path,
    numbers: RowPolicy = RowPolicy(),  # noqa: B008 - frozen
    *,
    verify: bool = False,
) -> tuple[str, tuple[str, ...]]:
    """Check the folded model at ``path`` against the original; what was compared, in words, and notes.

    Everything in the model except the edits is compared byte by byte; with ``verify``, tensors in data files
    too. Raises ``VerifyError`` if onnx's checker refuses the new model, or if it holds or computes something
    else.
    """
    original = local_path(opened.path, "onnxruntime runs it where it lies")
    written = open_checkpoint(path)
    kept = _kept(opened, fold, written) if verify else ""
    with ThreadPoolExecutor(1) as pool:  # the other processors are for the layers
        running = pool.submit(compare_whole, original, path, numbers)
        notes = list(_checked(original, path))
        try:
            by_formula, more = _layers(opened, fold, written, numbers)
            whole, others = running.result()
        except VerifyError as error:
            # An invalid graph may be ambiguous, and readers may differ on it.
            if why := refused(original):
                error.fix = f"onnx.checker refuses the original too ({why}): export it again"
            raise
    notes += [*more, *others]
    with Source(opened.shards[:1]) as before, Source((path,)) as after:
        check_unchanged(before.files[0], opened, fold.edits, after.files[0])
    run_alone = len(fold.layers) - len(by_formula)
    done = [f"{counted(run_alone, 'layer')} against the original's own arithmetic"] * bool(run_alone)
    done += [f"{counted(len(by_formula), 'layer')} against g·v/‖v‖"] * bool(by_formula)
    done += [f"the whole model on {whole}"] * bool(whole)
    done += [kept] * bool(kept)
    by = "onnx.checker" + (f" and onnxruntime: {', '.join(done)}" if done else "")
    return by, tuple(notes)


def refused(path: Path, *, full_check: bool = False) -> str:
    """Why onnx's checker refuses a model; empty if it does not. ``full_check`` checks shapes too."""
    import onnx.checker

    try:
        onnx.checker.check_model(str(path), full_check=full_check)
    except Exception as error:  # noqa: BLE001 - it raises what its C++ raises
        return printable(str(error).strip().partition("\n")[0][:200]) or "without a reason"
    return ""


def _checked(original: Path, path: Path) -> Iterator[str]:
    """Check a model with onnx's checker; yields a note if it refuses the original too."""
    if why := refused(path):
        before = refused(original)
        if not before:
            raise VerifyError(f"onnx.checker refuses the new model ({why}); nothing is kept", fix=REPORT_BUG)
        yield f"onnx.checker refuses the original too: {before}"


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


# -- layers


@dataclass(frozen=True, slots=True)
class _Claim:
    """The claim that a value of the original, within some calls, equals a new tensor."""

    tensor: NewTensor
    value: ValueId
    calls: tuple[int, ...]


def _claims(fold: OnnxFold) -> Iterator[_Claim]:
    for layer in fold.layers:
        tensors = [tensor for tensor in fold.edits.tensors if tensor.layer == layer.layer.name]
        by_view = {(tensor.v, tensor.dim, tensor.dtype): tensor for tensor in tensors}
        for weight in layer.weights:
            tensor = by_view[weight.view.v, weight.view.dim, weight.view.dtype]
            yield from (_Claim(tensor, value, ()) for value in weight.values)
        for passed in layer.passed:
            tensor = by_view[passed.view.v, passed.view.dim, passed.view.dtype]
            yield _Claim(tensor, passed.value, passed.calls)


def _layers(
    opened: OnnxFile, fold: OnnxFold, written: Checkpoint, numbers: RowPolicy
) -> tuple[dict[str, None], list[str]]:
    """Compare every new tensor with the value that onnxruntime computes from the original's nodes.

    Returns the names of layers that it cannot compute, which are compared with the formula, and notes.
    """
    by_formula: dict[str, None] = {}
    lost: list[tuple[str, str]] = []
    if not fold.layers:
        return by_formula, []
    stored = {name: tensor for state in written.tree.state_dicts for name, tensor in state.tensors.items()}
    with (
        Source(written.shards) as new,
        Source(opened.shards) as old,
        tempfile.TemporaryDirectory() as folder,
    ):
        slices = Slices(opened, old.files)
        for claim in _claims(fold):
            tensor = claim.tensor
            found = new.whole(_of(stored, tensor.name)).astype(np.float64)
            try:
                expected = _computed(slices, claim, Path(folder, "layer.onnx"))
            except (UnreachableError, WnconvertError):
                expected = _formula(old, tensor)
                by_formula[tensor.layer] = None
            gone = _compare(tensor, found, expected, numbers, partial(_formula, old, tensor))
            if gone:
                what = "that the original computes as NaN or inf, and the new model does not"
                lost.append((f"layer {printable(tensor.layer)}", f"{counted(gone, 'element')} {what}"))
    notes = told(lost)
    if by_formula:
        names = listed(map(printable, by_formula), 6)
        what = "alone: compared with g·v/‖v‖ instead"
        notes.append(f"onnxruntime cannot run the arithmetic of {names} {what}")
    return by_formula, notes


def _of(stored: Mapping[str, StoredTensor], name: str) -> StoredTensor:
    if name not in stored:
        raise VerifyError(f"{printable(name)} is not in the new model; nothing is kept", fix=REPORT_BUG)
    return stored[name]


def _computed(slices: Slices, claim: _Claim, path: Path) -> Array:
    path.write_bytes(slices.model(claim.value, claim.calls, claim.tensor.dtype))
    (value,) = run(open_model(path, optimize=False), {}).values()
    return value.astype(np.float64)


def _formula(source: Source, tensor: NewTensor) -> Array:
    g, v = (source.whole(half).astype(np.float64) for half in (tensor.g, tensor.v))
    axes = tuple(axis for axis in range(v.ndim) if axis != tensor.dim)
    shape = [size if axis == tensor.dim else 1 for axis, size in enumerate(v.shape)]
    with np.errstate(all="ignore"):
        made: Array = g.reshape(shape) * v / np.sqrt(np.square(v).sum(axis=axes, keepdims=True))
    return made


def _near(found: Array, expected: Array, dtype: DType) -> Array:
    smallest = math.ldexp(1, FLOAT_FORMATS[dtype.name].least)
    with np.errstate(all="ignore"):
        off = np.abs(found - expected)
        near: Array = off <= _RTOL[dtype.name] * np.abs(expected) + 2 * smallest
    made: Array = near & np.isfinite(expected) | (found == expected)
    return made


def _compare(
    tensor: NewTensor, found: Array, expected: Array, numbers: RowPolicy, exact: Callable[[], Array]
) -> int:
    """Compare a layer with the computed one; returns the number of elements that only ``exact`` confirms.

    If the squares of a float32 row underflow, the original divides by zero, while ``exact`` is finite.
    """
    layer = printable(tensor.layer)
    if found.shape != expected.shape:
        raise VerifyError(
            f"layer {layer} should have the shape {expected.shape} and has {found.shape}; nothing is kept",
            fix=REPORT_BUG,
        )
    good = _near(found, expected, tensor.dtype)
    if numbers.zero_rows == "zero":
        good |= np.isnan(expected) & (found == 0)
    if numbers.allow_nonfinite:
        good |= ~np.isfinite(expected) & ~np.isfinite(found)
    lost = ~good & ~np.isfinite(expected) & np.isfinite(found)
    if lost.any():
        lost &= _near(found, exact(), tensor.dtype)
        good |= lost
    if not good.all():
        place = tuple(int(index) for index in np.argwhere(~good)[0])
        raise VerifyError(
            f"layer {layer} is {found[place]:.6g} at {place}, where the original computes "
            f"{expected[place]:.6g}; nothing is kept",
            fix=REPORT_BUG,
        )
    return int(np.count_nonzero(lost))
