from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wnconvert.reports.text.exports import proof_text, step_text
from wnconvert.tensors.blocks import Array
from wnconvert.verbs.models.proof.causes.steady import NumericFunction
from wnconvert.verbs.models.proof.proof import prove
from wnconvert.verbs.models.proof.report import ExportReport, TimedStep
from wnconvert.verbs.models.proof.samples import samples_of
from wnconvert.verbs.models.proof.signatures import signature_of

SIGNATURE = signature_of(["x=float32[1,2,T]"], ["T=16..400"])
STEPS = (TimedStep("build", "make:net", 0.25), TimedStep("export", "opset 20", 13.5))


def times(factor: float, name: str = "wave") -> NumericFunction:
    return lambda feeds: {name: feeds["x"] * np.float32(factor)}


def report_of(
    candidate: NumericFunction, reference: NumericFunction | None = None, name: str = "wave"
) -> ExportReport:
    reference = reference or times(2, name)
    proof = prove(reference, candidate, SIGNATURE, samples=samples_of(SIGNATURE))
    return ExportReport(
        "model.onnx",
        2_500_000,
        "make:net",
        proof,
        opset=20,
        residual_weight_norm=0,
        nodes_exported=31,
        nodes=17,
        steps=STEPS,
    )


def test_an_equal_model_is_told_with_steps_outputs_and_samples() -> None:
    report = report_of(times(2))
    lines = [*map(step_text, report.steps), *proof_text(report).splitlines()]
    assert lines[:2] == ["build      0.2 s  make:net", "export    13.5 s  opset 20"]
    assert lines[2].split("  ")[0] == "output"
    assert lines[4].split() == ["wave", "1×2×16", "0", "0", "identical", "0", "0"]
    within = "within 1e-05 + 0.001·|reference|: the same to the bit"
    assert lines[5:] == [
        "model.onnx: 2.5 MB, opset 20, 17 nodes (31 as exported), no weight norm left",
        f"equal to make:net on 4 samples (T = 16, 400, 253, 107), {within}",
    ]


def test_a_different_model_is_told_with_the_tolerance_that_would_have_passed() -> None:
    report = report_of(times(2.02))
    text = proof_text(report)
    assert "different from make:net on samples of T = 16, 400, 253, 107:" in text
    assert f"output wave: {report.outputs[0].out_of_tolerance} of 1552 elements further off than" in text
    assert text.splitlines()[-1] == report.proof.advice
    assert "--rtol 0.01" in report.proof.advice
    assert "equal to" not in text


def test_mismatches_are_told_and_end_where_there_are_many() -> None:
    def narrow(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {f"y{at}": feeds["x"][:, :1] for at in range(6)}

    def wide(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {f"y{at}": feeds["x"] for at in range(6)}

    lines = proof_text(report_of(narrow, wide)).splitlines()
    assert "output y0: shape [1,1,16], expected [1,2,16], at T = 16" in lines
    assert lines[-2:] == ["and 14 more", "no tolerance would have passed"]


def test_nan_on_one_side_is_said() -> None:
    def spoiled(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"wave": np.where(np.arange(feeds["x"].shape[-1]) == 3, np.float32(np.nan), feeds["x"] * 2)}

    text = proof_text(report_of(spoiled))
    assert "8 of 1552 elements further off" in text
    assert "(8 NaN or infinite on one side only): nan for" in text
    assert "at [0, 0, 3], T = 16" in text


def test_weight_norm_that_is_left_is_said() -> None:
    report = report_of(times(2))
    left = ExportReport("a.onnx", 10, "the module", report.proof, residual_weight_norm=3)
    assert "a.onnx: 10 B, 3 layers of weight norm left" in proof_text(left)


def test_fixed_shapes_are_told_by_seeds() -> None:
    signature = signature_of(["x=float32[2]"])
    proof = prove(times(2), times(2), signature, samples=samples_of(signature, 2, 7))
    assert "on 2 samples (seeds 7, 8)" in proof_text(ExportReport("a.onnx", 10, "the module", proof))


def test_each_letter_has_its_sizes() -> None:
    signature = signature_of(["x=float32[S,T]"], ["T=3..9", "S=1..4"])
    proof = prove(times(2), times(2), signature, samples=samples_of(signature, 2))
    assert "(S = 1, 4; T = 3, 9)" in proof_text(ExportReport("a.onnx", 10, "the module", proof))


def test_names_do_not_move_a_terminals_cursor() -> None:
    for factor in (2, 3):
        report = report_of(times(factor, "a\x1b[2J"), name="a\x1b[2J")
        assert "\x1b" not in "".join([*map(step_text, report.steps), proof_text(report)])


def test_a_table_gives_way_to_the_width() -> None:
    report = report_of(times(2.0001))
    assert max(map(len, proof_text(report, 70).splitlines()[:3])) <= 70
    assert max(map(len, proof_text(report).splitlines()[:3])) > 70


def test_a_step_that_begins_has_dots_in_the_place_of_its_seconds() -> None:
    begun, done = step_text(TimedStep("run", "4 samples")), step_text(TimedStep("run", "4 samples", 120.25))
    assert begun == "run          ...  4 samples"
    assert done == "run      120.2 s  4 samples"
