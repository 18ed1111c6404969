"""What the statistics and gains of norms show: dead channels, gains that are 0 or negative, no training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from wnconvert.layers.schemes import Selection
from wnconvert.tensors.blocks import Array, Elements, Floats, blocks
from wnconvert.tensors.memory import InMemory
from wnconvert.tensors.tree import StateDict, StoredTensor, Tree
from wnconvert.verbs.inspection.result import NormSummary

__all__ = ["DEAD", "norm_rows"]


#: A channel with less variance than this had the same number in all that the norm saw.
DEAD = 1e-12


def norm_rows(tree: Tree, elements: Elements, selection: Selection) -> tuple[NormSummary, ...]:
    """The norms with running statistics of all state dicts, whose weights are wanted and can be read."""
    return tuple(row for state in tree.state_dicts for row in _rows(state, elements, selection))


def _rows(state: StateDict, elements: Elements, selection: Selection) -> Iterator[NormSummary]:
    from wnconvert.layers.telling.arrangement import Arrangement  # which g alone does not need

    for norm in Arrangement(state).norms:
        tensors = {end: tensor for end in _READ if (tensor := state.tensors.get(f"{norm}.{end}"))}
        variance = tensors["running_var"]
        if not variance.info.dtype.foldable or not selection.wants(f"{norm}.weight"):
            continue
        if isinstance(elements, InMemory) and not all(map(elements.is_readable, tensors.values())):
            continue
        gain, batches = tensors.get("weight"), tensors.get("num_batches_tracked")
        yield NormSummary(
            state.path,
            norm,
            variance.info.numel,
            dead=_count(variance, elements, lambda values: values < DEAD),
            zero_gains=_count(gain, elements, lambda values: values == 0),
            negative_gains=_count(gain, elements, lambda values: values < 0),
            batches=None if batches is None or batches.info.numel != 1 else _number(batches, elements),
        )


_READ = ("running_var", "weight", "num_batches_tracked")


def _count(tensor: StoredTensor | None, elements: Elements, holds: Callable[[Floats], Array]) -> int | None:
    """Of how many elements something holds; None without a tensor of floats."""
    if tensor is None or not tensor.info.dtype.foldable:
        return None
    read, size = elements.reader(tensor), tensor.info.dtype.itemsize
    counts = (
        np.count_nonzero(holds(read(block).astype(np.float64)))
        for block in blocks(tensor.info.shape, None, size)
    )
    return int(sum(counts))


def _number(tensor: StoredTensor, elements: Elements) -> int | None:
    """The one number of a tensor of integers; None of another."""
    if not tensor.info.dtype.name.startswith("int"):
        return None
    block = next(iter(blocks(tensor.info.shape, None, tensor.info.dtype.itemsize)))
    held = np.ascontiguousarray(elements.reader(tensor)(block)).reshape(-1)
    return int(held.view(tensor.info.dtype.name)[0])  # a file gives integers as bytes
