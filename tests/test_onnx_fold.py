"""ONNX files folded: what onnx and onnxruntime read back, and that all else is byte for byte what it was."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto

from tests import test_onnx_arithmetic, test_onnx_surgery
from tests.onnx_graphs import applied, model_of
from wnconvert import fold_file
from wnconvert.checkpoint import open_checkpoint
from wnconvert.onnx_arithmetic import Found, find
from wnconvert.onnx_model import Model
from wnconvert.onnx_surgery import edits

COUNT = itertools.count()


def opened(proto: ModelProto, folder: Path) -> tuple[Path, Model]:
    path = folder / f"{next(COUNT)}.onnx"
    path.write_bytes(proto.SerializeToString())
    found = open_checkpoint(path).onnx
    assert found is not None
    return path, found.model


def through_files(folder: Path) -> Callable[[ModelProto], tuple[Found, ModelProto]]:
    """``onnx_graphs.folded`` with our own reader, writer and checks, held against what numpy makes."""

    def folded(proto: ModelProto) -> tuple[Found, ModelProto]:
        path, model = opened(proto, folder)
        found = find(model)
        expected = find(model_of(proto))
        assert [item.layer for item in found.layers] == [item.layer for item in expected.layers]
        assert [item.name for item in found.refused] == [item.name for item in expected.refused]
        result = fold_file(path, exclude=[item.name for item in found.refused], verify=True)
        made = onnx.load(result.output)
        assert made == applied(proto, edits(model_of(proto), expected.layers))
        assert len(result.plan.layers) == len(found.layers)
        if not found.layers:
            assert result.output.read_bytes() == path.read_bytes()
        return found, made

    return folded


#: Before IR 4 a file's new tensor becomes an input too, as onnx's checker has it; its own test is below.
OWN = "test_inputs_that_named_an_initializer_go_with_it_before_ir_4"


def cases(module: Any) -> list[Any]:
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_") and name != OWN}
    return [
        pytest.param(test, id=name) for name, test in tests.items() if not inspect.signature(test).parameters
    ]


@pytest.mark.parametrize("case", cases(test_onnx_surgery))
def test_what_surgery_does_to_a_graph_is_done_to_its_file(
    case: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_onnx_surgery, "folded", through_files(tmp_path))
    case()


@pytest.mark.parametrize("case", cases(test_onnx_arithmetic))
def test_what_is_found_in_a_graph_is_found_in_its_file(
    case: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_onnx_arithmetic, "folded", through_files(tmp_path))
    case()
