from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wnconvert.errors import ArgumentError, InputError, VerifyError
from wnconvert.numerics.distance import Tolerance
from wnconvert.tensors.blocks import Array
from wnconvert.verbs.models.proof.causes.steady import NumericFunction, steady_run
from wnconvert.verbs.models.proof.outputs import OutputProof
from wnconvert.verbs.models.proof.proof import Proof, prove
from wnconvert.verbs.models.proof.report import ExportReport, TimedStep
from wnconvert.verbs.models.proof.samples import arrays, samples_of
from wnconvert.verbs.models.proof.signatures import signature_of

DYNAMIC = signature_of(["x=float32[2,T]"], ["T=3..9"])
FIXED = signature_of(["x=float32[4]"])


def double(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": feeds["x"] * 2}


def gives(**outputs: Any) -> NumericFunction:
    """A function of no inputs, as it were."""
    return lambda feeds: {name: np.asarray(value) for name, value in outputs.items()}


def proven(
    reference: NumericFunction, candidate: NumericFunction, rtol: float = 1e-3, atol: float = 1e-5
) -> Proof:
    return prove(reference, candidate, DYNAMIC, samples=samples_of(DYNAMIC), rtol=rtol, atol=atol)


def told(reference: Any, candidate: Any, rtol: float = 1e-3, atol: float = 1e-5) -> OutputProof:
    """What is said of one output on one sample; beside another, for zeros alone prove nothing."""
    both = gives(y=reference, one=1.0), gives(y=candidate, one=1.0)
    return prove(*both, FIXED, samples=samples_of(FIXED, 1), rtol=rtol, atol=atol).outputs[0]


def test_equal_functions_are_proven() -> None:
    proof = proven(double, double)
    assert proof
    assert proof.outputs[0].identical
    assert proof.outputs[0].elements == 2 * sum(sample.sizes["T"] for sample in proof.samples)
    assert (proof.outputs[0].snr_db, proof.outputs[0].worst, proof.advice) == (None, None, "")


def test_small_noise_is_within_tolerance_and_told() -> None:
    proof = proven(double, lambda feeds: {"y": feeds["x"] * np.float32(2.0001)})
    output = proof.outputs[0]
    assert proof
    assert not output.identical
    assert output.max_rel == pytest.approx(5e-5, rel=1e-2)
    assert output.snr_db == pytest.approx(86, abs=1)
    assert output.worst is not None


def test_one_percent_off_is_found_with_its_place_and_sample() -> None:
    def spoiled(feeds: Mapping[str, Array]) -> dict[str, Array]:
        y = feeds["x"] * 2
        if y.shape[1] == 9:
            y[1, 4] *= np.float32(1.01)
        return {"y": y}

    proof = proven(double, spoiled)
    output = proof.outputs[0]
    assert not proof
    assert output.worst is not None
    assert (output.worst.index, dict(output.worst.sizes), output.worst.seed) == ((1, 4), {"T": 9}, 1)
    assert output.worst.candidate == pytest.approx(output.worst.reference * 1.01)
    assert (output.shape, output.out_of_tolerance) == ((2, 9), 1)
    assert "would have passed" in proof.advice


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_nan_and_infinities_are_equal_to_themselves_only(odd: float) -> None:
    same = told([1.0, odd], [1.0, odd])
    assert same.passed
    assert same.identical
    for a, b in (([1.0, odd], [1.0, 2.0]), ([1.0, 2.0], [1.0, odd])):
        output = told(a, b, atol=1e30)
        assert not output.passed
        assert (output.unmatched, output.needed_atol, output.needed_rtol) == (1, None, None)
        assert math.isnan(output.max_abs)
        assert output.snr_db is None
        assert output.worst is not None
        assert output.worst.index == (1,)
    assert not told([math.inf], [-math.inf]).passed


def test_no_tolerance_passes_nan() -> None:
    proof = prove(gives(y=[1.0]), gives(y=[math.nan]), FIXED, samples=samples_of(FIXED))
    assert proof.advice == "no tolerance would have passed"


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_integers_and_bools_must_be_equal(dtype: str) -> None:
    a, b = np.array([[1, 0]], dtype), np.array([[1, 1]], dtype)
    assert told(a, a).passed
    output = told(a, b, atol=10.0)
    assert (output.out_of_tolerance, output.max_abs, output.needed_atol) == (1, 1.0, None)
    assert output.worst is not None
    assert (output.worst.index, output.worst.candidate) == ((0, 1), 1.0)


def test_integers_that_float64_does_not_tell_apart_differ() -> None:
    output = told(np.array([0, 2**62]), np.array([0, 2**62 + 1]))
    assert not output.passed
    assert not output.identical
    assert output.worst is not None
    assert output.worst.index == (1,)


@pytest.mark.parametrize(
    "dtype", ["float16", "float64", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, "complex64"]
)
def test_every_kind_of_number_is_compared(dtype: Any) -> None:
    values = np.array([[1, 2], [4, 8]], np.float32).astype(dtype)
    spoiled = values.copy()
    spoiled[1, 0] = 5
    assert told(values, values).passed
    output = told(values, spoiled)
    assert (output.elements, output.out_of_tolerance, output.max_abs) == (4, 1, 1.0)
    assert output.worst is not None
    assert output.worst.index == (1, 0)


def test_an_imaginary_part_is_compared() -> None:
    assert not told(np.array([1 + 1j]), np.array([1 + 2j])).passed
    assert told(np.array([1 + 1j]), np.array([1 + 1j])).passed


def test_arrays_that_do_not_lie_end_to_end_are_compared() -> None:
    array = np.arange(12.0).reshape(3, 4)
    assert told(array.T, np.ascontiguousarray(array.T)).identical


def test_a_scalar_is_compared() -> None:
    output = told(1.0, 2.0)
    assert output.worst is not None
    assert (output.shape, output.worst.index) == ((), ())


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        (gives(y=[1.0]), "outputs: y; expected: y, z"),
        (gives(y=[1.0], w=[2.0]), "outputs: y, w; expected: y, z"),
        (gives(z=[2.0], y=[1.0]), "outputs: z, y; expected in this order: y, z"),
        (gives(), "outputs: none; expected: y, z"),
        (gives(y=[1.0], z=[2.0], w=[3.0]), "outputs: y, z, w; expected: y, z"),
    ],
)
def test_other_names_of_outputs_are_a_mismatch(candidate: NumericFunction, said: str) -> None:
    proof = proven(gives(y=[1.0], z=[2.0]), candidate)
    assert not proof
    assert proof.mismatches == (said,)
    assert proof.advice == "no tolerance would have passed"


def test_another_shape_is_a_mismatch_and_other_outputs_are_still_compared() -> None:
    def reference(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": feeds["x"], "z": feeds["x"]}

    proof = proven(reference, lambda feeds: {"y": feeds["x"][:, :3], "z": feeds["x"]})
    assert proof.mismatches[0] == "output y: shape [2,3], expected [2,9], at T = 9"
    assert [output.name for output in proof.outputs] == ["y", "z"]  # T = 3 is as it should be
    assert not proof


def test_another_dtype_is_a_mismatch_even_where_values_are_equal() -> None:
    proof = proven(gives(y=np.ones(1, np.float32)), gives(y=np.ones(1)))
    assert proof.mismatches[0] == "output y: dtype float64, expected float32, at T = 3"


def test_a_shape_that_broadcasts_is_a_mismatch() -> None:
    assert proven(gives(y=[[1.0]]), gives(y=[1.0])).mismatches


def test_a_candidate_that_fails_is_a_mismatch_on_its_sample() -> None:
    def fails(feeds: Mapping[str, Array]) -> dict[str, Array]:
        if feeds["x"].shape[1] == 9:
            raise VerifyError("the model fails in onnxruntime: Reshape")
        return double(feeds)

    proof = proven(double, fails)
    assert not proof
    assert proof.mismatches == ("at T = 9: the model fails in onnxruntime: Reshape",)


def test_a_reference_that_fails_says_at_which_sizes() -> None:
    def fails(_: Mapping[str, Array]) -> dict[str, Array]:
        raise InputError("kernel larger than input", where="module")

    with pytest.raises(InputError) as caught:
        proven(fails, double)
    assert caught.value.where == "module, at T = 3"


def noisy(scale: float) -> NumericFunction:
    stream = np.random.default_rng(0)
    return lambda feeds: {"y": feeds["x"] + np.float32(scale) * stream.standard_normal(feeds["x"].shape)}


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5])
def test_a_stochastic_reference_is_recognised(scale: float) -> None:
    with pytest.raises(InputError, match=r"the module is stochastic.*output y is up to .* apart") as caught:
        proven(noisy(scale), double)
    assert "remove noise, dropout and memory" in caught.value.fix


def test_noise_of_rounding_is_no_stochastic_reference() -> None:
    assert proven(noisy(1e-9), lambda feeds: {"y": feeds["x"].astype(np.float64)})


@pytest.mark.parametrize(
    "runs",
    [
        [{"y": [1.0]}, {"y": [1.0, 2.0]}],
        [{"y": [1.0]}, {"z": [1.0]}],
        [{"y": [1.0]}, {"y": [math.nan]}],
        [{"y": [1]}, {"y": [2]}],
    ],
)
def test_outputs_that_change_from_run_to_run_are_stochastic(runs: list[dict[str, Any]]) -> None:
    turns = cycle({name: np.asarray(value) for name, value in run.items()} for run in runs)
    with pytest.raises(InputError, match="stochastic"):
        proven(lambda feeds: next(turns), double)


def test_a_reference_that_gives_nan_each_time_is_not_stochastic() -> None:
    assert proven(gives(y=[math.nan, 1.0]), gives(y=[math.nan, 1.0]))


def test_a_function_that_writes_to_its_inputs_is_not_stochastic() -> None:
    def in_place(feeds: Mapping[str, Array]) -> dict[str, Array]:
        feeds["x"][:] *= 2
        return {"y": feeds["x"]}

    assert proven(in_place, double)


def test_comparing_nothing_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="compare nothing"):
        prove(double, double, DYNAMIC, samples=[])
    with pytest.raises(InputError, match="compare nothing"):
        proven(gives(), gives())
    with pytest.raises(InputError, match="compare nothing"):
        proven(gives(y=np.zeros((2, 0))), gives(y=np.zeros((2, 0))))


def test_one_empty_output_beside_others_is_compared_by_its_shape() -> None:
    assert proven(gives(y=np.zeros((2, 0)), z=[1.0]), gives(y=np.zeros((2, 0)), z=[1.0]))
    assert not proven(gives(y=np.zeros((2, 0)), z=[1.0]), gives(y=np.zeros((0, 2)), z=[1.0]))


def test_an_output_that_is_no_number_is_an_error() -> None:
    with pytest.raises(InputError, match="output y of the module"):
        proven(gives(y=["a"]), gives(y=["a"]))


@pytest.mark.parametrize("tolerance", [{"rtol": -1.0}, {"atol": math.nan}, {"atol": math.inf}])
def test_a_tolerance_that_is_none_is_refused(tolerance: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match="is not a tolerance"):
        proven(double, double, **tolerance)


FLOATS = hnp.arrays(np.float64, 6, elements=st.floats(-1e6, 1e6))


@given(FLOATS, FLOATS, st.floats(0, 1), st.floats(0, 1))
def test_the_tolerance_that_would_have_passed_is_the_least_that_does(
    a: Array, b: Array, rtol: float, atol: float
) -> None:
    output = told(b, a, rtol=rtol, atol=atol)
    expected = np.abs(a - b) > atol + rtol * np.abs(b)
    assert output.out_of_tolerance == expected.sum()
    if output.needed_atol is None:
        zeros = told(b, np.zeros(6), rtol=rtol, atol=1.1 * float(np.abs(a - b).max()))
        assert zeros.out_of_tolerance == 0, "where atol alone would do, zeros would do as well"
        return
    assert told(b, a, rtol=rtol, atol=output.needed_atol).passed
    if output.needed_atol > 1e-3:  # so that a millionth less is more than what rounding of the bound can hide
        assert not told(b, a, rtol=rtol, atol=output.needed_atol * (1 - 1e-6)).passed
    if output.needed_rtol is not None:
        assert told(b, a, rtol=output.needed_rtol, atol=atol).passed


@given(FLOATS, FLOATS)
def test_the_advice_passes(a: Array, b: Array) -> None:
    proof = prove(gives(y=b, one=1.0), gives(y=a, one=1.0), FIXED, samples=samples_of(FIXED, 1))
    if proof:
        assert proof.advice == ""
        return
    words = proof.advice.split()
    assert "--atol" in words or "--rtol" in words or proof.advice == "no tolerance would have passed"
    if "--atol" in words:
        assert told(b, a, atol=float(words[words.index("--atol") + 1])).passed
    if "--rtol" in words:
        assert told(b, a, rtol=float(words[words.index("--rtol") + 1])).passed


def test_numbers_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(1)
    b = rng.standard_normal((3, 70_000))
    a = b + 1e-4 * rng.standard_normal(b.shape)
    output = told(b, a)
    d = np.abs(a - b)
    assert output.max_abs == d.max()
    assert output.max_rel == (d / np.abs(b)).max()
    assert output.snr_db == pytest.approx(10 * np.log10((b**2).sum() / (d**2).sum()))
    assert output.worst is not None
    assert output.worst.index == np.unravel_index(d.argmax(), d.shape)
    assert output.out_of_tolerance == (d > 1e-5 + 1e-3 * np.abs(b)).sum()


def report_of(proof: Proof) -> ExportReport:
    return ExportReport(
        "model.onnx", 1000, "the module", proof, opset=20, steps=(TimedStep("build", "", 0.5),)
    )


def test_a_report_is_as_true_as_its_proof_and_plain_json() -> None:
    good = report_of(proven(double, double))
    bad = report_of(proven(gives(y=[0.0, 1.0]), gives(y=[1.0, math.nan])))
    assert good
    assert not bad
    for report in (good, bad):
        told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert told["schema"] == 1
        assert told["equal"] is bool(report)
        names = {field.name for field in dataclasses.fields(OutputProof)} - {"pair"}  # elements are not told
        assert names < told["outputs"][0].keys()
        assert told["samples"][1] == {"seed": 1, "sizes": {"T": 9}, "source": None}
    assert bad.to_dict()["outputs"][0]["max_rel"] is None
    assert bad.to_dict()["exporter"] is None


def test_noise_at_other_sizes_is_stochastic_where_it_makes_a_difference() -> None:
    stream = np.random.default_rng(0)

    def noisy_when_long(feeds: Mapping[str, Array]) -> dict[str, Array]:
        scale = 1.0 if feeds["x"].shape[1] > 4 else 0.0
        return {"y": feeds["x"] * 2 + np.float32(scale) * stream.random(feeds["x"].shape, np.float32)}

    with pytest.raises(InputError, match="stochastic") as caught:
        proven(noisy_when_long, double)
    assert caught.value.where.startswith("at T = ")


def test_a_reference_is_run_once_on_each_sample_but_twice_on_the_first() -> None:
    runs: list[int] = []

    def counted(feeds: Mapping[str, Array]) -> dict[str, Array]:
        runs.append(feeds["x"].size)
        return double(feeds)

    sizes = [sample.sizes["T"] for sample in samples_of(DYNAMIC)]
    per = arrays(DYNAMIC, samples_of(DYNAMIC)[0])["x"].size // sizes[0]
    assert proven(counted, double)
    assert runs == [per * size for size in (sizes[0], *sizes)]
    runs.clear()
    first = steady_run(counted, DYNAMIC, samples_of(DYNAMIC)[0], tolerance=Tolerance(1e-3, 1e-5))
    assert prove(counted, double, DYNAMIC, samples=samples_of(DYNAMIC), first=first)
    assert runs == [per * size for size in (sizes[0], *sizes)]


def test_a_reference_that_remembers_begins_anew_with_each_sample() -> None:
    seen: list[float] = []

    def remembers(feeds: Mapping[str, Array]) -> dict[str, Array]:
        seen.append(float(feeds["x"].flat[0]))
        return {"y": np.asarray(seen[:1])}

    def fresh(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": np.asarray([float(feeds["x"].flat[0])])}

    assert not proven(remembers, fresh)
    seen.clear()
    assert prove(remembers, fresh, DYNAMIC, samples=samples_of(DYNAMIC), forget=seen.clear)


def test_the_largest_of_the_reference_is_told() -> None:
    assert told([-3.0, 1.0, math.nan], [-3.0, 1.0, math.nan]).largest == 3
    assert told([math.inf, 0.0], [math.inf, 0.0]).largest == 0
    assert told([3 - 4j], [3 - 4j]).largest == 4
    assert told([7, -9], [7, -9]).largest == 9


def test_an_output_near_zero_is_not_proven_by_atol_alone() -> None:
    signature = signature_of(["x=float32[4]"])
    drawn = samples_of(signature)

    def scaled(factor: float) -> NumericFunction:
        return lambda feeds: {"y": feeds["x"] * np.float32(factor)}

    near = prove(scaled(1e-7), scaled(1.0001e-7), signature, samples=drawn)
    assert near
    far = prove(scaled(1e-7), scaled(1.1e-7), signature, samples=drawn)
    assert not far
    assert not far.outputs[0].out_of_tolerance
    assert far.needed is not None
    atol = far.needed.atol
    assert atol is not None
    assert atol < far.outputs[0].largest, "what would pass must be less than what zeros would pass"
    assert prove(scaled(1e-7), scaled(1.1e-7), signature, samples=drawn, atol=atol)
    assert far.needed.rtol == pytest.approx(0.1, rel=1e-3)
    assert prove(scaled(1e-7), scaled(1.1e-7), signature, samples=drawn, rtol=0.11)
    assert not prove(scaled(1e-7), scaled(0), signature, samples=drawn)
    with pytest.raises(InputError, match="which proves nothing"):
        prove(scaled(0), scaled(1e-7), signature, samples=drawn)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
def test_outputs_that_say_nothing_are_an_error_and_beside_others_they_are_told(value: float) -> None:
    nothing = np.full(3, value)
    with pytest.raises(InputError, match="all outputs of the module are 0, NaN or infinite"):
        prove(gives(y=nothing), gives(y=nothing), FIXED, samples=samples_of(FIXED))
    assert not prove(
        gives(y=nothing), gives(y=nothing + 1 if value == 0 else [0, 0, 0]), FIXED, samples=samples_of(FIXED)
    )
    proof = prove(
        gives(y=nothing, z=[1.0, 2.0]), gives(y=nothing, z=[1.0, 2.0]), FIXED, samples=samples_of(FIXED)
    )
    assert proof
    assert [output.alike for output in proof.outputs] == [True, False]


def test_an_output_that_is_one_number_on_all_samples_is_told() -> None:
    assert told([0.5, 0.5], [0.5, 0.5]).alike
    assert not told([0.5, 0.25], [0.5, 0.25]).alike
    assert not told([0.5], [0.5]).alike, "one element alone is no sign"
