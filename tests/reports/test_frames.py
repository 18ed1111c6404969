from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.golden import FIXTURES
from tests.helpers.pages import DOCS, table_rows
from tests.helpers.reports import comparison, export_report
from wnconvert import ArgumentError, fold_file, inspect_file, inspect_state_dict
from wnconvert.reports.frames import columns_of
from wnconvert.shown import Shown

pytest.importorskip("pandas")


def frame(result: Shown) -> Any:
    return result.to_pandas()


def test_a_plan_and_its_result_are_a_row_for_each_layer(tmp_path: Path) -> None:
    planned = frame(fold_file(FIXTURES / "g_02500000", dry_run=True))
    done = frame(fold_file(FIXTURES / "g_02500000", tmp_path / "out.pt"))
    assert planned.equals(done)
    assert len(planned) == 78
    first = planned.iloc[0]
    assert (first["state_dict"], first["name"], first["form"], first["to"]) == (
        "generator",
        "conv_pre.weight",
        "legacy",
        "plain",
    )
    assert (first["dim"], first["shape"], first["rows"], first["elements"]) == (0, "32×80×7", 32, 32 * 80 * 7)
    assert not planned["unproven"].any()


def test_the_magnitudes_of_a_frame_are_those_of_the_inspection_unrounded() -> None:
    found = inspect_file(FIXTURES / "g_02500000", full=True)
    table = frame(found)
    for at, layer in enumerate(found.layers):
        assert layer.g is not None
        assert layer.ratio is not None
        row = table.iloc[at]
        assert (row["g_min"], row["g_q1"], row["g_mean"]) == (layer.g.min, layer.g.q1, layer.g.mean)
        assert (row["ratio_max"], row["zero_rows"]) == (layer.ratio.max, 0)
    assert table["g_mean"].dtype == np.float64


def test_what_was_not_read_is_missing_and_a_refused_layer_has_no_sizes() -> None:
    table = frame(inspect_file(FIXTURES / "g_02500000"))
    assert table["norm_min"].isna().all()
    assert table["zero_rows"].isna().all()
    refused = frame(inspect_file(FIXTURES / "misfit.safetensors"))
    row = refused[refused["form"] == "refused"].iloc[0]
    assert row[["dim", "shape", "rows", "elements"]].isna().all()
    assert row["flags"] == "refused"


def test_tensors_that_were_asked_for_are_the_rows() -> None:
    found = inspect_file(FIXTURES / "step_1000.safetensors", tensors=True)
    assert found.tensors is not None
    table = frame(found)
    assert list(table["name"]) == [tensor.name for tensor in found.tensors]
    assert table["bytes"].sum() == sum(tensor.bytes for tensor in found.tensors)
    assert (table["elements"] * 4 == table["bytes"]).all()


def test_a_comparison_is_a_row_for_each_difference_and_for_each_name_on_one_side(tmp_path: Path) -> None:
    table = frame(comparison(tmp_path))
    assert list(table["why"]) == ["shape", "values", "only in A", "only in B"]
    shape, values, only_a, only_b = (table.iloc[at] for at in range(4))
    assert (shape["a_shape"], shape["b_shape"]) == ("2", "3")
    assert shape[["different", "max_abs", "worst"]].isna().all()
    assert (values["different"], values["max_abs"], values["worst"]) == (1, 0.5, "[1]")
    assert (only_a["name"], only_b["name"]) == ("here", "there")


def test_a_report_is_a_row_for_each_output() -> None:
    report = export_report()
    row = frame(report).iloc[0]
    (output,) = report.outputs
    assert output.worst is not None
    assert (row["name"], row["max_abs"], row["passed"]) == (output.name, output.max_abs, True)
    assert row["worst_reference"] == output.worst.reference
    assert row["worst_sample"] == f"B = {output.worst.sizes['B']}"


def test_a_frame_without_rows_has_its_columns_and_their_dtypes() -> None:
    found = inspect_state_dict({"bias": np.ones(2, np.float32)})
    table = frame(found)
    assert len(table) == 0
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == {
        name: dtype.partition("[")[0] for name, dtype in columns_of(found).items()
    }


def test_infinities_stay_and_names_stay_as_they_are(tmp_path: Path) -> None:
    name = "a\ud800<b>\n"
    found = inspect_state_dict({f"{name}.weight_g": np.ones((2, 1)), f"{name}.weight_v": np.ones((2, 3))})
    assert frame(found)["name"][0] == f"{name}.weight"
    for side, value in (("a", 1.0), ("b", 0.0)):
        save_file({"w": np.array([value, 1], np.float32)}, tmp_path / side)
    table = frame(comparison(tmp_path, tmp_path / "a", tmp_path / "b"))
    assert table["max_rel"][0] == math.inf


@pytest.mark.parametrize(
    ("heading", "results"),
    [
        ("Of a Plan and a Result", ["plan"]),
        ("Of an Inspection", ["inspection", "tensors"]),
        ("Of a Comparison", ["comparison"]),
        ("Of an ExportReport", ["report"]),
    ],
)
def test_the_page_of_python_has_every_column_with_its_meaning(
    tmp_path: Path, heading: str, results: list[str]
) -> None:
    made: dict[str, Any] = {
        "plan": lambda: fold_file(FIXTURES / "gan.pt", dry_run=True),
        "inspection": lambda: inspect_file(FIXTURES / "gan.pt"),
        "tensors": lambda: inspect_file(FIXTURES / "gan.pt", tensors=True),
        "comparison": lambda: comparison(tmp_path),
        "report": export_report,
    }
    rows = table_rows((DOCS / "python.md").read_text(), heading)
    told = [name.strip("`") for row in rows for name in row[0].split(", ")]
    assert sorted(set(told)) == sorted({name for result in results for name in columns_of(made[result]())})
    assert all(row[1] for row in rows)


def test_without_pandas_the_error_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wnconvert.reports.frames.find_spec", lambda _: None)
    with pytest.raises(ArgumentError, match="frames need pandas") as caught:
        inspect_file(FIXTURES / "gan.pt").to_pandas()
    assert caught.value.fix == "pip install pandas"
