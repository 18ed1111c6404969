"""What `import wnconvert` feels like: results at a prompt, tracebacks, arguments of a wrong kind, help."""

from __future__ import annotations

import io
import pickle
import pydoc
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tqdm.auto
from torch import nn

import wnconvert
from tests.helpers.golden import FIXTURES
from tests.helpers.live_models import norm
from wnconvert import (
    ArgumentError,
    LayerError,
    WnconvertError,
    compare_files,
    compare_state_dicts,
    fold_file,
    fold_module,
    fold_state_dict,
    inspect_file,
    inspect_module,
    inspect_state_dict,
    migrate_file,
    migrate_module,
    migrate_state_dict,
    split_file,
    split_module,
    split_state_dict,
)
from wnconvert.layers.rows import LayerRow

SOURCE = FIXTURES / "g_02500000"

# -- results at a prompt


def results(folder: Path) -> dict[str, object]:
    made = fold_file(SOURCE, folder / "out.pt")
    return {
        "Plan: fold 78 layers": fold_file(SOURCE, dry_run=True),
        "Result: 78 layers folded": made,
        "Inspection of": inspect_file(SOURCE),
        "Comparison:": compare_files(SOURCE, folder / "out.pt"),
        "Layers: 2 layers": fold_module(nn.Sequential(norm(nn.Linear(2, 2)), norm(nn.Linear(2, 2)))),
    }


def test_a_result_of_nothing_written_says_why() -> None:
    heading, why = repr(fold_file(FIXTURES / "plain.pt")).splitlines()
    assert heading == f"Result: 0 layers folded, {FIXTURES / 'plain.pt'} -> nothing"
    assert why.startswith("  nothing to fold: no weight norm; 1 × spectral norm")


def test_a_result_shows_itself_in_three_lines(tmp_path: Path) -> None:
    for start, result in results(tmp_path).items():
        shown = repr(result)
        assert shown.startswith(start)
        lines = shown.splitlines()
        assert 2 <= len(lines) <= 3, shown
        assert all(len(line) < 200 for line in lines), shown
    assert "conv_pre.weight" in repr(fold_file(SOURCE, dry_run=True))
    assert "and 75 more" in repr(fold_file(SOURCE, dry_run=True))


def test_a_result_of_nothing_shows_itself_in_one_line() -> None:
    assert repr(fold_module(nn.Linear(2, 2))) == "Layers: 0 layers"


def test_plans_results_and_inspections_have_rows_of_one_type(tmp_path: Path) -> None:
    plan, done = fold_file(SOURCE, dry_run=True), fold_file(SOURCE, tmp_path / "out.pt")
    found = inspect_file(SOURCE)
    rows = [
        [(row.state_dict, row.name, row.dim, row.shape) for row in each.layers]
        for each in (plan, done, found)
    ]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0][0] == ("generator", "conv_pre.weight", 0, (32, 80, 7))
    assert all(isinstance(row, LayerRow) for each in (plan, done, found) for row in each.layers)
    (first, *_) = plan.layers
    assert first.to == "plain"
    assert first.before is not None
    assert (first.before.g.name, first.after) == ("conv_pre.weight_g", None)


# -- errors


def test_a_traceback_shows_what_to_do() -> None:
    with pytest.raises(WnconvertError) as caught:
        fold_file("nothing.pt")
    lines = "".join(traceback.format_exception(caught.value)).splitlines()
    assert lines[-2:] == [
        "wnconvert.errors.InputError: nothing.pt: there is no such file",
        "fix: check the path",
    ]
    assert caught.value.lines == ["nothing.pt: there is no such file"]


@pytest.mark.skipif(not hasattr(BaseException, "add_note"), reason="Python 3.10 has no notes")
def test_the_note_follows_the_fix_and_survives_pickling() -> None:
    error = LayerError("it cannot be", fix="do this")
    error.add_note("a note of the user's")
    error.fix = "do that"
    assert error.__notes__ == ["a note of the user's", "fix: do that"]
    assert pickle.loads(pickle.dumps(LayerError("no", fix="yes"))).__notes__ == ["fix: yes"]
    error.fix = ""
    assert error.__notes__ == ["a note of the user's"]
    assert getattr(LayerError("no fix"), "__notes__", []) == []


def test_without_notes_the_fix_stands_in_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wnconvert.errors._HAS_NOTES", False)  # as in Python 3.10
    error = LayerError("it cannot be", where="layer a", fix="do this")
    assert str(error) == "layer a: it cannot be\nfix: do this"
    assert not hasattr(error, "__notes__")
    assert error.lines == ["layer a: it cannot be"]
    assert str(LayerError("it cannot be")) == "it cannot be"


# -- arguments of a wrong kind

ARRAY = np.ones(2, np.float32)
FILES: list[Callable[[Any], object]] = [
    fold_file,
    split_file,
    migrate_file,
    inspect_file,
    lambda it: compare_files(it, SOURCE),
    lambda it: compare_files(SOURCE, it),
    lambda it: split_file(SOURCE, like=it, dry_run=True),
    lambda it: wnconvert.check_onnx(it, nn.Linear(2, 2), inputs="input=float32[2,2]"),
    lambda it: wnconvert.export_onnx(nn.Linear(2, 2), it, inputs="input=float32[2,2]"),
    lambda it: fold_file(SOURCE, it, dry_run=True),
]
STATES: list[Callable[[Any], object]] = [
    fold_state_dict,
    lambda it: split_state_dict(it, layers="*", dim=0),
    lambda it: split_state_dict({"w": ARRAY}, like=it),
    migrate_state_dict,
    inspect_state_dict,
    lambda it: compare_state_dicts(it, {"w": ARRAY}),
    lambda it: compare_state_dicts({"w": ARRAY}, it),
]
MODULES: list[Callable[[Any], object]] = [
    fold_module,
    migrate_module,
    inspect_module,
    lambda it: split_module(it, layers="*", dim=0),
]


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        (nn.Linear(2, 2), "such as fold_module"),
        (io.BytesIO(b"PK"), "fold_state_dict(torch.load("),
        ({"w": ARRAY}, "such as fold_state_dict"),
        ({0: 1}, "such as fold_state_dict"),
        (b"model.pt", "a str or an os.PathLike"),
        (5, "a str or an os.PathLike"),
    ],
)
def test_what_is_not_the_name_of_a_file_is_told_where_it_belongs(value: object, fix: str) -> None:
    for verb in FILES:
        with pytest.raises(ArgumentError, match=f"{type(value).__name__} is not the name of") as caught:
            verb(value)
        assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("value", "what", "fix"),
    [
        (nn.Linear(2, 2), "a Linear is not a state dict", "such as fold_module"),
        (io.BytesIO(b"PK"), "a BytesIO is not a state dict", "torch.load("),
        ("model.pt", "a str is not a state dict", "such as fold_file"),
        (SOURCE, "Path is not a state dict", "such as fold_file"),
        ({0: ARRAY, 1: ARRAY}, "a dict with keys of type int is not a state dict", "names to tensors"),
        ([("w", ARRAY)], "a list is not a state dict", "names to tensors"),
        (5, "an int is not a state dict", "names to tensors"),
    ],
    ids=["module", "BytesIO", "str", "Path", "ints", "list", "int"],
)
def test_what_is_not_a_state_dict_is_told_where_it_belongs(value: object, what: str, fix: str) -> None:
    for verb in STATES:
        with pytest.raises(ArgumentError, match=what) as caught:
            verb(value)
        assert fix in caught.value.fix


@pytest.mark.parametrize("option", ["threads", "require_layers"])
@pytest.mark.parametrize("count", [0, -1, "2", 1.5])
def test_what_is_not_a_count_is_refused(option: str, count: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {option: count}
    with pytest.raises(ArgumentError, match=re.escape(repr(count))):
        fold_file(SOURCE, tmp_path / "out", **options)


def test_none_is_no_form_to_migrate_to(tmp_path: Path) -> None:
    none: Any = None
    for migrate in (
        lambda: migrate_file(SOURCE, tmp_path / "out", to=none),
        lambda: migrate_state_dict({}, to=none),
        lambda: migrate_module(nn.Linear(2, 2), to=none),
    ):
        with pytest.raises(ArgumentError, match="there is no form 'None'"):
            migrate()


def test_a_mapping_of_names_to_no_tensors_is_an_error_and_an_empty_one_is_a_state_dict() -> None:
    for verb in (fold_state_dict, migrate_state_dict, inspect_state_dict):
        with pytest.raises(ArgumentError, match="there is no tensor in it, only int") as caught:
            verb({"epoch": 1})
        assert caught.value.fix == "pass a mapping of names to tensors"
        verb({})
    assert fold_state_dict(nn.ReLU().state_dict()) == {}
    assert list(fold_state_dict({"w": torch.eye(2).to_sparse()})) == ["w"]


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        ({"w": ARRAY}, "such as fold_state_dict"),
        ("model.pt", "such as fold_file"),
        (io.BytesIO(), "torch.load("),
        (nn.Linear, r"Linear(…) makes"),
    ],
)
def test_what_is_not_a_module_is_told_where_it_belongs(value: object, fix: str) -> None:
    for verb in MODULES:
        with pytest.raises(ArgumentError, match="is not a module") as caught:
            verb(value)
        assert fix in caught.value.fix


def test_an_exported_program_is_told_to_be_folded_before() -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    for verb in MODULES:
        with pytest.raises(ArgumentError, match=r"ExportedProgram is not a module") as caught:
            verb(program)
        assert "before" in caught.value.fix


# -- progress


def test_progress_true_is_a_bar_of_tqdm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bars: list[Any] = []

    def bar_of(**settings: Any) -> Any:
        bars.append(original(file=io.StringIO(), **settings))
        return bars[-1]

    original: Any = tqdm.auto.tqdm
    monkeypatch.setattr(tqdm.auto, "tqdm", bar_of)
    out = tmp_path / "out.pt"
    verbs: list[Callable[[], object]] = [
        lambda: fold_file(SOURCE, out, progress=True),
        lambda: inspect_file(SOURCE, full=True, progress=True),
        lambda: compare_files(SOURCE, out, progress=True),
        lambda: split_file(out, tmp_path / "split.pt", progress=True),
        lambda: migrate_file(SOURCE, tmp_path / "new.pt", progress=True),
    ]
    for verb in verbs:
        bars.clear()
        verb()
        (bar,) = bars
        assert bar.total * 0.9 < bar.n <= bar.total  # of an inspection the total is an estimate
        assert bar.unit == "B"
    bars.clear()
    report = wnconvert.export_onnx(
        nn.Linear(2, 2), tmp_path / "m.onnx", inputs="input=float32[2,2]", samples=1, progress=True
    )
    (bar,) = bars
    assert bar.n == len(report.steps)
    shown = r"ExportReport: .*m\.onnx equals Linear.*\n  output equal\n  [\d,]+ bytes.*"
    assert re.fullmatch(shown, repr(report))


def test_progress_is_a_function_too_and_nothing_by_default(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    fold_file(SOURCE, tmp_path / "a.pt", progress=lambda done, total: seen.append((done, total)))
    fold_file(SOURCE, tmp_path / "b.pt", progress=False)
    fold_file(SOURCE, tmp_path / "c.pt")
    assert seen[-1][0] == seen[-1][1]
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ArgumentError, match="progress cannot be 'bar'") as caught:
        fold_file(SOURCE, tmp_path / "d.pt", progress="bar")  # type: ignore[call-overload]
    assert "True for a progress bar" in caught.value.fix


# -- help


def test_help_names_every_public_name_before_the_modules_inside() -> None:
    text = pydoc.plain(pydoc.render_doc(wnconvert))
    before = text[: text.index("PACKAGE CONTENTS")]
    words = set(re.findall(r"\w+", before))
    assert {name for name in wnconvert.__all__ if name != "__version__"} <= words
