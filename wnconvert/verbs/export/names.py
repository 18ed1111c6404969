"""Finds the parameter that an initializer came from: exporters rename what they transpose, reorder or fuse.

Only the elements of arrays are compared, so it does not matter which exporter did what.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import TypeAlias

import numpy as np

from wnconvert.tensors.blocks import Array

__all__ = ["biases_of", "names_of"]


#: An exporter that folds constants computes some weights anew: they differ by this part of the largest.
_CLOSE = 1e-6
_RECURRENT = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l(\d+)(?:_reverse)?")
_MASK = (1 << 64) - 1

#: Size and dtype, and two sums over all elements that do not depend on their order.
_Print: TypeAlias = tuple[int, str, int, int]


def names_of(initializers: Mapping[str, Array], parameters: Mapping[str, Array]) -> dict[str, str]:
    """New names of initializers: those of the parameters that they are made of.

    An initializer may hold the elements of a parameter in any order; or those of several parameters of one
    module end to end (an LSTM's biases: ``lstm.bias_ih_l0+bias_hh_l0``); or nearly those of a parameter or
    its transpose (a fold that was computed anew); or those of a parameter with each row scaled (a fused
    batch norm). A second, transposed copy is called ``X.transposed``. Only arrays of two or more different
    floats are compared. An initializer that could come from several parameters keeps its name, as does one
    that has a parameter's name already.

    >>> weight = np.float32([[1, 2], [3, 4], [5, 6]])
    >>> names_of({"val_3": weight.T, "ones": np.ones(2, "f")}, {"lin.weight": weight})
    {'val_3': 'lin.weight'}
    """
    wanted = {name: array for name, array in initializers.items() if name not in parameters and _tells(array)}
    if not wanted:
        return {}
    known = {name: array for name, array in parameters.items() if _tells(array)}
    free = {name: array for name, array in known.items() if name not in initializers}
    prints = {name: _print(array) for name, array in known.items()}
    marks = {name: _print(array) for name, array in wanted.items()}
    found: dict[str, str] = {}

    def pair(alike: Callable[[str, str], bool]) -> None:
        left = [name for name in wanted if name not in found]
        taken = set(found.values())
        found.update(_paired(left, [name for name in free if name not in taken], alike))

    pair(lambda name, other: marks[name] == prints[other] and wanted[name].shape == free[other].shape)
    several = _several(marks[name] for name in wanted if name not in found)
    pair(lambda name, other: marks[name] == prints[other] and marks[name] not in several)
    joined = _joined({name: prints[name] for name in free if name not in found.values()})
    found |= {name: joined[mark] for name, mark in marks.items() if name not in found and mark in joined}
    limits = {name: _CLOSE * float(np.max(np.abs(array))) for name, array in free.items()}
    pair(lambda name, other: marks[name] not in several and _close(wanted[name], free[other], limits[other]))
    pair(lambda name, other: marks[name] not in several and _proportional(wanted[name], free[other]))
    for name, array in wanted.items():
        same = [other for other, mark in prints.items() if mark == marks[name]]
        if name not in found and len(same) == 1 and np.array_equal(array.T, known[same[0]]):
            found.setdefault(name, f"{same[0]}.transposed")
    counts = Counter(found.values())
    return {name: found[name] for name in wanted if name in found and counts[found[name]] == 1}


def biases_of(operands: Iterable[tuple[str, str]], names: Mapping[str, str]) -> dict[str, str]:
    """New names of biases that come from no parameter (a batch norm is fused into them), by their weights.

    ``operands`` are the weights and biases of convolutions; ``names`` are the new names of initializers.

    >>> biases_of([("c.weight", "onnx::Conv_16")], {})
    {'onnx::Conv_16': 'c.bias'}
    """
    found: dict[str, str] = {}
    taken = set(names.values())
    for weight, bias in operands:
        owner, dot, own = names.get(weight, weight).rpartition(".")
        name = f"{owner}{dot}bias"
        if own == "weight" and bias not in names and bias not in found and name not in taken:
            found[bias] = name
            taken.add(name)
    return found


def _several(marks: Iterable[_Print]) -> set[_Print]:
    return {mark for mark, count in Counter(marks).items() if count > 1}


def _tells(array: Array) -> bool:
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        return False
    flat = array.reshape(-1)
    return flat.size > 1 and bool((flat[1:] != flat[:1]).any())


def _print(array: Array) -> _Print:
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}").astype(np.uint64)
    mixed = (bits ^ (bits >> np.uint64(7))) * np.uint64(0x9E3779B97F4A7C15)  # wraps around, as it should
    mixed ^= mixed >> np.uint64(29)
    return array.size, array.dtype.name, int(bits.sum(dtype=np.uint64)), int(mixed.sum(dtype=np.uint64))


def _paired(wanted: list[str], free: list[str], alike: Callable[[str, str], bool]) -> dict[str, str]:
    """Pairs that are alike, if neither side has another partner."""
    partners = {name: [other for other in free if alike(name, other)] for name in wanted}
    claims = Counter(other for others in partners.values() for other in others)
    return {
        name: others[0] for name, others in partners.items() if len(others) == 1 and claims[others[0]] == 1
    }


def _joined(prints: Mapping[str, _Print]) -> dict[_Print, str]:
    """Names for two or four parameters of one module end to end, by their print: sums simply add."""
    by_layer: dict[tuple[str, str], list[str]] = {}  # of a recurrent module, each both ways
    for name in prints:
        owner, _, own = name.rpartition(".")
        if layer := _RECURRENT.fullmatch(own):
            by_layer.setdefault((owner, layer[1]), []).append(name)
    found: dict[_Print, str] = {}
    twice: set[_Print] = set()
    for (owner, _), names in by_layer.items():
        for count in (2, 4):
            for parts in combinations(names, count):
                sizes, dtypes, firsts, seconds = zip(*(prints[name] for name in parts), strict=True)
                if len(set(dtypes)) > 1:
                    continue
                key: _Print = (sum(sizes), dtypes[0], sum(firsts) & _MASK, sum(seconds) & _MASK)
                twice |= {key} & found.keys()
                own = "+".join(name.rpartition(".")[2] for name in parts)
                found[key] = f"{owner}.{own}" if owner else own
    return {key: name for key, name in found.items() if key not in twice}


def _close(array: Array, parameter: Array, limit: float) -> bool:
    if array.dtype != parameter.dtype or array.shape not in (parameter.shape, parameter.shape[::-1]):
        return False
    if abs(float(array.flat[0]) - float(parameter.flat[0])) > limit:
        return False  # without a look at the rest: every initializer meets every parameter here
    wide = parameter.astype(np.float64)
    for other in (wide, wide.T):
        if other.shape == array.shape and float(np.max(np.abs(array - other))) <= limit:
            return True
    return False


def _proportional(array: Array, parameter: Array) -> bool:
    """Whether each row is the parameter's row times a number."""
    if (
        array.dtype != parameter.dtype
        or array.shape != parameter.shape
        or array.ndim < 2
        or array[0].size < 2
    ):
        return False
    return _rows_proportional(array[:1], parameter[:1]) and _rows_proportional(array, parameter)


def _rows_proportional(array: Array, parameter: Array) -> bool:
    ours, theirs = (each.reshape(len(each), -1).astype(np.float64) for each in (array, parameter))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    products = np.abs(np.einsum("ij,ij->i", ours, theirs))
    return bool(np.all(lengths > 0) and np.all(products >= lengths * (1 - _CLOSE)))
