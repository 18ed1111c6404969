"""A reference that is run again until it gives the same twice in turn, and is stochastic if it never does.

A first run may be a little off: kernels choose their algorithm then, and threads share the sums otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from wnconvert.errors import InputError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, printable
from wnconvert.numerics.distance import Tolerance, same_bits
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.verbs.models.proof.outputs import OutputMeter, flat
from wnconvert.verbs.models.proof.samples import Sample, arrays
from wnconvert.verbs.models.proof.signatures import Signature

__all__ = [
    "NumericFunction",
    "Run",
    "check_comparable",
    "errors_name_sizes",
    "form_apart",
    "names_apart",
    "run",
    "settled",
    "steady_run",
]


#: Takes inputs by name, and returns outputs by name, in order.
NumericFunction: TypeAlias = Callable[[Mapping[str, Array]], Mapping[str, Array]]

#: So often is a reference run at most until two runs in turn agree.
_MOST_RUNS = 4
#: Rounding noise of a whole model, as a part of its largest output: in units of the dtype, and at most.
_UNITS, _MOST_NOISE = 1024, 2.0**-13


@dataclass(frozen=True, slots=True)
class Run:
    """The outputs of a function for a sample, the seconds that it took, and how far earlier runs were off."""

    outputs: Mapping[str, Array]
    seconds: float
    wobble: float = 0.0


def steady_run(
    reference: NumericFunction,
    signature: Signature,
    sample: Sample,
    *,
    tolerance: Tolerance,
    who: str = "the module",
) -> Run:
    """Run a reference on a sample until two runs in turn agree: twice, as a rule; the last run.

    Raises ``InputError`` as ``settled`` does, and if there is nothing to compare.
    """
    feeds = arrays(signature, sample)
    with errors_name_sizes(sample):
        first = run(reference, feeds)
        check_comparable(first.outputs, who)
        return settled(reference, feeds, first, tolerance, who)


def settled(
    reference: NumericFunction, feeds: Mapping[str, Array], first: Run, tolerance: Tolerance, who: str
) -> Run:
    """Run a reference again, after a first run, until two runs in turn agree; the last run.

    They agree if they differ by no more than a hundredth of the tolerance, for kernels that add in another
    order each time. Raises ``InputError`` if no two of four do, or if an earlier run is further off than the
    tolerance and rounding noise: the reference is stochastic then, or remembers.
    """
    fix = "remove noise, dropout and memory from forward, or make the noise (or its seed) an input"
    said = f"{who} is stochastic: run twice on the same input"
    strict = Tolerance((tolerance.rtol or 0) / 100, (tolerance.atol or 0) / 100)
    runs, apart = [first], ""
    while len(runs) < _MOST_RUNS and (apart or len(runs) == 1):
        again = run(reference, feeds)
        if tuple(first.outputs) != tuple(again.outputs):
            other = names_apart(tuple(again.outputs), tuple(first.outputs))
            raise InputError(f"{said}, it gives other outputs: {other}", fix=fix)
        for name, right in first.outputs.items():
            if other := form_apart(name, again.outputs[name], right):
                raise InputError(f"{said}, {other}", fix=fix)
        apart, _ = _apart(runs[-1].outputs, again.outputs, lambda _: strict)
        runs.append(again)
    *earlier, last = runs
    wobble = 0.0
    for each in earlier:
        far, most = _apart(each.outputs, last.outputs, lambda right: _noise(right, tolerance))
        apart, wobble = apart or far, max(wobble, most)
    if apart:
        raise InputError(f"{said}, {apart}", fix=fix)
    return replace(last, wobble=wobble)


def _apart(
    found: Mapping[str, Array], expected: Mapping[str, Array], allowed: Callable[[Array], Tolerance]
) -> tuple[str, float]:
    """How an output differs by more than is allowed, in words, or empty; and the largest difference."""
    said, most = "", 0.0
    for name, right in expected.items():
        if same_bits(flat(found[name]), flat(right)):
            continue
        meter = OutputMeter(name, DTYPES[right.dtype.name], allowed(right))
        meter.add(Sample(0, {}), found[name], right)
        result = meter.result()
        most = max(most, result.max_abs)
        if not result.passed and not said:
            far = "NaN once" if result.unmatched else f"up to {result.max_abs:.3g} apart"
            said = f"its output {printable(name)} is {far}"
    return said, most


def _noise(right: Array, tolerance: Tolerance) -> Tolerance:
    """The tolerance, and beside it the rounding noise of a model with these outputs."""
    real = np.abs(right[np.isfinite(right)]) if right.dtype.kind in "fcV" else np.zeros(0)
    largest = float(real.max(initial=0.0)) if real.size else 0.0
    unit = float(_unit(right.dtype))
    noise = max(4 * unit, min(_UNITS * unit, _MOST_NOISE)) * largest
    return Tolerance(tolerance.rtol, max(tolerance.atol or 0.0, noise))


def _unit(dtype: np.dtype[Any]) -> float:
    """The unit in the last place of 1 in a float dtype; 0 of others."""
    if dtype.name in FLOAT_FORMATS:
        return 2.0 ** (1 - FLOAT_FORMATS[dtype.name].digits)
    return float(np.finfo(dtype).eps) if dtype.kind == "c" else 0.0


@contextmanager
def errors_name_sizes(sample: Sample) -> Iterator[None]:
    """Errors raised inside name the sizes of the sample."""
    try:
        yield
    except WnconvertError as error:
        if sample.sizes:
            error.where = f"{error.where}, at {sample}" if error.where else f"at {sample}"
        raise


def run(function: NumericFunction, feeds: Mapping[str, Array]) -> Run:
    """Run a function on a copy of the inputs, because it may write to them."""
    own = {name: array.copy() for name, array in feeds.items()}
    start = time.perf_counter()
    outputs = function(own)
    seconds = time.perf_counter() - start
    return Run({name: np.asarray(array) for name, array in outputs.items()}, seconds)


def check_comparable(outputs: Mapping[str, Array], who: str) -> None:
    """Raise ``InputError`` for outputs that are none, or not of numbers."""
    if not outputs:
        raise InputError(
            f"{who} has no outputs: that would compare nothing",
            fix="give a module whose forward returns tensors",
        )
    for name, array in outputs.items():
        if array.dtype.name not in DTYPES:
            raise InputError(f"output {printable(name)} of {who} is of {array.dtype}, not of numbers")


def names_apart(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """How the names of outputs differ, in words; empty if they agree."""
    if found == expected:
        return ""
    order = " in this order" if sorted(found) == sorted(expected) else ""
    found_names, names = (listed(map(printable, every)) for every in (found, expected))
    return f"outputs: {found_names or 'none'}; expected{order}: {names}"


def form_apart(name: str, found: Array, expected: Array) -> str:
    """How shapes or dtypes differ, in words; empty if they agree."""
    name = printable(name)
    if found.shape != expected.shape:
        return f"output {name}: shape {_shape(found)}, expected {_shape(expected)}"
    if found.dtype != expected.dtype:
        return f"output {name}: dtype {found.dtype}, expected {expected.dtype}"
    return ""


def _shape(array: Array) -> str:
    return f"[{','.join(map(str, array.shape))}]"
