"""Options that Python and the command line share: dtypes by their usual words, and as objects."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import wnconvert
from tests.cli.test_files import run
from tests.helpers.golden import FIXTURES
from wnconvert.errors import ArgumentError
from wnconvert.tensors.dtypes import AnyDType
from wnconvert.verbs.shared.options import dtype_of

WORDS: dict[str, list[AnyDType]] = {
    "float16": ["float16", "fp16", "half", "f16", "torch.float16", "torch.half", "FP16"],
    "bfloat16": ["bfloat16", "bf16", "torch.bfloat16", "BF16"],
    "float32": ["float32", "float", "fp32", "f32", "torch.float"],
}
OBJECTS: dict[str, list[AnyDType]] = {
    "float16": [torch.float16, torch.half, np.float16, np.dtype("float16"), np.dtype("<f2")],
    "bfloat16": [torch.bfloat16, ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)],
    "float32": [torch.float, np.float32, np.single, np.dtype("float32")],
}


@pytest.mark.parametrize("name", WORDS)
def test_a_dtype_may_be_given_by_a_usual_word_or_as_an_object(name: str) -> None:
    for given in (*WORDS[name], *OBJECTS[name]):
        assert str(dtype_of(given)) == name, given
    assert dtype_of(None) is None


@pytest.mark.parametrize("dtype", ["fp8", "int8", torch.int8, np.float64, "double", float, "", "float16 "])
def test_what_is_not_offered_is_refused_with_the_choices(dtype: AnyDType) -> None:
    with pytest.raises(ArgumentError, match="is not offered") as caught:
        dtype_of(dtype)
    assert caught.value.fix == "one of float16, bfloat16, float32"


def test_objects_cast_as_words_do(tmp_path: Path) -> None:
    source = FIXTURES / "step_1000.safetensors"
    given: list[AnyDType] = ["float16", "half", torch.float16, np.float16]
    made = set()
    for at, dtype in enumerate(given):
        wnconvert.fold_file(source, tmp_path / f"{at}.safetensors", dtype=dtype)
        made.add((tmp_path / f"{at}.safetensors").read_bytes())
    assert len(made) == 1
    state = {"a_g": torch.ones(2, 1), "a_v": torch.ones(2, 3)}
    assert wnconvert.fold_state_dict(state, dtype=torch.bfloat16)["a"].dtype == torch.bfloat16


def test_the_command_line_takes_the_words_and_names_the_choices() -> None:
    for word in ("half", "torch.float16", "FP16"):
        assert " float16 " in run("fold", FIXTURES / "gan.pt", "-n", "--dtype", word).stdout
    wrong = run("fold", FIXTURES / "gan.pt", "-n", "--dtype", "fp8")
    assert "'fp8' is not one of 'float16', 'bfloat16', 'float32'" in wrong.stderr
