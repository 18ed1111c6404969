from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.golden import FIXTURES
from wnconvert.errors import ArgumentError, OutputError
from wnconvert.reports.plots import plot_magnitudes
from wnconvert.verbs.inspection.inspect import inspect_file

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_one_file_becomes_boxes_and_several_become_lines(tmp_path: Path, suffix: str, begins: bytes) -> None:
    found = inspect_file(FIXTURES / "g_02500000")
    for name, files in (("boxes", [found]), ("lines", [found, found])):
        path = tmp_path / f"{name}{suffix}"
        plot_magnitudes(files, path)
        assert path.read_bytes().startswith(begins)


@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".png"])
def test_the_same_magnitudes_give_the_same_picture(tmp_path: Path, suffix: str) -> None:
    found = inspect_file(FIXTURES / "gan.pt")
    drawn = []
    for name in ("a", "b"):
        plot_magnitudes([found], tmp_path / f"{name}{suffix}")
        drawn.append((tmp_path / f"{name}{suffix}").read_bytes())
    assert drawn[0] == drawn[1]


def test_a_picture_is_never_replaced_unless_that_is_asked_for(tmp_path: Path) -> None:
    found, path = inspect_file(FIXTURES / "gan.pt"), tmp_path / "x.svg"
    path.write_text("of somebody else")
    with pytest.raises(OutputError, match="it exists") as caught:
        plot_magnitudes([found], path)
    assert caught.value.fix == "--force replaces it, or choose another --plot FILE"
    assert path.read_text() == "of somebody else"
    plot_magnitudes([found], path, force=True)
    assert path.read_text().startswith("<?xml")


def test_every_layer_is_named_in_a_picture_of_many(tmp_path: Path) -> None:
    plot_magnitudes([inspect_file(FIXTURES / "g_02500000")], tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert text.count("<!-- resblocks.") == 72


def test_nothing_to_draw_and_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no magnitudes"):
        plot_magnitudes([inspect_file(FIXTURES / "plain.pt")], tmp_path / "x.png")
    with pytest.raises(ArgumentError, match=r"is none of \.png, \.svg, \.pdf"):
        plot_magnitudes([inspect_file(FIXTURES / "gan.pt")], tmp_path / "x.bmp")
    assert list(tmp_path.iterdir()) == []


def test_names_with_dollars_and_underscores_are_drawn_as_they_are(tmp_path: Path) -> None:
    g, v = np.array([[1], [0]], np.float32), np.ones((2, 3), np.float32)
    tensors: dict[str, Any] = {}
    for name in ("_orig_mod.a", r"$\frac{$.conv"):
        tensors |= {f"{name}.weight_g": g, f"{name}.weight_v": v}
    files = []
    for at in range(2):
        save_file(
            {name: value * (1 + at) for name, value in tensors.items()}, tmp_path / f"$x{at}$.safetensors"
        )
        files.append(inspect_file(tmp_path / f"$x{at}$.safetensors"))
    for chosen in (files[:1], files):
        plot_magnitudes(chosen, tmp_path / "x.svg", force=True)
        text = (tmp_path / "x.svg").read_text()
        assert "_orig_mod.a.weight" in text
        assert r"$\frac{$.conv.weight" in text


def test_without_matplotlib_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wnconvert.reports.plots.find_spec", lambda _: None)
    with pytest.raises(ArgumentError, match="pictures need matplotlib") as caught:
        plot_magnitudes([], tmp_path / "out.png")
    assert caught.value.fix == "pip install matplotlib"
