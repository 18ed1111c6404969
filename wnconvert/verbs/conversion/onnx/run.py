"""Runs a folded ONNX model and its original on made-up inputs, and compares the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from wnconvert.errors import FormatError, InputError, VerifyError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.messages import REPORT_BUG, counted, few, listed, printable
from wnconvert.numerics.rows import RowPolicy
from wnconvert.onnx.file.outline import outline_of
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.runtime.ports import ValueInfo
from wnconvert.onnx.runtime.process import Opened, Runtime
from wnconvert.onnx.runtime.words import NoAnswerError
from wnconvert.onnx.segments import Segment, segments_of
from wnconvert.storage.files import open_file
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DType

__all__ = [
    "BETWEEN_ROUNDINGS",
    "REQUANTIZED",
    "WHOLE_NUMBERS",
    "OriginalRun",
    "compare_whole",
    "run_original",
    "whole_tolerance",
]

#: How far an output may be off, as a part of its greatest value: rounding adds up through the network, that
#: of the weights, too, whose dtype may be another.
_WHOLE = {"float64": 1e-7, "float32": 2e-3, "float16": 2e-2, "bfloat16": 5e-2}
#: The dtype of a model that rounds to whole numbers at run time, and has weights that are other whole numbers
#: than the original's own: two of the 127 that are the greatest value.
WHOLE_NUMBERS = "whole numbers"
#: The same where the weights are floats, and those of the original but for the last digit. Rounding swallows
#: that nearly everywhere, and seldom makes a quantum of it.
BETWEEN_ROUNDINGS = "floats between whole numbers"
_WHOLE[WHOLE_NUMBERS] = _WHOLE[BETWEEN_ROUNDINGS] = 2 / 127
#: How far outputs may then be off on the average (the root of the mean square), as a part of what any model's
#: may be: a weight that is 1 % off makes twice that and more, a quantum here and there less.
_ON_AVERAGE = 0.5
#: The inputs on which that is tried: of few outputs a quantum is much, but it is not there on other inputs.
_DRAWS = 3
#: The dtype of weights that are rounded to codes on purpose: how far outputs are is told, and no fault.
REQUANTIZED = "codes"
_WHOLE[REQUANTIZED] = math.inf
#: The part of whole numbers that may differ: a network picks them, and two choices may be nearly as good.
_PICKED = 0.01
#: Sizes to try for the batch axis, and for all other dynamic axes.
_SIZES = ((1, 16), (1, 64), (2, 32), (1, 100), (1, 400), (1, 7), (1, 1), (4, 4), (1, 1600), (1, 16000))
#: A graph of more nodes than these is run in segments of so many.
_MANY, _SEGMENT = 2000, 250
#: The deviation of made-up floats.
_SPREAD = 0.5
#: The most elements of a made-up input, which is float64 first.
_MOST_MADE_UP = 1 << 22


@dataclass(frozen=True, slots=True)
class OriginalRun:
    """Inputs on which a model ran, and its outputs; or why there are none."""

    feeds: Mapping[str, Array]
    outputs: Mapping[str, Array]
    why: str = ""


def run_original(original: OnnxFile, runtime: Runtime) -> OriginalRun:
    """Run a model on inputs that are made up for it. Raises ``NoAnswerError`` if there is no answer."""
    return _of_original(partial(_mapped, original, runtime))


def compare_whole(
    original: OnnxFile,
    written: OnnxFile,
    runtime: Runtime,
    numbers: RowPolicy,
    *,
    dtypes: Collection[str],
    otherwise: Sequence[str],
    before: OriginalRun | None = None,
) -> tuple[str, list[str]]:
    """Run both models on made-up inputs; returns these in words, empty if nothing was compared, and notes.

    ``before`` is what the original computed, if it was run already. ``dtypes`` are those of the new weights,
    ``otherwise`` layers that the original computes otherwise, so that its outputs are no measure. Raises
    ``VerifyError`` if the new model computes something else.
    """
    if otherwise:
        names = listed(map(printable, otherwise), 6)
        return "", [f"the whole model was not run: the original computes {names} otherwise"]

    def compared(
        opened: Callable[[OnnxFile, Runtime], Opened], before: OriginalRun | None = None
    ) -> tuple[str, list[str]]:
        both = partial(opened, original, runtime), partial(opened, written, runtime)
        return _both(*both, numbers, dtypes, before)

    try:
        return compared(_mapped, before)
    except NoAnswerError as error:
        with suppress(NoAnswerError):  # a kernel that writes to its tensors cannot where these are mapped
            return compared(_whole)
        return "", [f"the whole model was not run ({error.what})"]


def _both(
    original: _Open,
    written: _Open,
    numbers: RowPolicy,
    dtypes: Collection[str],
    before: OriginalRun | None,
) -> tuple[str, list[str]]:
    """Run both models, one after the other, since two at once would take twice the memory."""
    ran = before or _of_original(original)
    if ran.why:
        return "", [ran.why]
    with closing(written()) as after:
        found = after.run(ran.feeds)
    try:
        notes = _compared(found, ran.outputs, numbers, dtypes)
    except VerifyError:
        if not _is_steady(original, ran.feeds):
            return "", ["the original computes different outputs in each run"]
        if BETWEEN_ROUNDINGS not in dtypes or not _near_elsewhere(
            original, written, numbers, dtypes, ran.feeds
        ):
            raise
        notes = ["on some inputs, rounding makes another whole number of a last digit"]
    return _shapes_text(ran.feeds), few(notes)


def _near_elsewhere(
    original: _Open, written: _Open, numbers: RowPolicy, dtypes: Collection[str], feeds: Mapping[str, Array]
) -> bool:
    """Whether two models are equal on other inputs of the same sizes."""
    for seed in range(1, _DRAWS):
        drawn = {name: _drawn_again(values, seed) for name, values in feeds.items()}
        with closing(original()) as before:
            expected = before.run(drawn)
        with closing(written()) as after:
            found = after.run(drawn)
        with suppress(VerifyError):
            _compared(found, expected, numbers, dtypes)
            return True
    return False


def _drawn_again(values: Array, seed: int) -> Array:
    """Other floats for an input; whole numbers, which may be sizes, stay."""
    if values.dtype.kind in "biu":
        return values
    made: Array = np.random.default_rng(seed).normal(0, _SPREAD, values.shape).astype(values.dtype)
    return made


def whole_tolerance(dtypes: Collection[str]) -> float:
    """How far an output may be off where weights have these dtypes, as a part of its largest element."""
    return max((_WHOLE[dtype] for dtype in dtypes), default=0.0)


def _on_average(dtypes: Collection[str]) -> float:
    """How far outputs may be off on the average, where rounding swallows a last digit nearly everywhere."""
    return _ON_AVERAGE * whole_tolerance({*dtypes} - {BETWEEN_ROUNDINGS})


def _mapped(model: OnnxFile, runtime: Runtime) -> Opened:
    """Load a model whose nodes are run as they are; its large tensors are mapped, which takes no memory."""
    path = Path(model.path)
    name = path.resolve().name
    if not name.isprintable():  # it is no text of ONNX
        return _whole(model, runtime)
    with closing(open_file(path)) as file:
        many = len(model.model.graph.nodes) > _MANY
        if many and (opened := _in_segments(segments_of(file, model, name, _SEGMENT), model, runtime)):
            return opened
        if len(model.shards) > 1:  # it is small
            return _whole(model, runtime)
        outline = outline_of(file, model, name)
    try:
        return runtime.open(path, optimize=False, outline=outline)
    except FormatError:  # what onnxruntime 1.18 says of external data of a model that it gets by its bytes
        return _whole(model, runtime)


def _in_segments(segments: Sequence[Segment], model: OnnxFile, runtime: Runtime) -> Opened | None:
    """Load the segments of a model; None if there are none, or one is no model of its own."""
    if not segments:
        return None
    try:
        return runtime.open_segments(Path(model.path), segments, model.model.graph.outputs)
    except NoAnswerError:
        raise
    except WnconvertError:
        return None


def _whole(model: OnnxFile, runtime: Runtime) -> Opened:
    """Load the whole of it."""
    return runtime.open(Path(model.path), optimize=False)


#: Loads one of the models.
_Open: TypeAlias = Callable[[], Opened]


def _of_original(original: _Open) -> OriginalRun:
    """Inputs on which the original runs, with its outputs; or why there are none."""
    try:
        before = original()
    except NoAnswerError:
        raise
    except WnconvertError as error:
        return OriginalRun({}, {}, f"the whole model was not run ({error.what})")
    with closing(before):
        ran = _first_that_runs(before)
    if ran.why:
        return OriginalRun({}, {}, f"the whole model was not run on made-up inputs ({ran.why})")
    return ran


def _is_steady(original: _Open, feeds: Mapping[str, Array]) -> bool:
    """Whether the original computes the same twice in one session; each session may draw the same first."""
    with closing(original()) as before:
        return _same(before.run(feeds), before.run(feeds))


def _first_that_runs(opened: Opened) -> OriginalRun:
    """Inputs on which a model runs, with its outputs; or the reason why it does not run."""
    why = ""
    for first, others in _SIZES:
        for whole in (None, others):
            try:
                sizes = _sizes(opened.inputs, first, others)
                feeds = {port.name: _made_up(port, sizes[port.name], whole) for port in opened.inputs}
                found = opened.run(feeds)
            except NoAnswerError:
                raise
            except WnconvertError as error:
                why = why or error.what
                continue
            if any(values.size for values in found.values()):
                return OriginalRun(feeds, found)
            why = why or "its outputs are empty"
        if not any(isinstance(size, str) or size is None for port in opened.inputs for size in port.shape):
            break
    return OriginalRun({}, {}, why)


def _sizes(ports: Sequence[ValueInfo], first: int, others: int) -> dict[str, list[int]]:
    """Shapes of inputs: a dynamic first axis is the batch, and axes of one name have one size."""
    batch = {port.shape[0] for port in ports if len(port.shape) > 1 and isinstance(port.shape[0], str)}

    def size_of(port: ValueInfo, axis: int) -> int:
        size = port.shape[axis]
        if isinstance(size, int) and size >= 0:
            return size
        is_batch = size in batch if isinstance(size, str) else axis == 0 and len(port.shape) > 1
        return first if is_batch else others

    return {port.name: [size_of(port, axis) for axis in range(len(port.shape))] for port in ports}


def _made_up(port: ValueInfo, sizes: Sequence[int], whole: int | None) -> Array:
    """Values for an input: normal floats; integers of 0 and 1, or all of them ``whole``."""
    if port.dtype is None:
        raise InputError(f"its input {printable(port.name)} is {port.kind}")
    random = np.random.default_rng(0)
    dtype: DType = port.dtype
    if math.prod(sizes) > _MOST_MADE_UP:
        raise InputError(f"its input {printable(port.name)} would have {math.prod(sizes)} elements")
    if dtype.foldable:
        return random.normal(0, _SPREAD, sizes).astype(dtype.numpy())
    if dtype.name == "bool":
        return np.ones(sizes, bool)
    if dtype.name.startswith(("int", "uint")):
        return np.asarray(
            random.integers(0, 2, sizes) if whole is None else np.full(sizes, whole), dtype.name
        )
    raise InputError(f"its input {printable(port.name)} is {dtype}")


def _same(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    return all(a[name].tobytes() == b[name].tobytes() for name in a)


def _compared(
    found: Mapping[str, Array],
    expected: Mapping[str, Array],
    numbers: RowPolicy,
    dtypes: Collection[str],
) -> list[str]:
    """Compare the outputs of both models; returns notes. Raises ``VerifyError``."""
    if list(found) != list(expected):
        raise VerifyError("the new model has other outputs; nothing is kept", fix=REPORT_BUG)
    notes: list[str] = []
    for name, values in expected.items():
        notes += _compare_output(name, found[name], values, numbers, dtypes)
    return notes


def _compare_output(
    name: str, found: Array, expected: Array, numbers: RowPolicy, dtypes: Collection[str]
) -> Sequence[str]:
    shown = printable(name)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise VerifyError(
            f"output {shown} is {found.dtype}{found.shape}, and should be {expected.dtype}{expected.shape}; "
            "nothing is kept",
            fix=REPORT_BUG,
        )
    if expected.dtype.name not in _WHOLE:
        other = int(np.count_nonzero(found != expected))
        if other > max(1, _PICKED * expected.size):
            raise VerifyError(f"output {shown} has {other} other values; nothing is kept", fix=REPORT_BUG)
        return [f"output {shown} has {counted(other, 'other value')} of {expected.size}"] if other else []
    a, b = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    most = float(np.abs(b[finite]).max(initial=0))
    apart = np.abs(a[finite] - b[finite])
    off = float(apart.max(initial=0))
    # NaN of the original, from zero rows or squares that underflow, may be numbers now, and infinities stay.
    new = np.isinf(a) & (a != b)
    alike = bool(np.isfinite(a[finite]).all()) and (numbers.allow_nonfinite or not new.any())
    part = whole_tolerance({expected.dtype.name, *dtypes})
    if not alike or not (off <= part * most or part == math.inf):
        raise VerifyError(
            f"output {shown} is off by {off:.3g}, and its greatest value is {most:.3g}; nothing is kept",
            fix=REPORT_BUG,
        )
    average = math.sqrt(float(np.mean(apart**2))) if apart.size else 0.0
    if BETWEEN_ROUNDINGS in dtypes and part != math.inf and not average <= _on_average(dtypes) * most:
        raise VerifyError(
            f"output {shown} is off by {average:.3g} on the average, and its greatest value is {most:.3g}; "
            "nothing is kept",
            fix=REPORT_BUG,
        )
    if REQUANTIZED in dtypes and (noise := float(np.sum((a - b)[finite] ** 2))):
        snr = 10 * math.log10(float(np.sum(b[finite] ** 2)) / noise)
        return [f"output {shown} beside that of the original: SNR {snr:.1f} dB"]
    return [f"output {shown} of the original has no finite value"] * bool(b.size and not finite.any())


def _shapes_text(feeds: Mapping[str, Array]) -> str:
    shapes = (f"{printable(name)} {list(values.shape)}".replace(" ", "") for name, values in feeds.items())
    return listed(shapes, 4) or "no inputs"
