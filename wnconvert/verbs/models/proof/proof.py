"""Runs two functions on the same samples, and compares names, shapes, dtypes and values of outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from wnconvert.errors import ArgumentError, InputError, VerifyError, WnconvertError
from wnconvert.messages import listed, printable
from wnconvert.numerics.distance import Needed, Tolerance, rounded_up, same_bits
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.verbs.models.proof.causes.fixed import fixed_sizes
from wnconvert.verbs.models.proof.outputs import OutputMeter, OutputProof, flat
from wnconvert.verbs.models.proof.samples import Sample, arrays
from wnconvert.verbs.models.proof.signatures import Signature

__all__ = ["ATOL", "RTOL", "NumericFunction", "Proof", "Run", "errors_name_sizes", "prove", "steady_run"]


ATOL = 1e-5
RTOL = 1e-3

#: Takes inputs by name, and returns outputs by name, in order.
NumericFunction: TypeAlias = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of a comparison of two functions; true if all outputs are equal within the tolerance.

    At least one output must prove something: a value near zero is within an absolute tolerance anyhow.
    ``mismatches`` describe names, shapes and dtypes that differ, and samples that the candidate cannot run;
    if it can run none of them, ``fixed`` are the only sizes that it takes. The seconds are those of one run
    of all samples.
    """

    outputs: tuple[OutputProof, ...]
    mismatches: tuple[str, ...]
    samples: tuple[Sample, ...]
    rtol: float
    atol: float
    reference_seconds: float = 0.0
    candidate_seconds: float = 0.0
    fixed: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.within and any(output.tells for output in self.outputs)

    @property
    def within(self) -> bool:
        """Whether all outputs are within the tolerance, even if that proves nothing."""
        return bool(self.outputs) and not self.mismatches and all(output.passed for output in self.outputs)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on outputs that prove little about the weights."""
        found = []
        for output in self.outputs:
            if output.alike:
                found.append(
                    f"output {printable(output.name)} is the same number everywhere: that proves little"
                )
            elif output.unproven:
                what = f"is at most {output.largest:.3g}, so zeros would pass too"
                found.append(f"output {printable(output.name)} {what}: that proves little")
        return tuple(found)

    @property
    def tolerance(self) -> str:
        """The tolerance that was applied, in words."""
        return f"{self.atol:g} + {self.rtol:g}·|reference|"

    @property
    def needed(self) -> Needed | None:
        """The least tolerance under which all values would have passed, or None if there is none."""
        failed = [output for output in self.outputs if not output.passed or (self.within and output.unproven)]
        atols = [output.needed_atol for output in failed]
        rtols = [output.needed_rtol for output in failed]
        atol = None if None in atols else max((value for value in atols if value is not None), default=0.0)
        rtol = None if None in rtols else max((value for value in rtols if value is not None), default=0.0)
        return None if atol is None and rtol is None else Needed(rtol, atol, 0)

    @property
    def advice(self) -> str:
        """The options under which the proof would have passed, rounded up; empty if it passed."""
        if self:
            return ""
        need = None if self.mismatches else self.needed
        if need is None:
            return "no tolerance would have passed"
        ways = [f"--atol {rounded_up(need.atol)}"] if need.atol is not None else []
        ways += [f"--rtol {rounded_up(need.rtol)}"] if need.rtol is not None else []
        return f"{' or '.join(ways)} would have passed"


@dataclass(frozen=True, slots=True)
class Run:
    """The outputs of a function for a sample, and the seconds that it took."""

    outputs: Mapping[str, Array]
    seconds: float


def steady_run(
    reference: NumericFunction,
    signature: Signature,
    sample: Sample,
    *,
    rtol: float = RTOL,
    atol: float = ATOL,
    who: str = "the module",
) -> Run:
    """Run a reference twice on a sample; returns the first run.

    Raises ``InputError`` if the second run gives other numbers, or if there is nothing to compare.
    """
    feeds = arrays(signature, sample)
    with errors_name_sizes(sample):
        first, again = _run(reference, feeds), _run(reference, feeds)
        _check_comparable(first.outputs, who)
        _check_steady(first.outputs, again.outputs, Tolerance(rtol, atol), who)
    return first


def prove(
    reference: NumericFunction,
    candidate: NumericFunction,
    signature: Signature,
    *,
    samples: Sequence[Sample],
    rtol: float = RTOL,
    atol: float = ATOL,
    who: str = "the module",
    first: Run | None = None,
    forget: Callable[[], None] = lambda: None,
) -> Proof:
    """Run both functions on samples and compare: |candidate-reference| <= atol + rtol·|reference|.

    NaN is equal to NaN, and an infinity to itself. A ``VerifyError`` of the candidate is a mismatch.
    ``who`` names the reference in messages. ``first`` is the result of ``steady_run`` for the first sample,
    if it is known. ``forget`` is called before each sample, to reset a reference that keeps state.

    The reference is run twice on the first sample and on each sample that differs. Raises ``InputError`` if
    the two runs give different numbers, or if there is nothing to compare; ``ArgumentError`` for a tolerance
    that is not valid.

    >>> from wnconvert.verbs.models.proof.samples import samples_of
    >>> from wnconvert.verbs.models.proof.signatures import signature_of
    >>> signature = signature_of(["x=float32[2]"])
    >>> double = lambda feeds: {"y": feeds["x"] * 2}
    >>> bool(prove(double, double, signature, samples=samples_of(signature)))
    True
    """
    if not samples:
        raise ArgumentError(
            "no samples: that would compare nothing", fix="give a number of samples of 1 or more"
        )
    comparison = _Comparison(Tolerance(rtol, atol))
    reference_seconds = candidate_seconds = 0.0
    refused: list[Sample] = []
    for at, sample in enumerate(samples):
        forget()
        feeds = arrays(signature, sample)
        if at:
            expected = _comparable_run(reference, feeds, sample, who)
        else:
            expected = first or steady_run(reference, signature, sample, rtol=rtol, atol=atol, who=who)
        reference_seconds += expected.seconds
        try:
            found = _run(candidate, feeds)
        except VerifyError as error:
            comparison.mismatches.append(f"at {sample}: {error}")
            refused.append(sample)
            continue
        candidate_seconds += found.seconds
        names = _names_apart(tuple(found.outputs), tuple(expected.outputs))
        if names:
            comparison.mismatches.append(names)
            break
        before = comparison.failures
        comparison.add(sample, found.outputs, expected.outputs)
        if at and comparison.failures != before:
            with errors_name_sizes(sample):  # to see whether the reference itself varies
                again = _run(reference, feeds)
                _check_steady(expected.outputs, again.outputs, comparison.tolerance, who)
    proof = Proof(
        comparison.outputs,
        tuple(comparison.mismatches),
        tuple(samples),
        rtol,
        atol,
        reference_seconds,
        candidate_seconds,
        # The example and the user's data may have the exported sizes.
        fixed_sizes(candidate, signature, refused)
        if refused and all(sample in refused for sample in samples if not sample.source)
        else {},
    )
    _check_tells(proof, who)
    return proof


@dataclass(slots=True)
class _Comparison:
    """Outputs of two functions, compared sample by sample; ``mismatches`` are in words."""

    tolerance: Tolerance
    meters: dict[str, OutputMeter] = field(default_factory=dict)
    mismatches: list[str] = field(default_factory=list)

    def add(self, sample: Sample, found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
        """Compare the outputs of one sample; both sides have the same names."""
        for name, right in expected.items():
            apart = _form_apart(name, found[name], right)
            if apart:
                self.mismatches.append(f"{apart}, at {sample}")
                continue
            meter = self.meters.setdefault(name, OutputMeter(name, DTYPES[right.dtype.name], self.tolerance))
            meter.add(sample, found[name], right)

    @property
    def failures(self) -> tuple[int, int]:
        """The numbers of mismatches, and of elements out of tolerance."""
        return len(self.mismatches), sum(meter.out for meter in self.meters.values())

    @property
    def outputs(self) -> tuple[OutputProof, ...]:
        """The result for each output."""
        return tuple(meter.result() for meter in self.meters.values())


def _comparable_run(reference: NumericFunction, feeds: Mapping[str, Array], sample: Sample, who: str) -> Run:
    """Run the reference. Raises ``InputError`` if its outputs cannot be compared."""
    with errors_name_sizes(sample):
        run = _run(reference, feeds)
        _check_comparable(run.outputs, who)
    return run


def _check_tells(proof: Proof, who: str) -> None:
    """Raise ``InputError`` if the reference gave no numbers that another model would not give too."""
    if not proof.mismatches and not any(output.elements for output in proof.outputs):
        raise InputError(
            f"all outputs of {who} are empty: that would compare nothing",
            fix="give larger sizes of its inputs",
        )
    if proof.within and not any(output.tells or output.unproven for output in proof.outputs):
        raise InputError(
            f"all outputs of {who} are 0, NaN or infinite on all samples, which proves nothing",
            fix="give other inputs: another bound, range or --seed, or examples in Python",
        )


@contextmanager
def errors_name_sizes(sample: Sample) -> Iterator[None]:
    """Errors raised inside name the sizes of the sample."""
    try:
        yield
    except WnconvertError as error:
        if sample.sizes:
            error.where = f"{error.where}, at {sample}" if error.where else f"at {sample}"
        raise


def _run(function: NumericFunction, feeds: Mapping[str, Array]) -> Run:
    """Run a function on a copy of the inputs, because it may write to them."""
    own = {name: array.copy() for name, array in feeds.items()}
    start = time.perf_counter()
    outputs = function(own)
    seconds = time.perf_counter() - start
    return Run({name: np.asarray(array) for name, array in outputs.items()}, seconds)


def _check_comparable(outputs: Mapping[str, Array], who: str) -> None:
    if not outputs:
        raise InputError(
            f"{who} has no outputs: that would compare nothing",
            fix="give a module whose forward returns tensors",
        )
    for name, array in outputs.items():
        if array.dtype.name not in DTYPES:
            raise InputError(f"output {printable(name)} of {who} is of {array.dtype}, not of numbers")


def _check_steady(
    first: Mapping[str, Array], again: Mapping[str, Array], tolerance: Tolerance, who: str
) -> None:
    """Raise ``InputError`` if a second run of the reference gave other outputs.

    A hundredth of the tolerance is allowed, for kernels that add in another order each time.
    """
    fix = "remove noise, dropout and memory from forward, or make the noise (or its seed) an input"
    said = f"{who} is stochastic: run twice on the same input"
    if tuple(first) != tuple(again):
        raise InputError(
            f"{said}, it gives other outputs: {_names_apart(tuple(again), tuple(first))}", fix=fix
        )
    strict = Tolerance((tolerance.rtol or 0) / 100, (tolerance.atol or 0) / 100)
    for name, right in first.items():
        apart = _form_apart(name, again[name], right)
        if apart:
            raise InputError(f"{said}, {apart}", fix=fix)
        if same_bits(flat(again[name]), flat(right)):
            continue
        meter = OutputMeter(name, DTYPES[right.dtype.name], strict)
        meter.add(Sample(0, {}), again[name], right)
        result = meter.result()
        if not result.passed:
            far = "NaN once" if result.unmatched else f"up to {result.max_abs:.3g} apart"
            raise InputError(f"{said}, its output {printable(name)} is {far}", fix=fix)


def _names_apart(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """How the names of outputs differ, in words; empty if they agree."""
    if found == expected:
        return ""
    order = " in this order" if sorted(found) == sorted(expected) else ""
    found_names, names = (listed(map(printable, every)) for every in (found, expected))
    return f"outputs: {found_names or 'none'}; expected{order}: {names}"


def _form_apart(name: str, found: Array, expected: Array) -> str:
    """How shapes or dtypes differ, in words; empty if they agree."""
    name = printable(name)
    if found.shape != expected.shape:
        return f"output {name}: shape {_shape(found)}, expected {_shape(expected)}"
    if found.dtype != expected.dtype:
        return f"output {name}: dtype {found.dtype}, expected {expected.dtype}"
    return ""


def _shape(array: Array) -> str:
    return f"[{','.join(map(str, array.shape))}]"
