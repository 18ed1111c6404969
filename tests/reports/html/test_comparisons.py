"""A comparison as a page: what differs, by how much, and names on one side only."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.browser import Browser
from tests.helpers.golden import FIXTURES
from tests.helpers.reports import comparison
from tests.helpers.runner import Runner
from tests.reports.html.test_page import ODD, Tags
from wnconvert import compare_files
from wnconvert.reports.html.comparisons import comparison_page
from wnconvert.reports.html.page import page_text, write_page

pytest.importorskip("jinja2")

STEPS = FIXTURES / "step_1000.safetensors", FIXTURES / "step_2000.safetensors"


def data_in(text: str) -> Any:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(data)


def test_distances_are_counted_in_powers_of_two_and_none_is_lost(tmp_path: Path) -> None:
    base = np.float32(1)
    apart = [0, 1, 2, 3, 4, 7, 8, 1000]
    codes = np.full(len(apart), base).view(np.uint32) + np.array(apart, np.uint32)
    values = codes.astype(np.uint32).view(np.float32)
    save_file({"w": np.append(values, np.float32(np.nan))}, tmp_path / "a")
    save_file({"w": np.full(len(apart) + 1, base)}, tmp_path / "b")
    (found,) = compare_files(tmp_path / "a", tmp_path / "b").differing
    assert found.spread == (1, 1, 2, 2, 1, 0, 0, 0, 0, 0, 1)
    assert sum(found.spread) == len(apart), "what is NaN on one side has no distance"
    assert found.unmatched == 1
    assert found.worst == (8,)
    assert found.worst_a is not None
    assert np.isnan(found.worst_a)
    assert found.worst_b == 1
    assert found.to_dict()["worst_a"] is None


def test_the_worst_element_is_shown_on_both_sides(tmp_path: Path) -> None:
    (shape, values) = comparison(tmp_path).differing
    assert (values.worst, values.worst_a, values.worst_b) == ((1,), 1.0, 1.5)
    assert (shape.worst_a, shape.spread) == (None, ())


def test_a_page_has_a_row_for_each_difference_and_the_names_on_either_side(tmp_path: Path) -> None:
    text = page_text(comparison_page(comparison(tmp_path)))
    assert [row["name"] for row in data_in(text)["comparisons"][0]["rows"]] == ["shape", "values"]
    assert "Only in A: 1" in text
    assert "Only in B: 1" in text
    assert "<li>here</li>" in text
    assert 'data-why="shape"' in text


def test_a_page_of_what_is_equal_says_so() -> None:
    text = page_text(
        comparison_page(compare_files(FIXTURES / "g_02500000", FIXTURES / "hifigan.safetensors"))
    )
    assert "None: all 156 tensors are equal." in text
    assert 'class="notice fine"' in text
    assert 'id="overview-0"' not in text


def test_a_comparison_is_a_page_in_python_too(tmp_path: Path) -> None:
    found = comparison(tmp_path)
    found.to_html(tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    assert text == found.to_html()
    assert "the other values would pass with atol=0.5" in text


def test_odd_names_are_texts_in_the_page(tmp_path: Path) -> None:
    found = comparison(tmp_path)
    differing = tuple(replace(found.differing[1], name=odd) for odd in ODD)
    odd = replace(found, differing=differing, a="".join(ODD), only_in_a=tuple(ODD), notes=tuple(ODD))
    text, plain = page_text(comparison_page(odd)), page_text(comparison_page(found))
    for name in ("script", "style"):
        assert Tags(text).count(name) == Tags(plain).count(name)
    assert not set(text) & {"\x1b", "\u202e", "\udc80"}


def test_the_command_writes_the_page_beside_its_report(run: Runner, tmp_path: Path) -> None:
    page = tmp_path / "c.html"
    done = run("compare", *STEPS, "--html", page)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("different: ")
    assert f"the page is in {page}" in done.stderr
    assert page.read_text().startswith("<!doctype html>")
    assert run("compare", *STEPS, "--html", page).returncode == 2
    assert run("compare", *STEPS, "--html", page, "-f", "--quiet").returncode == 1


def test_in_a_browser_a_row_opens_sorts_and_filters(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    write_page(comparison_page(compare_files(*STEPS)), page)
    for width in (1280, 375):
        browser.open(page, width=width)
        assert browser.overflow() <= 0
        browser.click("#differing-0 tbody th button")
        browser.until("return document.querySelectorAll('tr.details svg rect').length >= 2")
        browser.screen(f"comparison-{width}")
    browser.resize(1280)
    browser.until("return document.querySelectorAll('#overview-0 svg circle').length === 5")
    browser.run(
        "const s = document.querySelector('input[type=search]'); s.value = 'head'; "
        "s.dispatchEvent(new Event('input'))"
    )
    assert browser.texts("#differing-0 tbody th button") == ["head.weight"]
    browser.quiet(page)
