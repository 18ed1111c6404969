"""Two ONNX models compared: by weights, by outputs, and by both where rounding is large."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.tool import run_here
from tests.verbs.export.pairs.graphs import (
    TCN,
    Change,
    changed,
    embedding,
    fixed,
    noise,
    renamed,
    two_layers,
    weight,
)
from wnconvert import ArgumentError, InputError, OnnxComparison, compare_files, compare_onnx, fold_file


@pytest.fixture
def folded(tmp_path: Path) -> Path:
    path = tmp_path / "folded.onnx"
    fold_file(TCN, path)
    return path


def test_a_model_and_its_fold_are_equal_weight_by_weight(folded: Path) -> None:
    found = compare_onnx(TCN, folded)
    weights = found.initializers.weights
    assert found
    assert (weights.compared, weights.identical, weights.layers) == (12, 12, 6)
    assert not found.initializers.renamed
    assert weights.only_in_a == weights.only_in_b == ()
    assert found.proof is not None
    assert len(found.proof.samples) == 4
    assert compare_onnx(folded, TCN)


def test_weights_of_other_names_are_only_renamed(tmp_path: Path, folded: Path) -> None:
    """Names that two models give to different weights too, as those that exporters number."""
    names = {
        "head.bias": "onnx::1",
        "tcn.0.conv.bias": "tcn.1.conv.bias",
        "tcn.1.conv.bias": "tcn.0.conv.bias",
    }
    other = changed(folded, tmp_path / "b.onnx", renamed(names))
    found = compare_onnx(TCN, other)
    assert found
    assert set(found.initializers.renamed) == set(names.items())
    assert not found.initializers.weights.differing
    assert found.initializers.weights.compared == 12


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (weight("tcn.1.conv.weight", lambda w: w * np.float32(1.01)), "tcn.1.conv.weight"),
        (weight("tcn.1.conv.bias", np.zeros_like), "tcn.1.conv.bias"),
        (weight("head.weight", lambda w: w[::-1]), "head.weight"),
    ],
)
def test_a_spoiled_weight_is_found_and_named(
    tmp_path: Path, folded: Path, change: Change, named: str
) -> None:
    found = compare_onnx(TCN, changed(folded, tmp_path / "b.onnx", change))
    assert not found
    assert [item.name for item in found.initializers.weights.differing] == [named]
    assert found.advice
    assert not compare_onnx(TCN, tmp_path / "b.onnx", samples=0)


# -- dtypes


def test_float16_is_equal_by_its_snr_and_by_nothing_less(tmp_path: Path) -> None:
    a, b = two_layers(tmp_path / "a.onnx"), two_layers(tmp_path / "b.onnx", "float16")
    for pair in ((a, b), (b, a), (b, b)):
        found = compare_onnx(*pair)
        assert found, pair
        assert found.proof is not None
        assert found.proof.leniency.min_snr == 45
    assert "input x is float32[?,16] in A and float16[?,16] in B" in compare_onnx(a, b).notes
    assert not compare_onnx(a, b, atol=1e-6, rtol=1e-6)
    assert compare_onnx(a, b, samples=0)


def test_a_weight_of_float16_that_is_off_by_a_percent_is_found(tmp_path: Path) -> None:
    a, b = two_layers(tmp_path / "a.onnx"), two_layers(tmp_path / "b.onnx", "float16", scale=1.01)
    found = compare_onnx(a, b)
    assert not found
    assert found.spoiled == ("w2",)
    assert not compare_onnx(a, b, min_snr=45, outliers=1.0)  # by outputs alone


def test_a_weight_that_hardly_shows_is_found_where_an_snr_is_all_that_is_asked(tmp_path: Path) -> None:
    """An output that is mostly a bias: 1 % of the weight is far below it."""
    loud = weight("b2", lambda b: b * 0 + np.asarray(60, b.dtype))
    a = changed(two_layers(tmp_path / "a0.onnx"), tmp_path / "a.onnx", loud)
    b = changed(two_layers(tmp_path / "b0.onnx", "float16", scale=1.01), tmp_path / "b.onnx", loud)
    found = compare_onnx(a, b)
    assert found.proof
    assert not found
    assert "differ by more than rounding" in found.advice


# -- inputs and outputs


def test_other_names_of_inputs_and_outputs_are_taken_in_their_order_and_told(tmp_path: Path) -> None:
    found = compare_onnx(TCN, changed(TCN, tmp_path / "b.onnx", renamed({"x": "mel", "y": "wave"})))
    assert found
    assert any("mel" in note for note in found.notes)
    assert "B has other names of outputs, taken in their order: y is wave" in found.notes


def test_a_size_that_b_has_fixed_makes_them_differ_unless_it_is_asked_for(tmp_path: Path) -> None:
    other = changed(TCN, tmp_path / "b.onnx", fixed(16))
    found = compare_onnx(TCN, other)
    assert not found
    assert "input x is float32[1,8,?] in A and float32[1,8,16] in B" in found.notes
    assert compare_onnx(TCN, other, inputs="x=float32[1,8,16]")


def test_models_that_share_nothing_differ_in_words(tmp_path: Path) -> None:
    done = run_here("compare", TCN, FIXTURES / "normed.onnx")
    assert done.returncode == 1
    assert "but the shape [1,8,16] is given" in done.stdout
    other = compare_onnx(two_layers(tmp_path / "a.onnx"), embedding(tmp_path / "b.onnx", 5))
    assert not other
    assert other.proof is not None
    assert other.proof.mismatches


def test_ids_are_drawn_below_the_rows_of_their_table(tmp_path: Path) -> None:
    path = embedding(tmp_path / "e.onnx", 50)
    found = compare_onnx(path, path)
    assert found
    assert not any("drawn from 0 to 1" in note for note in found.notes)
    last = changed(path, tmp_path / "b.onnx", weight("table", lambda t: np.r_[t[:-1], t[-1:] + 1]))
    assert not compare_onnx(path, last, samples=8)


def test_the_users_own_inputs_are_all_that_is_run_where_no_others_are_named(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(1, 8, 9)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", x=x)
    found = compare_onnx(TCN, TCN, data=[tmp_path / "mine.npz", {"x": x[..., :5]}])
    assert found.proof is not None
    assert [sample.source for sample in found.proof.samples] == [str(tmp_path / "mine.npz"), "data 2"]
    both = compare_onnx(TCN, TCN, inputs="x=float32[1,8,T]", ranges="T=5..9", data={"x": x})
    assert both.proof is not None
    assert len(both.proof.samples) == 5
    np.savez(tmp_path / "z.npz", z=x)
    with pytest.raises(InputError, match="no input is called z"):
        compare_onnx(TCN, TCN, data=tmp_path / "z.npz")


# -- what is refused


def test_a_reference_with_noise_is_refused(tmp_path: Path) -> None:
    path = noise(tmp_path / "n.onnx")
    with pytest.raises(InputError, match="is stochastic"):
        compare_onnx(path, path)


def test_a_checkpoint_is_no_onnx_model_and_options_of_the_other_are_refused(tmp_path: Path) -> None:
    gan = FIXTURES / "gan.pt"
    with pytest.raises(InputError, match="and no ONNX model"):
        compare_onnx(TCN, gan)
    with pytest.raises(InputError, match="an ONNX model cannot be compared"):
        compare_files(gan, TCN)
    for line, said in (
        (("compare", gan, gan, "--samples", "2"), "--samples is of ONNX models"),
        (("compare", TCN, TCN, "--only", "generator"), "--only is of checkpoints"),
        (("compare", TCN, tmp_path / "no.onnx"), "there is no such file"),
    ):
        done = run_here(*line)
        assert done.returncode == 2
        assert said in done.stderr
    with pytest.raises(ArgumentError, match="no input has the size Q"):
        compare_onnx(TCN, TCN, ranges="Q=1..2")


# -- the command


def test_the_command_prints_the_verdict_and_json_has_it_all(folded: Path) -> None:
    done = run_here("compare", TCN, folded, "--samples", "2")
    assert done.returncode == 0
    assert "12 weights in both, 6 layers computed: 12 the same to the bit" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("equal on 2 samples (T = 16, 128), within")
    data = json.loads(run_here("compare", TCN, folded, "--samples", "2", "--json").stdout)
    assert data["equal"] is True
    assert data["weights"]["identical"] == 12
    assert len(data["proof"]["samples"]) == 2
    nothing = json.loads(run_here("compare", TCN, folded, "--samples", "0", "--json").stdout)
    assert (nothing["equal"], nothing["proof"]) == (True, None)


def test_comparing_loads_no_torch() -> None:
    code = (
        "import sys; from wnconvert import compare_onnx; "
        f"assert compare_onnx({str(TCN)!r}, {str(TCN)!r}, samples=1); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_comparison_shows_itself_in_three_lines(folded: Path) -> None:
    found = compare_onnx(TCN, folded, samples=1)
    assert isinstance(found, OnnxComparison)
    lines = repr(found).splitlines()
    assert lines[0].startswith("OnnxComparison: ")
    assert len(lines) <= 3
    onnx.checker.check_model(str(folded))
