"""Two folders as a page: a row for each pair of files, and what differs in each below."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.browser import Browser
from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from tests.reports.html.test_comparisons import data_in
from tests.reports.html.test_page import ODD, Tags
from wnconvert import compare_folders
from wnconvert.reports.html.comparisons import folders_page
from wnconvert.reports.html.page import page_text, write_page

pytest.importorskip("jinja2")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of which one pair is equal, one differs, one cannot be read; one file has no partner."""
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        (folder / "x").mkdir(parents=True)
        shutil.copy(FIXTURES / "step_1000.safetensors", folder / "same.safetensors")
        shutil.copy(FIXTURES / "step_1000.safetensors", folder / "x" / "other.safetensors")
        shutil.copy(FIXTURES / "step_1000.safetensors", folder / "broken.safetensors")
    shutil.copy(FIXTURES / "step_2000.safetensors", b / "x" / "other.safetensors")
    shutil.copy(FIXTURES / "gan.pt", a / "lonely.pt")
    (b / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    return a, b


def test_a_page_has_a_row_for_each_pair_and_its_comparison_below(folders: tuple[Path, Path]) -> None:
    found = compare_folders(*folders)
    text = page_text(folders_page(found))
    names = [a["data-verdict"] for tag, a in Tags(text).found if tag == "tr" and "data-verdict" in a]
    assert names == ["not compared", "equal", "different"]
    rows = [each["rows"] for each in data_in(text)["comparisons"]]
    assert [len(each) for each in rows] == [0, 0, 5]
    assert "<dt>A</dt>" in text
    assert found.files[1].found is not None
    assert f"None: all {found.files[1].found.compared} tensors are equal." in text
    assert "Only in A: 1" in text
    assert "<li>lonely.pt</li>" in text
    for at in range(3):
        assert f'href="#pair-{at}"' in text
        assert f'id="pair-{at}"' in text


def test_what_a_file_fails_by_stands_on_the_page(folders: tuple[Path, Path]) -> None:
    found = compare_folders(*folders)
    error = found.files[0].error
    assert error is not None
    text = page_text(folders_page(found))
    assert error.what in text
    assert error.fix in text


def test_a_pair_of_many_differences_shows_the_first_and_says_so(tmp_path: Path) -> None:
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        named = {f"w{at:03d}": np.full(2, value, np.float32) for at in range(201)}
        for name in ("one", "two"):
            save_file(named, tmp_path / folder / f"{name}.safetensors")
    text = page_text(folders_page(compare_folders(tmp_path / "a", tmp_path / "b")))
    assert [len(each["rows"]) for each in data_in(text)["comparisons"]] == [200, 200]
    assert "The first 200 of 201" in text


def test_two_folders_are_a_page_in_python_and_by_the_command(
    folders: tuple[Path, Path], run: Runner, tmp_path: Path
) -> None:
    page = tmp_path / "f.html"
    done = run("compare", *folders, "--html", page)
    assert done.returncode == 2, "a file could not be read"
    assert f"the page is in {page}" in done.stderr
    again = compare_folders(*folders)
    again.to_html(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == again.to_html()
    assert "atol=" in str(again.to_html())
    assert "--atol " in page.read_text()


def test_odd_names_are_texts_in_the_page(folders: tuple[Path, Path]) -> None:
    found = compare_folders(*folders)
    odd = "".join(ODD)
    files = tuple(replace(item, a=odd) for item in found.files)
    text = page_text(folders_page(replace(found, a=odd, files=files, only_in_b=tuple(ODD))))
    plain = page_text(folders_page(found))
    for name in ("script", "style"):
        assert Tags(text).count(name) == Tags(plain).count(name)
    assert not set(text) & {"\x1b", "\u202e", "\udc80"}


def test_in_a_browser_a_file_leads_to_what_differs_in_it(
    browser: Browser, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    page = tmp_path / "folders.html"
    write_page(folders_page(compare_folders(*folders)), page)
    for width in (1280, 375):
        browser.open(page, width=width)
        assert browser.overflow() <= 0
        assert not browser.run("return document.getElementById('pair-2').checkVisibility()")
        browser.click("a[href='#pair-2']")
        browser.until("return document.querySelector('#overview-2 svg circle')")
        browser.click("#differing-2 tbody th button")
        browser.until("return document.querySelector('#differing-2 tr.details svg rect')")
        browser.screen(f"folders-{width}")
    browser.choose("select[name=verdict]", "equal")
    assert browser.texts("#files tbody th") == ["same.safetensors"]
    browser.quiet(page)
    browser.driver.get(f"{page.as_uri()}#pair-2")
    browser.until("return document.getElementById('pair-2').checkVisibility()")
