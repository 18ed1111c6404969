"""The verb that compares two checkpoints by their effective weights, element by element.

Each side's layers are folded on the fly, so form, container, nesting and the names of a form do not matter.
There are two readings: the first finds the tensors that are equal; if some are not, the second measures how
far apart they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from wnconvert.errors import ArgumentError, LayerError
from wnconvert.layers.recipes import Recipe
from wnconvert.layers.schemes import Selection
from wnconvert.messages import option, options_as_python, refuse_other_than_path, told
from wnconvert.numerics.distance import Tolerance, needed
from wnconvert.numerics.rows import RowPolicy
from wnconvert.storage.checkpoint import no_graph, open_checkpoint
from wnconvert.storage.files import unchanging
from wnconvert.storage.sources import Source
from wnconvert.storage.workers import Workers
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.claims import refuse_unfounded
from wnconvert.tensors.distributed import whole_of
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.tensors.memory import (
    InMemory,
    modules_named_in,
    refuse_other_than_state_dict,
    stored_tensor,
    tree_of_values,
)
from wnconvert.tensors.tree import StoredTensor
from wnconvert.verbs.comparison.items import difference_of
from wnconvert.verbs.comparison.pairing import Rules, Side, paired
from wnconvert.verbs.comparison.readings import Readings
from wnconvert.verbs.comparison.result import Comparison
from wnconvert.verbs.shared.options import renaming_of
from wnconvert.verbs.shared.progress import Progress, bytes_progress
from wnconvert.verbs.shared.recipes import recipe_given
from wnconvert.verbs.shared.selections import selection_of, texts_of

__all__ = ["compare_files", "compare_state_dicts"]


def compare_files(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    rtol: float | None = None,
    atol: float | None = None,
    strip_prefix: Iterable[str] = (),
    only: str | Sequence[str] = (),
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    recipe: str | os.PathLike[str] | Recipe | None = None,
    threads: int | None = None,
    progress: Progress = False,
) -> Comparison:
    """Compare the effective weights of two checkpoint files of any readable format and form.

    Two numbers are equal within 1 ulp of the coarser dtype, or by |a-b| <= atol + rtol·|b| if either is
    given. NaN equals NaN; tensors that are not floats are compared bit for bit. The first of
    ``strip_prefix`` that a name begins with is taken off, on both sides; the wrappers of torch.compile, FSDP
    and activation checkpointing in names are seen through, with a note. ``only`` is the path of the state
    dict to compare, on whichever side has it, or two paths, A's and B's. ``layers`` and ``exclude`` are
    globs on the names of tensors (weights and all others). A side that a ``recipe`` fits is compared as it
    would fold it, another as it is. ``progress`` is called with the number of bytes
    compared and the total.

    Raises ``InputError`` for a file that cannot be read, ``LayerError`` for a layer that cannot be folded,
    and ``ArgumentError`` if there is nothing to compare, or the state dicts to compare are ambiguous.

    >>> found = compare_files("fixtures/g_02500000", "fixtures/hifigan.safetensors")
    >>> bool(found), found.layers, found.identical
    (True, 78, 156)
    """
    tolerance = Tolerance(rtol, atol)
    rules = Rules(renaming_of(strip_prefix, "", ()), _selection(layers, exclude, recipe))
    with _opened(a) as left, _opened(b) as right:
        return _compare(
            left, right, rules, tolerance, Workers(threads, bytes_progress(progress)), only=_paths(only)
        )


def compare_state_dicts(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    rtol: float | None = None,
    atol: float | None = None,
    strip_prefix: Iterable[str] = (),
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    recipe: str | os.PathLike[str] | Recipe | None = None,
    threads: int | None = None,
) -> Comparison:
    """Compare the effective weights of two state dicts of torch tensors or numpy arrays, in any form.

    Options and errors as for ``compare_files``.

    >>> layer = {"conv.weight_g": np.float32([[10]]), "conv.weight_v": np.float32([[3, 4]])}
    >>> found = compare_state_dicts(layer, {"conv.weight": np.float32([[6, 8.001]])})
    >>> bool(found), found.advice
    (False, '--atol 0.00101 or --rtol 0.000126 would have passed')
    """
    tolerance = Tolerance(rtol, atol)
    rules = Rules(renaming_of(strip_prefix, "", ()), _selection(layers, exclude, recipe))
    with options_as_python():
        return _compare(_memory("A", a), _memory("B", b), rules, tolerance, Workers(threads))


def _selection(
    layers: Iterable[str], exclude: Iterable[str], recipe: str | os.PathLike[str] | Recipe | None
) -> Selection:
    return selection_of(layers, exclude, "auto", recipe=recipe_given(recipe))


def _compare(
    a: Side, b: Side, rules: Rules, tolerance: Tolerance, workers: Workers, *, only: tuple[str, ...] = ()
) -> Comparison:
    found = paired(a, b, rules, only)
    read = (item for pair in found.pairs if not pair.why for item in (pair.a, pair.b))
    stored = (tensor for item in read for tensor in item.read)
    refuse_unfounded(((tensor.info.name, tensor) for tensor in stored), f"{option('exclude')} leaves it out")
    readings = Readings(a, b, found.pairs, tolerance, workers)
    verdicts = readings.verdicts()
    measured = readings.measures(verdicts) if "different" in verdicts else {}
    return Comparison(
        a=a.label,
        b=b.label,
        pairs=found.states,
        differing=tuple(
            difference_of(pair, measured.get(at))
            for at, (pair, verdict) in enumerate(zip(found.pairs, verdicts, strict=True))
            if pair.why or verdict == "different"
        ),
        only_in_a=found.only_in_a,
        only_in_b=found.only_in_b,
        compared=len(found.pairs),
        identical=verdicts.count("identical"),
        within=verdicts.count("within"),
        layers=sum(pair.a.is_layer or pair.b.is_layer for pair in found.pairs),
        rtol=tolerance.rtol,
        atol=tolerance.atol,
        tolerance_needed=needed(measured.values()),
        notes=(*found.notes, *_zero_notes((a, b), readings)),
    )


def _zero_notes(sides: tuple[Side, Side], readings: Readings) -> Iterator[str]:
    policy = RowPolicy("zero", allow_nonfinite=True)
    notes = (
        (at, side, note)
        for (at, side), report in sorted(readings.reports.items())
        for note in (policy.note(report), *(problem.what for problem in policy.problems(report)))
    )
    yield from told(
        (f"{sides[side].label}: layer {readings.pairs[at].a.name}", note) for at, side, note in notes if note
    )


# -- the sides


def _paths(only: str | Sequence[str]) -> tuple[str, ...]:
    paths = texts_of(only)
    if len(paths) > 2:
        raise ArgumentError(
            f"only names {len(paths)} state dicts", fix="--only once for both sides, or twice: A's, then B's"
        )
    return paths


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Side]:
    refuse_other_than_path(path)
    checkpoint = no_graph(open_checkpoint(path), "compared with a checkpoint, only with another ONNX model")
    with unchanging(checkpoint.seen), Source(checkpoint.sources, opener=checkpoint.reopen) as source:
        yield Side(os.fspath(path), checkpoint.tree, source)


class _Bits(InMemory):
    """Values as files have them: floats as numpy's, all others as bits."""

    def whole(self, tensor: StoredTensor) -> Array:
        kind = tensor.info.dtype.elements()
        return _raw(self.values[tensor.info.name], tensor.info.name).view(kind).reshape(tensor.info.shape)


def _memory(label: str, state_dict: Mapping[str, Any]) -> Side:
    refuse_other_than_state_dict(state_dict)
    values = {str(name): value for name, value in state_dict.items()}
    tree = tree_of_values(values, stored=_stored, modules=modules_named_in(state_dict))
    if not tree.state_dict("").tensors:
        for name, value in values.items():
            if isinstance(value, Mapping):
                raise ArgumentError(
                    f"it holds no tensor, but a mapping at {name!r}",
                    where=label,
                    fix=f"pass checkpoint[{name!r}]",
                )
    return Side(label, tree, _Bits(values))


def _stored(name: str, value: Any) -> StoredTensor | None:
    stored = stored_tensor(name, value)
    if stored is None or stored.info.dtype.bits % 8 == 0:
        return stored
    return replace(
        stored, info=replace(stored.info, dtype=DTYPES["uint8"])
    )  # torch counts its elements in bytes


def _raw(value: Any, name: str) -> Array:
    """The bytes of a tensor's elements in C order; no copy of a contiguous tensor in the CPU's memory."""
    if isinstance(value, (np.ndarray, np.generic)):
        native = np.asarray(value, value.dtype.newbyteorder("="))
        return np.ascontiguousarray(native).reshape(-1).view(np.uint8)
    if value.device.type == "meta" or value.is_quantized:
        raise ArgumentError(
            "it is a quantized or meta tensor, which cannot be compared", where=name, fix="exclude it"
        )
    import torch  # it is installed: the value is its tensor

    try:
        value = whole_of(value)
    except LayerError as error:
        error.where = name
        raise
    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    raw: Array = plain.view(torch.uint8).numpy()
    return raw
