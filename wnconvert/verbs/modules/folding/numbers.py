"""The numbers of a fold: the weights of layers, and the biases of those into which a norm is folded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from wnconvert.errors import LayerError
from wnconvert.layers.rules import BIAS
from wnconvert.layers.schemes import Refused
from wnconvert.numerics.folding import Folding
from wnconvert.numerics.rows import Problem, RowPolicy, RowReport, raise_problems
from wnconvert.numerics.rules.neighbours import fold_bias
from wnconvert.numerics.rules.parts import RulePart
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.memory import array_of, made_like, view_of
from wnconvert.verbs.modules.finding.live import Live
from wnconvert.verbs.modules.selection import ON_META, raise_refused
from wnconvert.verbs.modules.surgery import made_as

__all__ = ["folded_biases", "folded_weights", "refuse_meta", "weight_now"]


def folded_weights(chosen: Iterable[Live], policy: RowPolicy) -> list[Tensor]:
    """The weight of each layer; layers that share the objects or the memory of g and v share the weight's."""
    every = list(chosen)
    refuse_meta(every, "folded")
    arrays: dict[object, Array] = {}
    made: dict[object, Tensor] = {}
    problems: list[tuple[str, tuple[Problem, ...]]] = []
    for live in every:
        bits = (live.layer.rule, *((role, view_of(value)) for role, value in live.tensors.items()))
        if bits not in arrays:
            w, report = _weight(live)
            arrays[bits] = w
            problems.append((f"layer {live.layer.name}", policy.making(w.dtype.name).problems(report)))
        if live.key not in made:
            made[live.key] = made_as(live.original, arrays[bits])
    raise_problems(problems)
    return [made[live.key] for live in every]


def folded_biases(chosen: Iterable[Live], policy: RowPolicy) -> list[Tensor | None]:
    """The bias that each layer gets, in the dtype of the one that it has or of its weight; None for none."""
    made: list[Tensor | None] = []
    problems: list[tuple[str, tuple[Problem, ...]]] = []
    for live in chosen:
        if not live.layer.bias:
            made.append(None)
            continue
        old = live.tensors.get(BIAS)
        dtype = array_of((live.original if old is None else old).detach().reshape(-1)[:0]).dtype
        with _errors_name(live.layer.bias):
            bias, report = fold_bias(live.layer.rule, _parts(live), dtype)
        problems.append((live.layer.bias, policy.making(dtype.name).problems(report)))
        made.append(made_like(live.original, bias) if old is None else made_as(old, bias))
    raise_problems(problems)
    return made


def _weight(live: Live) -> tuple[Array, RowReport]:
    """The weight of a layer, and its odd rows. Raises ``LayerError`` if its parts do not fit each other."""
    original = array_of(live.original)
    w = np.empty(original.size, original.dtype)
    with _errors_name(f"layer {live.layer.name}"):
        folding = Folding(live.layer.rule, _parts(live), w.dtype)
    for _ in folding.blocks(lambda block: w[block.start : block.stop].reshape(block.shape)):
        pass
    return w.reshape(original.shape), folding.report()


def _parts(live: Live) -> dict[str, RulePart]:
    return {role: RulePart.of(array_of(value)) for role, value in live.tensors.items()}


@contextmanager
def _errors_name(where: str) -> Iterator[None]:
    try:
        yield
    except LayerError as error:
        error.where = where
        raise


def refuse_meta(layers: Iterable[Live], done: str) -> None:
    """Raise ``LayerError`` for layers on the meta device, which have no numbers."""
    raise_refused((Refused(live.layer.name, *ON_META) for live in layers if _is_meta(live)), done)


def _is_meta(live: Live) -> bool:
    return any(value.is_meta for value in live.tensors.values())


def weight_now(live: Live) -> Tensor:
    """The current weight of a layer, detached; rows without an answer follow IEEE 754."""
    original = live.original.detach()
    return torch.empty_like(original) if _is_meta(live) else made_as(original, _weight(live)[0])
