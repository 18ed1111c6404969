"""Two ONNX models as a page: weights by name and by what they hold, and outputs as in a proof."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.browser import Browser
from tests.helpers.runner import Runner
from tests.reports.html.test_comparisons import data_in
from tests.reports.html.test_page import ODD, Tags
from tests.verbs.export.pairs.graphs import TCN, changed, renamed, weight
from wnconvert import OnnxComparison, compare_onnx, fold_file
from wnconvert.reports.html.models import models_page
from wnconvert.reports.html.page import page_text, write_page

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and its fold with one weight renamed and one off by a percent."""
    folder = tmp_path_factory.mktemp("models")
    fold_file(TCN, folder / "folded.onnx")
    off = weight("tcn.1.conv.weight", lambda w: w * np.float32(1.01))
    return TCN, changed(folder / "folded.onnx", folder / "b.onnx", off, renamed({"head.bias": "onnx::1"}))


@pytest.fixture(scope="module")
def found(pair: tuple[Path, Path]) -> OnnxComparison:
    return compare_onnx(*pair, samples=2)


def test_a_page_has_weights_and_outputs(found: OnnxComparison) -> None:
    text = page_text(models_page(found))
    data = data_in(text)
    assert [row["name"] for row in data["comparisons"][0]["rows"]] == ["tcn.1.conv.weight"]
    (output,) = data["outputs"]
    assert found.proof is not None
    assert output["found"] == found.proof.outputs[0].max_abs
    assert sum(output["spread"]) == found.proof.outputs[0].elements
    assert [wave["word"] for wave in data["waves"]] in ([], ["A", "B", "difference"])
    assert '<th scope="row" class="mono">head.bias</th><td class="mono">onnx::1</td>' in text
    assert "12 weights in both: 11 by name, 1 by what they hold" in text
    assert 'class="notice danger"' in text


def test_without_samples_the_page_has_weights_alone(pair: tuple[Path, Path]) -> None:
    text = page_text(models_page(compare_onnx(*pair, samples=0)))
    assert "nothing was run: weights decide" in text
    assert 'id="outputs"' not in text
    assert data_in(text)["outputs"] == []


def test_two_models_are_a_page_in_python_and_by_the_command(
    pair: tuple[Path, Path], run: Runner, tmp_path: Path
) -> None:
    page = tmp_path / "m.html"
    done = run("compare", *pair, "--samples", "1", "--html", page)
    assert done.returncode == 1, done.stderr
    assert f"the page is in {page}" in done.stderr
    same = compare_onnx(TCN, TCN, samples=1)
    assert "equal on 1 sample" in str(same.to_html())


def test_odd_names_are_texts_in_the_page(found: OnnxComparison) -> None:
    odd = "".join(ODD)
    initializers = replace(found.initializers, renamed=tuple((name, name) for name in ODD))
    text = page_text(models_page(replace(found, a=odd, initializers=initializers, notes=tuple(ODD))))
    plain = page_text(models_page(found))
    for name in ("script", "style", "img", "audio"):
        assert Tags(text).count(name) == Tags(plain).count(name)
    assert not set(text) & {"\x1b", "\u202e", "\udc80"}


def test_in_a_browser_weights_and_outputs_open(
    browser: Browser, found: OnnxComparison, tmp_path: Path
) -> None:
    page = tmp_path / "models.html"
    write_page(models_page(found), page)
    for width in (1280, 375):
        browser.open(page, width=width)
        assert browser.overflow() <= 0
        for table in ("outputs", "differing-0"):
            browser.click(f"#{table} tbody th button")
            browser.until(f"return document.querySelector('#{table} tr.details svg rect')")
        browser.until("return document.querySelectorAll('#overview svg circle').length === 1")
        browser.screen(f"models-{width}")
    browser.quiet(page)
