"""The numbers of a result on axes of matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.reports import comparison, export_report
from wnconvert import ArgumentError, compare_files, inspect_file, inspect_state_dict
from wnconvert.reports.plots import plot_magnitudes
from wnconvert.shown import Drawn

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def plt() -> Iterator[Any]:
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    yield plt
    plt.close("all")


def test_an_inspection_is_drawn_as_the_picture_of_the_command(plt: Any, tmp_path: Path) -> None:
    found = inspect_file(FIXTURES / "gan.pt")
    axes = found.plot()
    named = [f"{layer.state_dict}: {layer.name}" for layer in found.layers]
    assert [label.get_text() for label in axes.get_yticklabels()] == named
    plot_magnitudes([found], tmp_path / "picture.svg")
    plt.savefig(tmp_path / "cell.svg")
    picture, cell = ((tmp_path / name).read_text().count("<path") for name in ("picture.svg", "cell.svg"))
    assert picture == cell


def test_axes_that_are_given_are_drawn_on_and_returned(plt: Any) -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert inspect_file(FIXTURES / "gan.pt").plot(ax=left) is left
    assert left.get_title() == "gan.pt"
    assert not right.has_data()
    assert len(plt.get_fignums()) == 1


def test_a_comparison_is_drawn_with_a_point_for_each_difference() -> None:
    found = compare_files(FIXTURES / "step_1000.safetensors", FIXTURES / "step_2000.safetensors")
    axes = found.plot()
    (points,) = axes.collections
    assert np.asarray(points.get_offsets())[:, 0].tolist() == [item.max_abs for item in found.differing]
    assert [label.get_text() for label in axes.get_yticklabels()] == [item.name for item in found.differing]


def test_what_differs_in_shape_alone_has_no_point(tmp_path: Path) -> None:
    (points,) = comparison(tmp_path).plot().collections
    assert np.asarray(points.get_offsets()).tolist() == [[0.5, 0]]


@pytest.mark.parametrize(("off", "word"), [(1e-6, "within"), (1.0, "not within")])
def test_a_report_is_drawn_beside_what_was_allowed_at_the_worst_element(off: float, word: str) -> None:
    report = export_report(off)
    (output,) = report.outputs
    assert output.worst is not None
    axes = report.plot()
    _, allowed, found = axes.collections
    assert np.asarray(allowed.get_offsets())[0, 0] == pytest.approx(1e-5 + 1e-3 * abs(output.worst.reference))
    assert np.asarray(found.get_offsets())[0, 0] == output.max_abs
    legend = axes.get_legend()
    assert legend is not None
    assert f"max |onnx−torch|, {word} the tolerance" in {text.get_text() for text in legend.get_texts()}


@pytest.mark.parametrize(
    ("result", "what"),
    [
        (inspect_state_dict({"bias": np.ones(2)}), "no magnitudes"),
        (compare_files(FIXTURES / "g_02500000", FIXTURES / "hifigan.safetensors"), "no values differ"),
        (export_report(0), "no output differs"),
    ],
    ids=["inspection", "comparison", "report"],
)
def test_a_picture_of_nothing_is_an_error_and_leaves_no_figure(plt: Any, result: Drawn, what: str) -> None:
    with pytest.raises(ArgumentError, match=what) as caught:
        result.plot()
    assert caught.value.fix
    assert plt.get_fignums() == []


def test_names_with_dollar_signs_are_no_formulas(plt: Any, tmp_path: Path) -> None:
    name = "$\\frac{1}$"
    pair = {f"{name}.weight_g": np.ones((2, 1)), f"{name}.weight_v": np.ones((2, 3))}
    inspect_state_dict(pair).plot()
    plt.savefig(tmp_path / "x.png")


def test_without_matplotlib_the_error_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wnconvert.reports.plots.find_spec", lambda _: None)
    with pytest.raises(ArgumentError, match="pictures need matplotlib") as caught:
        inspect_file(FIXTURES / "gan.pt").plot()
    assert caught.value.fix == "pip install matplotlib"
