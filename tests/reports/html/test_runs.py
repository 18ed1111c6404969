"""A training run as a page: steps in order, how far layers moved, and which never did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.browser import Browser
from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from tests.reports.html.test_comparisons import data_in
from tests.reports.html.test_page import ODD, Tags
from wnconvert import ArgumentError, inspect_file, inspect_state_dict
from wnconvert.reports.html.page import page_text, write_page
from wnconvert.reports.html.runs import run_page, steps_of

pytest.importorskip("jinja2")

STEPS = [FIXTURES / f"step_{number}.safetensors" for number in (1000, 2000, 3000)]


def pair(scale: float = 1.0) -> dict[str, np.ndarray]:
    return {"a.weight_g": np.full((2, 1), scale), "a.weight_v": np.ones((2, 3))}


def test_steps_are_those_that_files_say_before_those_in_their_names(tmp_path: Path) -> None:
    for name, step in (("z_1.pt", 300), ("b_9.pt", 20), ("a_5.pt", 1000)):
        state = {key: torch.from_numpy(value) for key, value in pair().items()}
        torch.save({"model": state, "epoch": 1, "iteration": step}, tmp_path / name)
    run = steps_of([inspect_file(tmp_path / name) for name in ("a_5.pt", "b_9.pt", "z_1.pt")])
    assert run.numbers == (20, 300, 1000)
    assert [Path(each.source).name for each in run.found] == ["b_9.pt", "z_1.pt", "a_5.pt"]
    assert run.told_by == "iteration in each file"


def test_steps_are_numbers_not_texts_and_may_be_in_names_or_nowhere() -> None:
    def of(*names: str) -> list[tuple[int, str]]:
        run = steps_of([replace(inspect_state_dict(pair()), source=name) for name in names])
        return [(number, each.source) for number, each in zip(run.numbers, run.found, strict=True)]

    assert of("step_10000.pt", "step_2000.pt") == [(2000, "step_2000.pt"), (10000, "step_10000.pt")]
    assert of("v1/last.pt", "v1/best.pt") == [(1, "v1/last.pt"), (2, "v1/best.pt")]
    assert of("a_1.pt", "b_1.pt") == [(1, "a_1.pt"), (2, "b_1.pt")]


def test_a_step_that_not_all_files_say_or_that_is_one_for_all_is_none() -> None:
    found = [replace(inspect_state_dict(pair()), source=f"s{at}", step=("epoch", 7)) for at in (2, 1)]
    assert steps_of(found).numbers == (1, 2)
    mixed = [replace(found[0], step=("epoch", 9)), replace(found[1], step=("iteration", 8))]
    assert steps_of(mixed).numbers == (1, 2)


def test_a_file_says_its_step_as_a_number_alone(tmp_path: Path) -> None:
    state = {key: torch.from_numpy(value) for key, value in pair().items()}
    for step, said in (
        (5, ("global_step", 5)),
        (True, None),
        (-1, None),
        ("5", None),
        (torch.ones(()), None),
    ):
        torch.save({"model": state, "global_step": step}, tmp_path / "x.pt")
        assert inspect_file(tmp_path / "x.pt").step == said


def test_a_page_has_the_drift_of_every_layer_and_those_that_never_moved() -> None:
    text = page_text(run_page([inspect_file(path) for path in STEPS]))
    data = data_in(text)
    assert data["steps"] == [1000, 2000, 3000]
    assert [layer["name"] for layer in data["layers"]][:2] == ["head.weight", "tcn.4.conv.weight"]
    assert '<ul class="mono" id="still"><li>tcn.0.conv.weight</li></ul>' in text
    assert "head.weight: 76.92%" in text


def test_files_without_a_layer_in_common_are_no_run() -> None:
    with pytest.raises(ArgumentError, match="no layer has magnitudes in two"):
        run_page([inspect_file(STEPS[0]), inspect_file(FIXTURES / "gan.pt")])


def test_odd_names_are_texts_in_the_page() -> None:
    found = [inspect_file(path) for path in STEPS]
    odd = [
        replace(
            each,
            source="".join(ODD) + each.source,
            layers=tuple(
                replace(layer, name=name) for layer, name in zip(each.layers * 2, ODD, strict=False)
            ),
        )
        for each in found
    ]
    text, plain = page_text(run_page(odd)), page_text(run_page(found))
    assert Tags(text).count("script") == Tags(plain).count("script")
    assert not set(text) & {"\x1b", "\u202e", "\udc80"}


def test_the_command_writes_the_page_beside_its_table(run: Runner, tmp_path: Path) -> None:
    done = run("inspect", *STEPS, "--drift", "--html", tmp_path / "run.html")
    assert done.returncode == 0
    assert "76.92%" in done.stdout
    assert "never moved" in (tmp_path / "run.html").read_text()


def test_in_a_browser_the_slider_shows_each_step(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    write_page(run_page([inspect_file(path) for path in STEPS]), page)
    for width in (1280, 375):
        browser.open(page, width=width)
        assert browser.overflow() <= 0
        browser.screen(f"run-{width}")
    browser.resize(1280)
    assert browser.texts("#chosen") == ["step 3,000"]
    assert browser.run("return document.querySelectorAll('.multiples svg').length") == 5, (
        "the sixth never moved"
    )
    browser.run("const s = document.getElementById('step'); s.value = 1; s.dispatchEvent(new Event('input'))")
    assert browser.texts("#chosen") == ["step 2,000"]
    cells = browser.texts("#layers tbody tr:first-child > *")
    assert (cells[0], cells[4]) == ("head.weight", "2.534")
    browser.quiet(page)


def test_a_layer_that_never_moved_is_not_among_those_that_moved_most() -> None:
    runs = {
        scale: run_page([inspect_state_dict(pair()), inspect_state_dict(pair(scale))]) for scale in (1.0, 2.0)
    }
    assert {scale: page.data["moved"] for scale, page in runs.items()} == {1.0: 0, 2.0: 1}
    assert "moved most, on" not in page_text(runs[1.0])
    assert "The layer that moved most, on its own scale." in page_text(runs[2.0])
