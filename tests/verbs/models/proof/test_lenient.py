"""Few elements that may be further off, an SNR that is asked for, and a reference that wobbles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from wnconvert.errors import ArgumentError, InputError
from wnconvert.tensors.blocks import Array
from wnconvert.verbs.models.proof.causes.steady import NumericFunction
from wnconvert.verbs.models.proof.outputs import Leniency
from wnconvert.verbs.models.proof.proof import Proof, prove
from wnconvert.verbs.models.proof.samples import samples_of
from wnconvert.verbs.models.proof.signatures import signature_of

LONG = signature_of(["x=float32[1,T]"], ["T=50000..60000"])
FEW = Leniency(min_snr=100, outliers=1e-5)


def same(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": feeds["x"]}


def off(count: int, by: float) -> NumericFunction:
    """The first elements are off by a number."""

    def function(feeds: Mapping[str, Array]) -> dict[str, Array]:
        y = feeds["x"].copy()
        y[0, :count] += np.float32(by)
        return {"y": y}

    return function


def proven(candidate: NumericFunction, leniency: Leniency, reference: NumericFunction = same) -> Proof:
    return prove(reference, candidate, LONG, samples=samples_of(LONG, 2), leniency=leniency)


def test_one_outlier_of_many_passes_where_it_may_and_the_snr_is_told() -> None:
    one = off(1, 2e-3)
    assert not proven(one, Leniency())
    proof = proven(one, Leniency(min_snr=90, outliers=2e-5))
    assert proof
    assert proof.outputs[0].few
    assert "SNR 101" in proof.measured
    assert "2 of 110,000 elements outside" in proof.measured


def test_a_strict_proof_that_few_outliers_fail_is_told_which_leniency_passes() -> None:
    proof = proven(off(1, 2e-3), Leniency())
    assert "--outliers 1.82e-05 --min-snr 100" in proof.advice
    assert proven(off(1, 2e-3), Leniency(100, 1.82e-5))


@pytest.mark.parametrize(
    ("count", "by"),
    [(9, 2e-3), (1, 0.5), (1, float("nan")), (1, float("inf"))],
    ids=["too many", "too far", "NaN", "infinite"],
)
def test_outliers_that_are_many_or_far_off_are_found(count: int, by: float) -> None:
    proof = proven(off(count, by), FEW)
    assert not proof
    assert "--outliers" not in proof.advice


def test_an_snr_is_asked_of_each_sample_and_not_of_all_together() -> None:
    def loud(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": feeds["x"] * (1000 if feeds["x"].shape[1] == 60000 else 1)}

    def noisy(feeds: Mapping[str, Array]) -> dict[str, Array]:
        y = loud(feeds)["y"]
        return {"y": y + np.float32(5e-5) * (feeds["x"].shape[1] == 50000)}

    lenient = Leniency(min_snr=100, outliers=1)
    proof = proven(noisy, lenient, loud)
    assert not proof
    (output,) = proof.outputs
    assert output.snr_db is not None
    assert output.least_snr_db is not None
    assert output.snr_db > 140  # of both together
    assert output.least_snr_db == pytest.approx(86, abs=1)
    assert proof.advice == "--min-snr 86 would have passed"
    assert proven(noisy, Leniency(min_snr=86, outliers=1), loud)


def test_an_snr_alone_makes_a_proof_stricter() -> None:
    def near(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": feeds["x"] * np.float32(1.0002)}

    assert proven(near, Leniency())
    proof = proven(near, Leniency(min_snr=100))
    assert not proof
    assert proof.outputs[0].noisy
    assert proof.outputs[0].out_of_tolerance == 0


def test_integers_have_no_outliers() -> None:
    whole = signature_of(["x=int64[1,50000]<100"])

    def one_off(feeds: Mapping[str, Array]) -> dict[str, Array]:
        y = feeds["x"].copy()
        y[0, 0] += 1
        return {"y": y}

    assert not prove(same, one_off, whole, samples=samples_of(whole, 1), leniency=Leniency(1, 1.0))


@pytest.mark.parametrize(("min_snr", "outliers"), [(None, 1e-5), (0, 0), (-3, 0), (100, 2), (100, -1)])
def test_a_leniency_that_bounds_nothing_is_refused(min_snr: float | None, outliers: float) -> None:
    with pytest.raises(ArgumentError) as caught:
        Leniency(min_snr, outliers)
    assert caught.value.fix


# -- a reference that wobbles

SHORT = signature_of(["x=float32[2,T]"], ["T=3..9"])


def wobbling(*by: float) -> NumericFunction:
    """A reference whose runs at one size are off by these numbers in turn, and then by the last of them."""
    seen: dict[int, int] = {}

    def function(feeds: Mapping[str, Array]) -> dict[str, Array]:
        size = feeds["x"].size
        turn = seen[size] = seen.get(size, -1) + 1
        return {"y": feeds["x"] + np.float32(by[min(turn, len(by) - 1)])}

    return function


def test_a_first_run_that_is_a_little_off_is_no_stochastic_reference_and_is_told() -> None:
    proof = prove(wobbling(2.4e-5, 0), same, SHORT, samples=samples_of(SHORT))
    assert proof
    assert 0 < proof.wobble < 3e-5
    assert any("the reference itself wobbles" in note for note in proof.notes)
    steady = prove(same, same, SHORT, samples=samples_of(SHORT))
    assert steady.wobble == 0
    assert not steady.notes


@pytest.mark.parametrize(
    "by",
    [(0.1, 0), (2.4e-5, 0, 2.4e-5, 0, 2.4e-5, 0, 2.4e-5, 0)],
    ids=["a first run far off", "in every run"],
)
def test_what_is_far_off_once_or_off_in_every_run_is_stochastic(by: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="stochastic"):
        prove(wobbling(*by), same, SHORT, samples=samples_of(SHORT))


def test_a_candidate_that_is_off_is_different_and_no_fault_of_the_reference() -> None:
    assert not prove(
        wobbling(2.4e-5, 0), lambda feeds: {"y": feeds["x"] * 2}, SHORT, samples=samples_of(SHORT)
    )
