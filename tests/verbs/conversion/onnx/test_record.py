"""The record in a folded or exported model: what it says, and what becomes of one that is there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

from tests.helpers.golden import FIXTURES
from tests.helpers.tool import run_here
from tests.verbs.conversion.onnx.test_constants import product, sine, write
from wnconvert import (
    ArgumentError,
    compare_onnx,
    export_onnx,
    fold_file,
    inspect_file,
    split_file,
)

TCN = FIXTURES / "tcn.onnx"


def record(path: Path) -> dict[str, Any] | None:
    """The record of a model, as onnx reads it."""
    found = {each.key: each.value for each in onnx.load(str(path)).metadata_props}
    return json.loads(found["wnconvert"]) if "wnconvert" in found else None


def with_metadata(path: Path, target: Path, *texts: str) -> Path:
    """A copy of a model with records of ours, one or more."""
    model = onnx.load(str(path))
    for text in texts:
        model.metadata_props.add(key="wnconvert", value=text)
    model.metadata_props.add(key="author", value="somebody")
    onnx.save(model, str(target))
    return target


def test_weights_that_were_evaluated_stand_in_the_record(tmp_path: Path) -> None:
    fold_file(write(tmp_path / "in.onnx", product(sine)), out := tmp_path / "out.onnx", constants=True)
    found = record(out)
    assert found is not None
    (step,) = found["history"]
    assert (step["layers"], step["folded"]) == (0, {})
    assert len(step["constants"]) == 1
    assert any("fold of 0 layers, 1 weight evaluated" in note for note in inspect_file(out).notes)


def test_a_folded_model_says_of_what_it_was_made_and_what_was_proven(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = fold_file(TCN, out)
    found = record(out)
    assert found is not None
    (step,) = found["history"]
    assert step["verb"] == "fold"
    assert step["sha256"] == [hashlib.sha256(TCN.read_bytes()).hexdigest()]
    assert step["layers"] == len(step["folded"]) == 6
    assert set(step["folded"].values()) == {"weight"}
    assert step["proof"] == done.verified
    assert step["tolerance"] == {"layers_rtol": 1e-4, "outputs_of_largest": 2e-3}
    assert done.bytes_out == out.stat().st_size


def test_readers_accept_the_record_and_compute_the_same(tmp_path: Path) -> None:
    kept, bare = tmp_path / "kept.onnx", tmp_path / "bare.onnx"
    fold_file(TCN, kept)
    fold_file(TCN, bare, record=False)
    onnx.checker.check_model(str(kept), full_check=True)
    session = onnxruntime.InferenceSession(str(kept))
    assert "wnconvert" in session.get_modelmeta().custom_metadata_map
    assert kept.read_bytes().startswith(bare.read_bytes())
    assert record(bare) is None
    assert compare_onnx(kept, bare)
    x = np.ones((1, 8, 9), np.float32)
    outputs = [onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0] for path in (kept, bare)]
    np.testing.assert_array_equal(*outputs)


def test_the_bytes_are_the_same_in_every_run(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        fold_file(TCN, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_what_was_not_run_is_not_said_to_be_proven(tmp_path: Path) -> None:
    for proof, tolerance in (("layers", {"layers_rtol": 1e-4}), ("none", {})):
        fold_file(TCN, tmp_path / "out.onnx", proof=proof, force=True)  # type: ignore[call-overload]
        found = record(tmp_path / "out.onnx")
        assert found is not None
        assert found["history"][0]["tolerance"] == tolerance
        assert "whole model" not in found["history"][0]["proof"]


def test_a_fold_of_a_folded_model_goes_on_with_its_history(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    fold_file(TCN, first, layers="tcn.0.*")
    fold_file(first, second)
    found = record(second)
    assert found is not None
    assert [step["layers"] for step in found["history"]] == [1, 5]
    assert found["history"][1]["sha256"] == [hashlib.sha256(first.read_bytes()).hexdigest()]
    assert [each.key for each in onnx.load(str(second)).metadata_props] == ["wnconvert"]
    notes = inspect_file(second).notes
    assert [note for note in notes if note.startswith("made by")] == [
        f"made by wnconvert {found['version']}: fold of 1 layer",
        f"made by wnconvert {found['version']}: fold of 5 layers",
    ]
    assert "wnconvert" in (inspect_file(second, metadata=True).metadata or {})


def test_without_a_record_the_old_one_goes_too(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    fold_file(TCN, first, layers="tcn.0.*")
    done = run_here("fold", first, "-o", second, "--no-record")
    assert done.returncode == 0
    assert record(second) is None


def test_a_copy_stays_a_copy(tmp_path: Path) -> None:
    out, copy = tmp_path / "out.onnx", tmp_path / "copy.onnx"
    fold_file(TCN, out)
    fold_file(out, copy, copy=True)
    assert copy.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[]", '{"history": 3}', '{"history": [{"verb": "fold"}]}', '{"history": [{"verb": 1}]}'],
)
def test_a_record_that_makes_no_sense_is_left_out_and_said(tmp_path: Path, text: str) -> None:
    source, out = with_metadata(TCN, tmp_path / "odd.onnx", text), tmp_path / "out.onnx"
    assert "its wnconvert record makes no sense and is left out" in inspect_file(source).notes
    fold_file(source, out)
    found = record(out)
    assert found is not None
    assert len(found["history"]) == 1
    assert {each.key for each in onnx.load(str(out)).metadata_props} == {"wnconvert", "author"}


def test_of_two_records_the_last_counts_as_in_every_reader(tmp_path: Path) -> None:
    fold_file(TCN, tmp_path / "f.onnx", layers="tcn.0.*")
    text = json.dumps(record(tmp_path / "f.onnx"))
    out = tmp_path / "out.onnx"
    fold_file(with_metadata(TCN, tmp_path / "two.onnx", "nonsense", text), out)
    found = record(out)
    assert found is not None
    assert len(found["history"]) == 2


def test_an_export_has_a_record_too_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = weight_norm(torch.nn.Linear(3, 2))
    asked: dict[str, Any] = {"inputs": "input=float32[B,3]", "exporter": "torchscript"}
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    reports = [export_onnx(module, path, **asked) for path in paths]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert reports[0].size == paths[0].stat().st_size
    found = record(paths[0])
    assert found is not None
    (step,) = found["history"]
    assert (step["verb"], step["layers"], step["folded"]) == ("export", 1, {"weight": "weight"})
    assert step["tolerance"] == {"rtol": 1e-3, "atol": 1e-5, "min_snr": None, "outliers": 0.0}
    with torch.no_grad():
        module.bias += 1
    export_onnx(module, tmp_path / "c.onnx", **asked)
    other = record(tmp_path / "c.onnx")
    assert other is not None
    assert other["history"][0]["sha256"] != step["sha256"]
    export_onnx(module, tmp_path / "d.onnx", record=False, **asked)
    assert record(tmp_path / "d.onnx") is None


def test_a_checkpoint_without_a_record_can_only_be_split_by_more_than_that(tmp_path: Path) -> None:
    source = FIXTURES / "hifigan.safetensors"
    for name in ("out.safetensors", "out.pt"):
        fold_file(source, tmp_path / name, record=False)
        assert b"state_dicts" not in (tmp_path / name).read_bytes()
        with pytest.raises(ArgumentError, match="there is no record of a fold"):
            split_file(tmp_path / name, tmp_path / f"split.{name}")
