"""What every page is: one file, nothing loaded, nothing run that is not its own, every text as it is."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from tests.helpers.browser import Browser
from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from wnconvert.errors import ArgumentError, OutputError
from wnconvert.reports.html import page as pages
from wnconvert.reports.html.inspections import inspection_page
from wnconvert.reports.html.page import Page, check_page, page_text, write_page
from wnconvert.verbs.inspection.inspect import inspect_file

pytest.importorskip("jinja2")

#: The charting library as its makers released it: D3 7.9.2 and Observable Plot 0.6.17.
VENDORED = {
    "d3.min.js": "912111098ea99503a6f4967361d2bbdc9dbf58cf9c678c8e27e5b02d1a07f0c1",
    "plot.umd.min.js": "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb",
    "d3.LICENSE.txt": "2a6d2d5f32ba0b755ddbc1c833f766e30cdbe6ebe9a6d4e3e24427721f0b63d3",
    "plot.LICENSE.txt": "4b295e011e0e046170041b5b46f1349393aeceb95797793a55bd21dbb543363a",
}
ODD = [
    "</script><script>alert(1)</script>",
    "<!--",
    "\"'`",
    "a\nb",
    "\x1b[2J",
    "\u202e",
    "\udc80",
    "{{ 7 * 7 }}",
    "&amp;",
]


class Tags(HTMLParser):
    """The elements of a page with their attributes, and the text in each kind."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def count(self, name: str) -> int:
        """How many elements of a name there are."""
        return sum(tag == name for tag, _ in self.found)

    def handle_data(self, data: str) -> None:
        if self.found:
            self.texts.setdefault(self.found[-1][0], []).append(data)


def odd_page() -> Page:
    """A page that has odd texts in every place where a text can be."""
    found = inspect_file(FIXTURES / "gan.pt", full=True)
    from dataclasses import replace

    layers = tuple(
        replace(layer, name=f"{odd}.weight") for layer, odd in zip(found.layers * 9, ODD, strict=False)
    )
    return inspection_page(
        replace(found, layers=layers, source="".join(ODD), notes=tuple(ODD), foreign=tuple(ODD))
    )


def test_the_charting_library_is_the_release_with_its_licence() -> None:
    folder = files("wnconvert.reports.html") / "assets" / "vendor"
    there = {item.name: hashlib.sha256(item.read_bytes()).hexdigest() for item in folder.iterdir()}
    assert there == VENDORED
    assert all(
        "Permission to use, copy, modify" in (folder / name).read_text() for name in VENDORED if "LIC" in name
    )


def test_odd_texts_of_a_file_are_texts_in_the_page() -> None:
    text = page_text(odd_page())
    plain = page_text(inspection_page(inspect_file(FIXTURES / "gan.pt", full=True)))
    # As many scripts and styles as ever, and no element that a name has made.
    odd, even = Tags(text), Tags(plain)
    for name in ("script", "style", "link", "meta"):
        assert odd.count(name) == even.count(name)
    assert not any(key.startswith("on") for _, attributes in odd.found for key in attributes)
    assert "alert(1)" in "".join(odd.texts["li"])
    assert not set(text) & {"\x1b", "\u202e", "\udc80"}
    assert r"\x1b[2J" in text
    assert "{{ 7 * 7 }}" in text
    assert "&amp;amp;" in text


def test_data_in_a_page_is_json_that_no_browser_takes_for_html() -> None:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page_text(odd_page()))
    assert not set(data) & set("<>&")
    names = [layer["name"] for layer in json.loads(data)["layers"]]
    assert any("</script><script>alert(1)</script>.weight" in name for name in names)


def test_a_page_asks_for_nothing_and_runs_only_what_stands_in_it() -> None:
    text = page_text(odd_page())
    tags = Tags(text)
    (policy,) = [
        a["content"] or "" for tag, a in tags.found if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    for tag, attributes in tags.found:
        assert "src" not in attributes, tag
        assert "style" not in attributes, tag
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))


def test_the_same_page_is_the_same_text() -> None:
    assert page_text(odd_page()) == page_text(odd_page())


def test_a_page_is_never_replaced_unless_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.html"
    path.write_text("of somebody else")
    with pytest.raises(OutputError, match="it exists") as caught:
        write_page(odd_page(), path)
    assert caught.value.fix == "--force replaces it, or choose another --html FILE"
    assert path.read_text() == "of somebody else"
    write_page(odd_page(), path, force=True)
    assert path.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_is_never_written_over_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.html"
    path.write_bytes((FIXTURES / "gan.pt").read_bytes())
    with pytest.raises(OutputError, match="it is a checkpoint"):
        write_page(odd_page(), path, force=True)
    assert path.read_bytes() == (FIXTURES / "gan.pt").read_bytes()


def test_a_result_gives_its_page_as_text_or_writes_it(tmp_path: Path) -> None:
    found = inspect_file(FIXTURES / "gan.pt", full=True)
    found.to_html(tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text() == found.to_html() == page_text(inspection_page(found))
    with pytest.raises(OutputError, match="it exists"):
        found.to_html(tmp_path / "x.html")
    found.to_html(tmp_path / "x.html", force=True)


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"is none of \.html, \.htm"):
        check_page(tmp_path / "x.pdf")


def test_without_jinja_the_extra_is_named_before_anything_is_read(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "find_spec", lambda _: None)
    done = run("inspect", "no_such_file.pt", "--html", tmp_path / "x.html")
    assert done.returncode == 2
    assert done.stderr == "error: pages need Jinja2\nfix: pip install '.[html]'\n"
    with pytest.raises(ArgumentError, match="pages need Jinja2"):
        page_text(odd_page())


@pytest.fixture(scope="module")
def odd_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "odd.html"
    write_page(odd_page(), path)
    return path


def test_odd_names_run_nothing_in_a_browser(browser: Browser, odd_file: Path) -> None:
    browser.open(odd_file)
    names = browser.texts("#layers tbody th")
    assert "</script><script>alert(1)</script>.weight" in names
    browser.click("tr[data-row] button")
    browser.quiet(odd_file)


def test_the_theme_is_that_of_the_system_until_it_is_switched(browser: Browser, odd_file: Path) -> None:
    def background() -> str:
        return str(browser.run("return getComputedStyle(document.body).backgroundColor"))

    browser.open(odd_file)
    light = background()
    browser.light("dark")
    dark = background()
    assert dark != light
    browser.click("#theme")
    assert background() == light
    assert browser.one("#theme").text == "Dark"
    browser.click("#theme")
    assert background() == dark
    browser.quiet(odd_file)
