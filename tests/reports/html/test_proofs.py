"""A proof as a page: each output beside its tolerance, and what can be seen and heard of it."""

from __future__ import annotations

import base64
import io
import wave
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.browser import Browser
from tests.helpers.reports import export_report
from tests.helpers.runner import Runner
from tests.reports.html.test_comparisons import data_in
from tests.reports.html.test_page import ODD, Tags
from wnconvert.plan.plan import ComputedWeight
from wnconvert.reports.html.page import page_text, write_page
from wnconvert.reports.html.proofs import proof_page
from wnconvert.reports.html.signals import picture_of, wave_of
from wnconvert.verbs.models.proof.outputs import OutputPair
from wnconvert.verbs.models.proof.report import ExportReport
from wnconvert.verbs.models.proof.samples import Sample

pytest.importorskip("jinja2")

SAMPLE = Sample(0, {"T": 4000})
TONE = np.sin(np.arange(4000) / 20).astype(np.float32)[None, None]


def pair(reference: np.ndarray, off: float = 0.001) -> OutputPair:
    return OutputPair(reference, (reference + reference.dtype.type(off)).astype(reference.dtype), SAMPLE)


def heard_report(off: float = 1e-6) -> ExportReport:
    """A report with one output that is sound, and one that is a picture."""
    report = export_report(off, "audio")
    (output,) = report.outputs
    plane = np.outer(np.arange(16), np.arange(40)).astype(np.float32)[None]
    outputs = (replace(output, pair=pair(TONE)), replace(output, name="mel", pair=pair(plane)))
    return replace(report, proof=replace(report.proof, outputs=outputs))


def test_a_waveform_keeps_the_least_and_the_greatest_of_each_column() -> None:
    waves = wave_of(pair(TONE))
    assert waves is not None
    reference, candidate, difference = waves
    assert reference.samples == 4000
    assert max(reference.high) == pytest.approx(TONE.max(), rel=1e-3)
    assert min(reference.low) == pytest.approx(TONE.min(), rel=1e-3)
    assert difference.high[0] == pytest.approx(0.001, rel=1e-2)
    assert len(candidate.low) == len(candidate.high) == 480
    short = wave_of(pair(TONE[..., :7]))
    assert short is not None
    assert short[0].low == short[0].high == tuple(float(f"{value:.4g}") for value in TONE[0, 0, :7])
    assert short[0].sound == ""


def test_a_sound_is_a_wav_file_of_the_same_samples() -> None:
    waves = wave_of(pair(TONE))
    assert waves is not None
    kind, _, data = waves[0].sound.partition(",")
    assert kind == "data:audio/wav;base64"
    with wave.open(io.BytesIO(base64.b64decode(data))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22050)
        samples = np.frombuffer(file.readframes(10**6), "<i2")
    assert np.abs(samples / 32767 - TONE[0, 0]).max() < 1e-4
    assert waves[2].sound == "", "a difference is too quiet to be heard"


@pytest.mark.parametrize(
    "values",
    [
        TONE.astype(np.int32),
        TONE.astype(np.complex64),
        TONE.reshape(2, 2000),
        np.ones(1, np.float32),
        TONE > 0,
    ],
    ids=["integers", "complex", "two rows", "one number", "bools"],
)
def test_what_is_not_one_row_of_real_floats_is_no_waveform(values: np.ndarray) -> None:
    assert wave_of(OutputPair(values, values, SAMPLE)) is None


def test_loud_and_infinite_values_are_drawn_and_not_heard() -> None:
    for values in (TONE * 100, np.where(TONE > 0.99, np.inf, TONE * 2).astype(np.float32)):
        waves = wave_of(OutputPair(values, values, SAMPLE))
        assert waves is not None
        assert waves[0].sound == ""
        assert np.isfinite(waves[0].high).all()


def test_a_picture_is_a_png_of_the_same_pixels() -> None:
    image = pytest.importorskip("PIL.Image")
    plane = np.linspace(-2, 3, 12 * 20, dtype=np.float32).reshape(12, 20)
    pictures = picture_of(OutputPair(plane, plane, SAMPLE))
    assert pictures is not None
    reference, _, difference = pictures
    assert (reference.rows, reference.columns, reference.black, reference.white) == (12, 20, -2.0, 3.0)
    with image.open(io.BytesIO(base64.b64decode(reference.source.partition(",")[2]))) as png:
        pixels = np.asarray(png)
    assert np.abs(pixels / 255 * 5 - 2 - plane).max() <= 5 / 510 + 1e-6
    assert (difference.black, difference.white) == (0.0, 0.0)
    large = picture_of(pair(np.zeros((3, 1000, 16), np.float32)))
    assert large is not None
    assert (large[0].rows, large[0].columns) == (250, 16)
    assert picture_of(pair(np.zeros((4, 7, 100), np.float32))) is None


def test_a_picture_of_several_planes_is_that_of_the_worst_element() -> None:
    planes = np.arange(3, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 9, 9), np.float32)
    shown = picture_of(pair(planes), (0, 2, 4, 4))
    assert shown is not None
    assert (shown[0].black, shown[0].white) == (2, 2)
    report = heard_report()
    output = report.outputs[0]
    assert output.worst is not None
    output = replace(output, pair=pair(planes), worst=replace(output.worst, index=(0, 1, 3, 3)))
    report = replace(report, proof=replace(report.proof, outputs=(output,)))
    assert "In the sample T = 4000, the plane [0, 1], that of" in page_text(proof_page(report))


def test_what_is_no_number_is_said_where_it_is_drawn_as_0() -> None:
    report = heard_report()
    output = replace(report.outputs[0], pair=OutputPair(TONE, np.full_like(TONE, np.nan), SAMPLE))
    spoilt = replace(report, proof=replace(report.proof, outputs=(output,)))
    said = "NaN and infinities are drawn as 0"
    assert said in page_text(proof_page(spoilt))
    assert said not in page_text(proof_page(report))


@pytest.mark.parametrize(("off", "css"), [(1e-6, "fine"), (1.0, "danger")])
def test_a_page_has_each_output_beside_its_tolerance(off: float, css: str) -> None:
    report = replace(export_report(off), sha256={"model.onnx": "ab" * 32}, reference_sha256="cd" * 32)
    (output,) = report.outputs
    assert output.worst is not None
    text = page_text(proof_page(report))
    (drawn,) = data_in(text)["outputs"]
    assert drawn["found"] == output.max_abs
    assert drawn["allowed"] == pytest.approx(1e-5 + 1e-3 * abs(output.worst.reference))
    assert f'class="notice {css}"' in text
    for said in (
        f"<dd>{'ab' * 32}</dd>",
        "cd" * 32,
        "[1, 2]",
        f"{output.worst.reference:.7g}",
        "9 as exported, 4 in the file",
        "B = 2",
    ):
        assert said in text


def test_weights_that_are_still_computed_are_named_with_the_reason() -> None:
    computed = (ComputedWeight("", "dec.0.weight", "Sin, Mul", "node", "no rule", "fold it before"),)
    text = page_text(proof_page(replace(export_report(), computed=computed, residual_weight_norm=0)))
    assert "<td>Sin, Mul</td><td>no rule (fold it before)</td>" in text
    assert "<dt>still computed</dt><dd>1 weight</dd>" in text
    assert 'id="computed"' not in page_text(proof_page(export_report()))


def test_the_policy_allows_sounds_in_the_page_and_no_others() -> None:
    text = page_text(proof_page(heard_report()))
    assert "media-src data:;" in text
    assert "unsafe" not in text.partition("</head>")[0]
    sources = [str(each["src"]) for tag, each in Tags(text).found if tag in ("audio", "img")]
    assert [source.partition(";")[0] for source in sources] == ["data:audio/wav"] * 2 + ["data:image/png"] * 3


def test_odd_names_are_texts_in_the_page() -> None:
    odd = "".join(ODD)
    report = replace(export_report(1.0, odd, odd), reference=odd, notes=(odd,), remedy=odd)
    text = page_text(proof_page(report))
    plain = page_text(proof_page(replace(export_report(1.0), notes=("a",))))
    for name in ("script", "style", "img", "audio"):
        assert Tags(text).count(name) == Tags(plain).count(name)
    assert not set(text) & {"\x1b", "\u202e", "\udc80"}


def test_a_report_is_a_page_in_python_too() -> None:
    assert export_report().to_html() == page_text(proof_page(export_report()))


def test_the_json_of_a_report_has_no_elements_of_outputs() -> None:
    (output,) = heard_report().to_dict()["outputs"][:1]
    assert "pair" not in output


def test_export_and_check_write_their_proof_as_a_page(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "conv.py").write_text(
        "import torch\nfrom torch import nn\nfrom torch.nn.utils.parametrizations import weight_norm\n"
        "def build():\n    torch.manual_seed(0)\n    return weight_norm(nn.Conv1d(3, 1, 5))\n"
    )
    asked = [f"{tmp_path / 'conv.py'}:build", "--input", "input=float32[1,3,T]"]
    model = tmp_path / "conv.onnx"
    page, again = tmp_path / "export.html", tmp_path / "check.html"
    done = run("export", *asked, "-o", model, "--exporter", "torchscript", "--html", page)
    assert done.returncode == 0, done.stderr
    assert "folded" in page.read_text()
    assert data_in(page.read_text())["waves"][0]["word"] == "reference"
    assert sha256(model.read_bytes()).hexdigest() in page.read_text()
    assert run("check", model, *asked, "--html", again, "--quiet").returncode == 0
    assert again.read_text().startswith("<!doctype html>")
    assert run("check", model, *asked, "--html", again).returncode == 2


def test_in_a_browser_outputs_are_drawn_and_sounds_have_players(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "proof.html"
    write_page(proof_page(heard_report()), page)
    for width in (1280, 375):
        browser.open(page, width=width)
        assert browser.overflow() <= 0
        browser.screen(f"proof-{width}")
    browser.until("return document.querySelectorAll('.wave svg path').length >= 3")
    assert browser.run("return [...document.querySelectorAll('audio')].length") == 2
    assert browser.run("return [...document.images].every((each) => each.naturalWidth === 40)")
    assert browser.run(
        "const a = document.querySelector('audio'); return new Promise((done) => { a.preload = 'auto'; "
        "a.onloadedmetadata = () => done(a.duration); a.onerror = () => done(-1); a.load(); })"
    ) == pytest.approx(4000 / 22050, rel=0.01)
    browser.quiet(page)
