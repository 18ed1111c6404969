"""A folded model's layers against the original's own arithmetic, cut out and run in onnxruntime, by rows.

No more than a few rows of a layer are in memory, here and in onnxruntime's process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from wnconvert.errors import VerifyError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.layers.kinds.formulas import formula_in_words
from wnconvert.messages import REPORT_BUG, counted, listed, printable, told
from wnconvert.numerics.rows import RowPolicy
from wnconvert.onnx.file.model import NewTensor
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.graph.computed import GraphLayer
from wnconvert.onnx.graph.index import ValueId
from wnconvert.onnx.graph.plan import OnnxFold
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.onnx.slices import Resize, Slices, UnreachableError, as_they_are
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.sources import Source
from wnconvert.storage.workers import Workers
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.tree import StoredTensor, rows_of
from wnconvert.verbs.conversion.onnx.compared import (
    NOTHING_LOST,
    ComparedTensor,
    Distance,
    Lost,
    apart_of,
    axes_of_rows,
    compare_codes,
)
from wnconvert.verbs.conversion.onnx.norms import NormNodes
from wnconvert.verbs.conversion.onnx.works import rows_between

__all__ = ["LayersCompared", "compare_layers"]


#: Elements of the rows that are computed at a time.
_PIECE = 1 << 20
#: Bytes of a layer that is computed whole, where it cannot be by rows.
_MOST_WHOLE = 64 << 20
#: Layers that are compared at once: while onnxruntime computes one, the other is read, or compared.
_AT_ONCE = 2
#: Sizes that are not taken for a number of rows where they stand in a shape: they may be axes.
_AXES = 8


@dataclass(frozen=True, slots=True)
class LayersCompared:
    """What was compared: how many layers with their own arithmetic, how many with which formula; notes.

    ``otherwise`` are the layers that the original computes as other finite numbers than they are; ``rounded``
    counts the elements that it rounds to another whole number.
    """

    alone: int
    by_formula: Mapping[str, int]
    otherwise: tuple[str, ...]
    notes: tuple[str, ...]
    rounded: int = 0


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
        return rows_of(self.tensor.original.info.shape, apart_of(self.tensor))


def _claims(fold: OnnxFold) -> Iterator[_Claim]:
    tensors = {(each.layer, each.work): each for each in fold.edits.tensors}
    for layer in fold.layers:
        if layer.behind is not None:
            continue  # the value of its weight is not the new tensor
        name = layer.layer.name
        for weight in layer.weights:
            if weight.codes is not None:
                continue  # nor are codes
            tensor = tensors[name, weight.view.work()]
            yield from (_Claim(layer, tensor, value, ()) for value in weight.values)
        for passed in layer.passed:
            yield _Claim(layer, tensors[name, passed.view.work()], passed.value, passed.calls)


def compare_layers(
    opened: OnnxFile, fold: OnnxFold, written: Checkpoint, numbers: RowPolicy, runtime: Runtime
) -> LayersCompared:
    """Compare every new tensor with the value that onnxruntime computes from the original's nodes.

    Layers that it cannot compute are compared with the formula. Raises ``VerifyError`` for a layer that is
    something else, ``FormatError`` where a node of the original is damaged.
    """
    by_formula: dict[str, str] = {}
    losses: dict[str, Lost] = {}
    if not fold.layers:
        return LayersCompared(0, {}, (), ())
    assert written.onnx is not None  # noqa: S101 - it was read back before
    stored = {name: tensor for state in written.tree.state_dicts for name, tensor in state.tensors.items()}
    with Source(written.shards) as new, Source(opened.shards) as old:
        slices = Slices(opened, old.files)
        claims = list(_claims(fold))

        def compared(at: int) -> tuple[Lost, bool]:
            """What a layer loses, and whether only the formula could tell."""
            claim = claims[at]
            comparison = ComparedTensor(claim.tensor, _of(stored, claim.tensor), new, old, numbers)
            lost = _by_arithmetic(claim, comparison, slices, runtime)
            return (comparison.with_formula(), True) if lost is None else (lost, False)

        sizes = dict.fromkeys(range(len(claims)), 1)
        found = Workers(_AT_ONCE).each(compared, sizes, sizes)
        for at, claim in enumerate(claims):
            (lost, is_by_formula), tensor = found[at], claim.tensor
            if is_by_formula:
                by_formula[tensor.layer] = formula_in_words(tensor.rule)
            losses[tensor.layer] = losses.get(tensor.layer, NOTHING_LOST) + lost
        made: dict[str, list[NewTensor]] = {}
        for tensor in fold.edits.tensors:
            made.setdefault(tensor.layer, []).append(tensor)
        apart = {
            layer.layer.name: compare_codes(made[layer.layer.name], stored, new, old)
            for layer in fold.layers
            if any(weight.codes is not None for weight in layer.weights)
        }
        nodes = NormNodes(slices, Slices(written.onnx, new.files), runtime)
        for layer in fold.layers:
            if layer.behind is not None:
                name = layer.layer.name
                for tensor in made[name]:
                    comparison = ComparedTensor(tensor, _of(stored, tensor), new, old, numbers)
                    losses[name] = losses.get(name, NOTHING_LOST) + comparison.with_formula()
                if not nodes.agree(layer):
                    by_formula[name] = formula_in_words(layer.layer.rule)
    otherwise = tuple(name for name, lost in losses.items() if lost.strays or lost.void)
    notes = (*_lost_notes(losses, fold), *_formula_notes(by_formula), *_code_notes(apart))
    formulas = Counter(by_formula.values())
    formulas.update(formula_in_words(each.layer.rule) for each in fold.layers if each.layer.name in apart)
    rounded = sum(lost.rounded for lost in losses.values())
    return LayersCompared(len(fold.layers) - formulas.total(), formulas, otherwise, notes, rounded)


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


def _lost_notes(losses: Mapping[str, Lost], fold: OnnxFold) -> Iterator[str]:
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
        if lost.void:
            what = "that are NaN in the original before it rounds them, so their codes may be any"
            said.append((place, f"{counted(lost.void, 'element')} {what}"))
        if lost.rounded:
            what = (
                "that onnxruntime rounds to another whole number: its own weight is off, next to a midpoint"
            )
            said.append((place, f"{counted(lost.rounded, 'element')} {what}"))
    yield from told(said)


def _formula_notes(by_formula: Mapping[str, str]) -> Iterator[str]:
    for formula in dict.fromkeys(by_formula.values()):
        names = listed((printable(name) for name, its in by_formula.items() if its == formula), 6)
        yield f"onnxruntime cannot run the arithmetic of {names} alone: compared with {formula} instead"


def _code_notes(apart: Mapping[str, Distance]) -> Iterator[str]:
    """How far weights that are codes again are from the folded ones."""
    if not apart:
        return
    worst = min(apart, key=lambda name: apart[name].snr)
    every = Distance(sum(each.signal for each in apart.values()), sum(each.noise for each in apart.values()))
    least = f", the least {apart[worst].snr:.1f} dB of {printable(worst)}" if len(apart) > 1 else ""
    are = "is" if len(apart) == 1 else "are"
    yield f"{counted(len(apart), 'weight')} {are} stored in codes again: SNR {every.snr:.1f} dB{least}"


# -- the arithmetic of a layer


def _by_arithmetic(
    claim: _Claim, comparison: ComparedTensor, slices: Slices, runtime: Runtime
) -> Lost | None:
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


def _attempt(comparison: ComparedTensor, arithmetic: _Arithmetic, step: int) -> Lost | None:
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
        along = axes_of_rows(claim.layer.layer.rule)
        cut_axes = {part.record: along[role] for role, part in claim.layer.parts.items() if role in along}
        feeds = {}
        for name, constant in cut.fed.items():
            tensor = constant.tensor
            assert tensor is not None  # noqa: S101 - only such are fed
            if constant.record in cut_axes:
                tensor = rows_between(tensor, cut_axes[constant.record], start, stop, claim.rows)
            feeds[name] = source.whole(tensor).view(tensor.info.dtype.numpy())
        try:
            (value,) = self.runtime.compute(cut.model, feeds).values()
        except WnconvertError as error:
            raise UnreachableError(error.what) from error
        return value
