"""A folded model's layers against the original's own arithmetic, cut out and run in onnxruntime, by rows.

No more than a few rows of a layer are in memory, here and in onnxruntime's process.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wnconvert.errors import VerifyError, WnconvertError
from wnconvert.layers.kinds.formulas import formula_in_words
from wnconvert.layers.rules import ORIGINAL, G, Rule, Standardize
from wnconvert.messages import REPORT_BUG, counted, listed, printable, told
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.numerics.rows import RowPolicy
from wnconvert.onnx.file.model import NewTensor
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.graph.computed import GraphLayer
from wnconvert.onnx.graph.index import ValueId
from wnconvert.onnx.graph.plan import OnnxFold
from wnconvert.onnx.graph.views import View
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.onnx.slices import Resize, Slices, UnreachableError, as_they_are
from wnconvert.plan.layout import FoldBias
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import Array, Block, blocks, reader_of
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import Dim, StoredTensor, rows_of
from wnconvert.verbs.conversion.onnx.formula import Formula, bias_in_full, norms_axis
from wnconvert.verbs.conversion.onnx.norms import NormNodes

__all__ = ["LayersCompared", "compare_layers", "layer_tolerance"]


#: How far an element that onnxruntime computes may be off, relatively: it rounds at every step.
_RTOL = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-3, "bfloat16": 8e-3}
#: Elements of the rows that are computed at a time.
_PIECE = 1 << 20
#: Bytes of a layer that is computed whole, where it cannot be by rows.
_MOST_WHOLE = 64 << 20
#: Sizes that are not taken for a number of rows where they stand in a shape: they may be axes.
_AXES = 8


@dataclass(frozen=True, slots=True)
class LayersCompared:
    """What was compared: how many layers with their own arithmetic, how many with which formula; notes.

    ``otherwise`` are the layers that the original computes as other finite numbers than they are.
    """

    alone: int
    by_formula: Mapping[str, int]
    otherwise: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Claim:
    """The claim that a value of the original, within some calls, equals a new tensor."""

    layer: GraphLayer
    tensor: NewTensor
    value: ValueId
    calls: tuple[int, ...]

    @property
    def rows(self) -> int:
        """The number of rows that can be computed apart."""
        return rows_of(self.tensor.original.info.shape, _apart(self.tensor.rule))


def _apart(rule: Rule) -> Dim:
    """The axis along which rows are computed apart: that of their norms, unless all elements count for σ."""
    return norms_axis(rule) if "spectral" not in rule.kinds else None


def _claims(fold: OnnxFold) -> Iterator[_Claim]:
    tensors = {(each.layer, View(each.rule, each.parts, each.dtype)): each for each in fold.edits.tensors}
    for layer in fold.layers:
        if layer.behind is not None:
            continue  # the value of its weight is not the new tensor
        name = layer.layer.name
        for weight in layer.weights:
            tensor = tensors[name, weight.view]
            yield from (_Claim(layer, tensor, value, ()) for value in weight.values)
        for passed in layer.passed:
            yield _Claim(layer, tensors[name, passed.view], passed.value, passed.calls)


def compare_layers(
    opened: OnnxFile, fold: OnnxFold, written: Checkpoint, numbers: RowPolicy, runtime: Runtime
) -> LayersCompared:
    """Compare every new tensor with the value that onnxruntime computes from the original's nodes.

    Layers that it cannot compute are compared with the formula. Raises ``VerifyError`` for a layer that is
    something else, ``FormatError`` where a node of the original is damaged.
    """
    by_formula: dict[str, str] = {}
    losses: dict[str, _Lost] = {}
    if not fold.layers:
        return LayersCompared(0, {}, (), ())
    assert written.onnx is not None  # noqa: S101 - it was read back before
    stored = {name: tensor for state in written.tree.state_dicts for name, tensor in state.tensors.items()}
    with Source(written.shards) as new, Source(opened.shards) as old:
        slices = Slices(opened, old.files)
        for claim in _claims(fold):
            tensor = claim.tensor
            comparison = _Comparison(tensor, _of(stored, tensor), new, old, numbers)
            lost = _by_arithmetic(claim, comparison, slices, runtime)
            if lost is None:
                by_formula[tensor.layer] = formula_in_words(tensor.rule)
                lost = comparison.with_formula()
            losses[tensor.layer] = losses.get(tensor.layer, _NOTHING) + lost
        nodes = NormNodes(slices, Slices(written.onnx, new.files), runtime)
        made: dict[str, list[NewTensor]] = {}
        for tensor in fold.edits.tensors:
            made.setdefault(tensor.layer, []).append(tensor)
        for layer in fold.layers:
            if layer.behind is not None:
                name = layer.layer.name
                for tensor in made[name]:
                    comparison = _Comparison(tensor, _of(stored, tensor), new, old, numbers)
                    losses[name] = losses.get(name, _NOTHING) + comparison.with_formula()
                if not nodes.agree(layer):
                    by_formula[name] = formula_in_words(layer.layer.rule)
    otherwise = tuple(name for name, lost in losses.items() if lost.strays)
    notes = (*_lost_notes(losses, fold), *_formula_notes(by_formula))
    return LayersCompared(len(fold.layers) - len(by_formula), Counter(by_formula.values()), otherwise, notes)


def layer_tolerance(dtypes: Iterable[str]) -> float:
    """How far an element of a weight of one of these dtypes may be off, relatively."""
    return max((_RTOL[dtype] for dtype in dtypes), default=0.0)


def _of(stored: Mapping[str, StoredTensor], tensor: NewTensor) -> StoredTensor:
    name = printable(tensor.name)
    if tensor.name not in stored:
        raise VerifyError(f"{name} is not in the new model; nothing is kept", fix=REPORT_BUG)
    found, layer = stored[tensor.name].info, printable(tensor.layer)
    shape = tensor.shape
    if found.shape != shape or found.dtype != tensor.dtype:
        raise VerifyError(
            f"layer {layer} should have the shape {shape} of {tensor.dtype} "
            f"and has {found.shape} of {found.dtype}; nothing is kept",
            fix=REPORT_BUG,
        )
    return stored[tensor.name]


def _lost_notes(losses: Mapping[str, _Lost], fold: OnnxFold) -> Iterator[str]:
    dtypes = {tensor.layer: tensor.dtype for tensor in fold.edits.tensors}
    said = []
    for name, lost in losses.items():
        place = f"layer {printable(name)}"
        if lost.unfinite:
            what = "that the original computes as NaN or inf, and the new model does not"
            said.append((place, f"{counted(lost.unfinite, 'element')} {what}"))
        if lost.strays:
            what = f"that the original computes otherwise: its steps leave the range of {dtypes[name]}"
            said.append((place, f"{counted(lost.strays, 'element')} {what}"))
    yield from told(said)


def _formula_notes(by_formula: Mapping[str, str]) -> Iterator[str]:
    for formula in dict.fromkeys(by_formula.values()):
        names = listed((printable(name) for name, its in by_formula.items() if its == formula), 6)
        yield f"onnxruntime cannot run the arithmetic of {names} alone: compared with {formula} instead"


# -- the arithmetic of a layer


def _by_arithmetic(claim: _Claim, comparison: _Comparison, slices: Slices, runtime: Runtime) -> _Lost | None:
    """Compare a layer with what onnxruntime computes; None if it cannot compute it."""
    info, rows = claim.tensor.original.info, claim.rows
    step = max(_PIECE * rows // max(info.numel, 1), 1)
    if step < rows and info.nbytes // rows <= _MOST_WHOLE:
        for sizes in (_as_they_are, _first, _every):
            lost = _attempt(comparison, _Arithmetic(claim, slices, runtime, sizes), step)
            if lost is not None:
                return lost
    if info.nbytes > _MOST_WHOLE:
        return None
    return _attempt(comparison, _Arithmetic(claim, slices, runtime, _as_they_are), max(rows, 1))


def _attempt(comparison: _Comparison, arithmetic: _Arithmetic, step: int) -> _Lost | None:
    """Compare a layer, ``step`` rows at a time; None if they cannot be computed, or not with other shapes."""
    try:
        return comparison.with_arithmetic(arithmetic, step)
    except UnreachableError:
        return None
    except VerifyError:
        if arithmetic.sizes is _as_they_are:
            raise
        return None


#: The sizes in a shape for ``rows`` rows in place of ``every``.
_Sizes = Callable[[int, int], Resize]


def _as_they_are(rows: int, every: int) -> Resize:
    """No size is another: most shapes are computed, or leave one size open."""
    del rows, every
    return as_they_are


def _first(rows: int, every: int) -> Resize:
    """The first size that is the number of all rows is the number of some."""

    def resize(sizes: Sequence[int]) -> Sequence[int]:
        at = sizes.index(every) if every > _AXES and every in sizes else len(sizes)
        return [*sizes[:at], rows, *sizes[at + 1 :]] if at < len(sizes) else sizes

    return resize


def _every(rows: int, every: int) -> Resize:
    """Each size that is the number of all rows is the number of some."""
    return lambda sizes: [rows if size == every and every > _AXES else size for size in sizes]


@dataclass(frozen=True, slots=True)
class _Arithmetic:
    """The arithmetic of one layer in onnxruntime, for any of its rows."""

    claim: _Claim
    slices: Slices
    runtime: Runtime
    sizes: _Sizes

    def rows(self, source: Source, start: int, stop: int) -> Array:
        """The value in some rows. Raises ``UnreachableError`` where it cannot be computed."""
        claim = self.claim
        resize = self.sizes(stop - start, claim.rows) if stop - start < claim.rows else as_they_are
        cut = self.slices.cut(claim.value, claim.calls, claim.tensor.dtype, resize)
        along = _along_rows(claim.layer.layer.rule)
        cut_axes = {part.record: along[role] for role, part in claim.layer.parts.items() if role in along}
        feeds = {}
        for name, constant in cut.fed.items():
            tensor = constant.tensor
            assert tensor is not None  # noqa: S101 - only such are fed
            if constant.record in cut_axes:
                tensor = _rows(tensor, cut_axes[constant.record], start, stop, claim.rows)
            feeds[name] = source.whole(tensor).view(tensor.info.dtype.numpy())
        try:
            (value,) = self.runtime.compute(cut.model, feeds).values()
        except WnconvertError as error:
            raise UnreachableError(error.what) from error
        return value


def _along_rows(rule: Rule) -> dict[str, Dim]:
    """The tensors, by role, that have a part for each row, with its axis; None: their only one."""
    dim = _apart(rule)
    return {ORIGINAL: dim, "mask": dim, G: None}


def _rows(tensor: StoredTensor, dim: int | None, start: int, stop: int, every: int) -> StoredTensor:
    """Some rows of a tensor: along ``dim``, or else along its only axis with a size for ``every`` row."""
    shape = tensor.info.shape
    axis = dim if dim is not None else next((at for at, size in enumerate(shape) if size == every), None)
    if axis is None or stop - start == every:
        return tensor
    info = replace(tensor.info, shape=(*shape[:axis], stop - start, *shape[axis + 1 :]))
    return replace(tensor, info=info, offset=tensor.offset + start * tensor.strides[axis])


# -- numbers


@dataclass(frozen=True, slots=True)
class _Lost:
    """How many elements only the formula confirms: the original has no number there, or a bad one."""

    unfinite: int = 0
    strays: int = 0

    def __add__(self, other: _Lost) -> _Lost:
        return _Lost(self.unfinite + other.unfinite, self.strays + other.strays)


_NOTHING = _Lost()


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A new tensor, ``found`` in the new model, beside what the original says that it is."""

    tensor: NewTensor
    found: StoredTensor
    new: Source
    old: Source
    numbers: RowPolicy

    def with_formula(self) -> _Lost:
        """Compare it with the formula of its rule. Raises ``VerifyError``."""
        if isinstance(self.tensor.work, FoldBias):
            return self._bias(bias_in_full(self.old, self.tensor.rule, dict(self.tensor.parts)))
        formula = Formula(self.old, self.tensor.rule, self.tensor.parts)
        return self._rows(0, self.found, formula.at, formula)

    def with_arithmetic(self, arithmetic: _Arithmetic, step: int) -> _Lost:
        """Compare it with what the original's nodes compute, some rows at a time. Raises ``VerifyError``."""
        tensor, lost, dim = self.tensor, _NOTHING, _apart(self.tensor.rule)
        every, along = rows_of(tensor.original.info.shape, dim), _along_rows(tensor.rule)
        for start in range(0, every, step):
            stop = min(start + step, every)
            found = _rows(self.found, dim, start, stop, every)
            parts = tuple(
                (role, _rows(part, along[role], start, stop, every) if role in along else part)
                for role, part in tensor.parts
            )
            computed = arithmetic.rows(self.old, start, stop)
            if computed.shape != found.info.shape:
                if stop - start < every:
                    raise UnreachableError(tensor.name)
                raise VerifyError(
                    f"layer {printable(tensor.layer)} should have the shape {computed.shape} and has "
                    f"{found.info.shape}; nothing is kept",
                    fix=REPORT_BUG,
                )
            formula = Formula(self.old, tensor.rule, parts)
            lost += self._rows(start, found, reader_of(computed), formula)
        return lost

    def _rows(
        self, start: int, found: StoredTensor, expected: Callable[[Block], Array], formula: Formula
    ) -> _Lost:
        """Compare some rows, of which ``start`` is the first."""
        lost, read, shape = _NOTHING, self.new.reader(found), found.info.shape
        dim = norms_axis(self.tensor.rule)
        for block in blocks(shape, dim, found.info.dtype.itemsize):
            is_, should = read(block).astype(np.float64), expected(block).astype(np.float64)
            bad = ~self._good(is_, should)
            if any(isinstance(each, Standardize) for each in self.tensor.rule.operations):
                bad &= ~_near_beside(is_, should, self.tensor.dtype)
            if not bad.any():
                continue
            confirmed = bad & np.isfinite(is_) & _near(is_, formula.at(block), self.tensor.dtype)
            unfinite = confirmed & ~np.isfinite(should)
            strays = confirmed & ~unfinite & formula.strays(self.tensor.dtype)[block.rows].reshape(1, -1, 1)
            if (wrong := bad & ~unfinite & ~strays).any():
                at = int(np.flatnonzero(wrong)[0])
                place = [int(index) for index in np.unravel_index(block.start + at, shape)]
                if dim is not None:
                    place[dim] += start
                raise VerifyError(
                    f"layer {printable(self.tensor.layer)} is {is_.reshape(-1)[at]:.6g} at {tuple(place)}, "
                    f"where the original computes {should.reshape(-1)[at]:.6g}; nothing is kept",
                    fix=REPORT_BUG,
                )
            lost += _Lost(int(np.count_nonzero(unfinite)), int(np.count_nonzero(strays)))
        return lost

    def _bias(self, expected: Array) -> _Lost:
        """Compare it as a bias."""
        found = self.new.whole(self.found).astype(np.float64).reshape(-1)
        bad = np.flatnonzero(~self._good(found, expected))
        if bad.size:
            raise VerifyError(
                f"the bias of layer {printable(self.tensor.layer)} is {found[bad[0]]:.6g} in channel "
                f"{bad[0]}, where the original makes {expected[bad[0]]:.6g}; nothing is kept",
                fix=REPORT_BUG,
            )
        return _NOTHING

    def _good(self, found: Array, expected: Array) -> Array:
        good = _near(found, expected, self.tensor.dtype)
        if self.numbers.zero_rows == "zero":
            good |= np.isnan(expected) & (found == 0)
        if self.numbers.allow_nonfinite:
            good |= ~np.isfinite(expected) & ~np.isfinite(found)
        return good


def _near_beside(found: Array, expected: Array, dtype: DType) -> Array:
    """Which elements differ by rounding beside the largest one: what a mean is taken from may cancel."""
    with np.errstate(all="ignore"):
        most = float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
        beside: Array = np.abs(found - expected) <= _RTOL[dtype.name] * most
    return beside


def _near(found: Array, expected: Array, dtype: DType) -> Array:
    smallest = math.ldexp(1, FLOAT_FORMATS[dtype.name].least)
    with np.errstate(all="ignore"):
        off = np.abs(found - expected)
        near: Array = off <= _RTOL[dtype.name] * np.abs(expected) + 2 * smallest
    made: Array = near & np.isfinite(expected) | (found == expected)
    return made
