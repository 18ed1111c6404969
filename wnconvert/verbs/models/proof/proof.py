"""Runs two functions on the same samples, and compares names, shapes, dtypes and values of outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import field
from functools import partial

from wnconvert.errors import ArgumentError, InputError, VerifyError
from wnconvert.frozen import dataclass
from wnconvert.messages import option, printable
from wnconvert.numerics.distance import Needed, Tolerance, rounded_up
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.verbs.models.proof.causes.fixed import fixed_sizes
from wnconvert.verbs.models.proof.causes.steady import (
    NumericFunction,
    Run,
    check_comparable,
    errors_name_sizes,
    form_apart,
    names_apart,
    run,
    settled,
    steady_run,
)
from wnconvert.verbs.models.proof.outputs import STRICT, Leniency, OutputMeter, OutputProof
from wnconvert.verbs.models.proof.samples import Sample, arrays
from wnconvert.verbs.models.proof.signatures import Signature

__all__ = ["ATOL", "RTOL", "Proof", "prove"]


ATOL = 1e-5
RTOL = 1e-3
#: Outliers are advised up to this share only, and with this SNR: a weight that is off is heard below it.
MOST_OUTLIERS, LEAST_SNR = 1e-4, 100.0


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of a comparison of two functions; true if all outputs are equal within the tolerance.

    At least one output must prove something: a value near zero is within an absolute tolerance anyhow.
    ``mismatches`` describe names, shapes and dtypes that differ, and samples that the candidate cannot run;
    if it can run none of them, ``fixed`` are the only sizes that it takes. The seconds are those of one run
    of all samples. ``wobble`` is how far runs of the reference on the same inputs were apart.
    """

    outputs: tuple[OutputProof, ...]
    mismatches: tuple[str, ...]
    samples: tuple[Sample, ...]
    rtol: float
    atol: float
    reference_seconds: float = 0.0
    candidate_seconds: float = 0.0
    fixed: Mapping[str, int] = field(default_factory=dict)
    leniency: Leniency = STRICT
    wobble: float = 0.0

    def __bool__(self) -> bool:
        return self.within and any(output.tells for output in self.outputs)

    @property
    def within(self) -> bool:
        """Whether all outputs are within the tolerance, even if that proves nothing."""
        return bool(self.outputs) and not self.mismatches and all(output.passed for output in self.outputs)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on outputs that prove little about the weights, and on a reference that wobbles."""
        found = []
        if self.wobble:
            found.append(
                f"the reference itself wobbles: runs on one input were up to {self.wobble:.3g} apart"
            )
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
        return f"{self.atol:g} + {self.rtol:g}·|reference|{self.leniency}"

    @property
    def measured(self) -> str:
        """How far the outputs were apart, in words: the least SNR of a sample, and the elements outside."""
        if not self.outputs:
            return ""
        if all(output.identical for output in self.outputs):
            return "the same to the bit"
        snr = min((each.least_snr_db for each in self.outputs if each.least_snr_db is not None), default=None)
        out = sum(each.out_of_tolerance for each in self.outputs)
        every = sum(each.elements for each in self.outputs)
        ratio = "" if snr is None else f"SNR {snr:.1f} dB, "
        return f"{ratio}{out:,} of {every:,} elements outside"

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
        ways = [option("atol", rounded_up(need.atol))] if need.atol is not None else []
        ways += [option("rtol", rounded_up(need.rtol))] if need.rtol is not None else []
        if any(output.noisy for output in self.outputs):
            least = math.floor(min(o.least_snr_db for o in self.outputs if o.least_snr_db is not None))
            noisy = [option("min_snr", least)] if least > 0 else []
            ways = [f"{way} with {noisy[0]}" for way in ways if noisy] if self._is_out else noisy
        elif lenient := self._lenient:
            ways.append(lenient)
        return f"{' or '.join(ways)} would have passed" if ways else "no tolerance would have passed"

    @property
    def _is_out(self) -> bool:
        """Whether more elements are out of tolerance than may be."""
        return any(output.out_of_tolerance and not output.few for output in self.outputs)

    @property
    def _lenient(self) -> str:
        """The share of outliers that would have passed, beside an SNR; empty if they are many, or far off."""
        out = [each for each in self.outputs if each.out_of_tolerance]
        ratios = [each.least_snr_db for each in self.outputs if each.least_snr_db is not None]
        share = max((each.out_of_tolerance / each.elements for each in out), default=1.0)
        if (
            share > MOST_OUTLIERS
            or min(ratios, default=0.0) < LEAST_SNR
            or any(each.unproven for each in out)
        ):
            return ""
        return f"{option('outliers', rounded_up(share))} {option('min_snr', f'{LEAST_SNR:g}')}"


def prove(
    reference: NumericFunction,
    candidate: NumericFunction,
    signature: Signature,
    *,
    samples: Sequence[Sample],
    rtol: float = RTOL,
    atol: float = ATOL,
    leniency: Leniency = STRICT,
    who: str = "the module",
    first: Run | None = None,
    forget: Callable[[], None] = lambda: None,
) -> Proof:
    """Run both functions on samples and compare: |candidate-reference| <= atol + rtol·|reference|.

    NaN is equal to NaN, and an infinity to itself. A ``VerifyError`` of the candidate is a mismatch.
    ``who`` names the reference in messages. ``first`` is the result of ``steady_run`` for the first sample,
    if it is known. ``forget`` is called before each sample, to reset a reference that keeps state.

    ``leniency`` lets some elements be further off, and asks for an SNR. The reference is run until two runs
    agree on the first sample, and on each sample that differs. Raises ``InputError`` if they never do, or if
    there is nothing to compare; ``ArgumentError`` for a tolerance that is not valid.

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
    comparison = _Comparison(Tolerance(rtol, atol), leniency)
    reference_seconds = candidate_seconds = wobble = 0.0
    refused: list[Sample] = []
    for at, sample in enumerate(samples):
        forget()
        feeds = arrays(signature, sample)
        if at:
            expected = _comparable_run(reference, feeds, sample, who)
        else:
            expected = first or steady_run(
                reference, signature, sample, tolerance=comparison.tolerance, who=who
            )
        reference_seconds += expected.seconds
        try:
            found = run(candidate, feeds)
        except VerifyError as error:
            comparison.mismatches.append(f"at {sample}: {error}")
            refused.append(sample)
            continue
        candidate_seconds += found.seconds
        names = names_apart(tuple(found.outputs), tuple(expected.outputs))
        if names:
            comparison.mismatches.append(names)
            break
        settle = partial(settled, reference, feeds, expected, comparison.tolerance, who) if at else None
        comparison, expected = _further(comparison, sample, found, expected, settle)
        wobble = max(wobble, expected.wobble)
    proof = Proof(
        comparison.outputs,
        tuple(comparison.mismatches),
        tuple(samples),
        rtol,
        atol,
        reference_seconds,
        candidate_seconds,
        _fixed(candidate, signature, samples, refused),
        leniency,
        wobble,
    )
    _check_tells(proof, who)
    return proof


@dataclass(slots=True)
class _Comparison:
    """Outputs of two functions, compared sample by sample; ``mismatches`` are in words."""

    tolerance: Tolerance
    leniency: Leniency
    meters: dict[str, OutputMeter] = field(default_factory=dict)
    mismatches: list[str] = field(default_factory=list)

    def add(self, sample: Sample, found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
        """Compare the outputs of one sample; both sides have the same names."""
        for name, right in expected.items():
            apart = form_apart(name, found[name], right)
            if apart:
                self.mismatches.append(f"{apart}, at {sample}")
                continue
            fresh = OutputMeter(name, DTYPES[right.dtype.name], self.tolerance, self.leniency)
            meter = self.meters.setdefault(name, fresh)
            meter.add(sample, found[name], right)

    @property
    def failures(self) -> tuple[int, int]:
        """The numbers of mismatches, and of elements out of tolerance."""
        return len(self.mismatches), sum(meter.out for meter in self.meters.values())

    @property
    def outputs(self) -> tuple[OutputProof, ...]:
        """The result for each output."""
        return tuple(meter.result() for meter in self.meters.values())


def _further(
    comparison: _Comparison, sample: Sample, found: Run, expected: Run, settle: Callable[[], Run] | None
) -> tuple[_Comparison, Run]:
    """The comparison with one sample more, and the run of the reference that it was held against.

    Where they differ, ``settle`` runs the reference again, to see whether it varies itself.
    """
    after = deepcopy(comparison)
    after.add(sample, found.outputs, expected.outputs)
    if settle is None or after.failures == comparison.failures:
        return after, expected
    with errors_name_sizes(sample):
        expected = settle()
    if expected.wobble:
        after = deepcopy(comparison)
        after.add(sample, found.outputs, expected.outputs)
    return after, expected


def _fixed(
    candidate: NumericFunction, signature: Signature, samples: Sequence[Sample], refused: Sequence[Sample]
) -> dict[str, int]:
    """The sizes that the candidate has fixed, where it refuses every sample.

    The example and the user's data do not count: they may have these sizes.
    """
    is_refused = refused and all(sample in refused for sample in samples if not sample.source)
    return fixed_sizes(candidate, signature, refused) if is_refused else {}


def _comparable_run(reference: NumericFunction, feeds: Mapping[str, Array], sample: Sample, who: str) -> Run:
    """Run the reference. Raises ``InputError`` if its outputs cannot be compared."""
    with errors_name_sizes(sample):
        found = run(reference, feeds)
        check_comparable(found.outputs, who)
    return found


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
