"""The model card of an export: what the hub reads, and every figure of the proof."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.live_models import norm
from tests.helpers.reports import export_report
from tests.helpers.runner import Runner
from wnconvert import ArgumentError, ExportReport, OutputError, export_onnx, inspect_state_dict
from wnconvert.reports.cards import card_text

ASKED: dict[str, Any] = {"inputs": "input=float32[B,3]", "exporter": "torchscript", "samples": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportReport, Path]:
    """The report of an export, and its card."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("card")
    card = folder / "README.md"
    return export_onnx(norm(nn.Linear(3, 2)), folder / "m.onnx", card=card, **ASKED), card


def test_a_card_has_the_hash_the_layers_and_the_figures_of_the_proof(made: tuple[ExportReport, Path]) -> None:
    report, card = made
    text = card.read_text()
    assert report
    assert hashlib.sha256((card.parent / "m.onnx").read_bytes()).hexdigest() in text
    assert "1 layer folded with wnconvert 0.1.0, correctly rounded." in text
    assert "float32" in text
    assert "equal to Linear, unfolded, in torch" in text
    assert f"{report.outputs[0].max_abs:.4g}" in text
    assert str(card.parent) not in text, "where it lies here is of no use to others"


def test_the_hub_reads_the_card(made: tuple[ExportReport, Path]) -> None:
    hub = pytest.importorskip("huggingface_hub")
    _, path = made
    card = hub.ModelCard.load(path)
    assert card.data.to_dict() == {"library_name": "onnx", "tags": ["onnx", "wnconvert"]}
    assert card.text.lstrip().startswith("# m.onnx")
    saved = path.parent / "saved.md"
    card.save(saved)
    assert hub.ModelCard.load(saved).content == card.content


def test_the_hub_reads_an_inspection_below_a_card_of_ones_own(run: Runner, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    section = run("inspect", "fixtures/g_02500000", "--format", "markdown", "--top", "2").stdout
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n---\n\n# Mine\n\n{section}")
    card = hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {"license": "mit"}
    assert "## Weights" in card.text


def test_no_card_is_written_over_another_file_or_beside_a_model_that_is_not_equal(tmp_path: Path) -> None:
    card, model = tmp_path / "README.md", tmp_path / "m.onnx"
    card.write_text("mine")
    with pytest.raises(OutputError, match="it exists") as caught:
        export_onnx(norm(nn.Linear(3, 2)), model, card=card, **ASKED)
    assert "--card" in caught.value.fix
    assert card.read_text() == "mine"
    assert not model.exists()
    other = tmp_path / "other.md"
    assert not export_onnx(norm(nn.Linear(3, 2)), model, card=other, min_snr=1e4, **ASKED)
    assert not other.exists()


def test_a_card_is_a_file_of_markdown(tmp_path: Path) -> None:
    for name in ("card.txt", "m.onnx"):
        with pytest.raises(ArgumentError, match="no name of a model card"):
            export_onnx(norm(nn.Linear(3, 2)), tmp_path / "m.onnx", card=tmp_path / name, **ASKED)


def test_names_in_a_card_are_no_markdown_and_no_metadata() -> None:
    odd = "---\nlicense: x\n---|<b>@me"
    found = inspect_state_dict({f"{odd}.weight_g": np.ones((2, 1)), f"{odd}.weight_v": np.ones((2, 3))})
    report = replace(export_report(name=odd, model=odd), reference=odd, folded_in_module=1)
    text = card_text(found, report)
    assert text.count("\n---\n") == 1
    assert "<b>" not in text
    assert text.startswith("---\nlibrary_name: onnx\n")
    assert "correctly rounded (float64: within 4 ulp)" in text
