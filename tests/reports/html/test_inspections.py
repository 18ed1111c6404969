"""The page of an inspection in a browser: found, sorted, filtered, opened, as a reader does it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.browser import Browser
from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from wnconvert.reports.html.inspections import inspection_page
from wnconvert.reports.html.page import page_text
from wnconvert.verbs.inspection.inspect import inspect_file, inspect_state_dict

pytest.importorskip("jinja2")

Made = Callable[..., Path]


@pytest.fixture
def made(run: Runner, tmp_path: Path) -> Made:
    """The page that the command line makes of a file."""

    def make(source: str | Path, *options: str) -> Path:
        path = tmp_path / "page.html"
        done = run("inspect", source, "--html", path, "--force", *options)
        assert done.returncode == 0, done.stderr
        assert f"the page is in {path}" in done.stderr
        return path

    return make


class Runs:
    """What runs a function when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def checkpoint(folder: Path, layers: int, rows: int = 8) -> Path:
    """A file of layers with rows of all kinds: some are dead by v, some by g, some negative."""
    numbers, tensors = np.random.default_rng(3), dict[str, Any]()
    for at in range(layers):
        v = numbers.standard_normal((rows, 3)).astype(np.float32)
        g = np.exp(numbers.standard_normal((rows, 1)) * 0.3).astype(np.float32)
        if at % 50 == 7:
            v[2] = 0
        if at % 50 == 9:
            g[[1, 2, 5]] = -1
        if at % 50 == 11:
            g[4] = 0
        name = f"{('enc', 'dec')[at % 2]}.blocks.{at}.conv"
        tensors |= {f"{name}.weight_g": g, f"{name}.weight_v": v, f"{name}.bias": np.zeros(rows, np.float32)}
    save_file(tensors, folder / "many.safetensors")
    return folder / "many.safetensors"


def names(browser: Browser) -> list[str]:
    return browser.texts("#layers tbody th")


def column(browser: Browser, head: str) -> list[str]:
    """The cells of the column with that head, from top to bottom."""
    heads = [text.split()[0] if " " not in head else text for text in browser.texts("#layers thead th")]
    at = [text.replace(" ↕", "").strip() for text in heads].index(head)
    return browser.texts(f"#layers tbody tr[data-row] > :nth-child({at + 1})")


# -- the last sentence of all: a stranger finds the dead rows


def test_dead_rows_of_a_spoiled_file_are_found_by_their_flag(browser: Browser, made: Made) -> None:
    page = made(FIXTURES / "zero_row.safetensors")
    browser.open(page)
    assert browser.texts("#health strong") == ["1 fault, 5 float tensors read"]
    assert browser.texts("#health li") == ["dec.0.weight has 2 zero rows in v: 2, 5"]
    browser.choose("#flag", "zero rows in v")
    assert names(browser) == ["dec.0.weight"]
    assert browser.texts(".tools output") == ["1 of 2 rows"]
    browser.click("#layers tbody tr:not([hidden]) button")
    told = dict(zip(browser.texts(".places dt"), browser.texts(".places dd"), strict=True))
    assert told["dead: v is 0"] == "2 rows: 2, 5"
    assert told["dead: g is 0"] == "1 row: 5"
    browser.quiet(page)


def test_a_fault_leads_to_its_layer(browser: Browser, made: Made) -> None:
    browser.open(made(FIXTURES / "zero_row.safetensors"))
    browser.click("#health a")
    assert browser.texts(".places dd")[0] == "2 rows: 2, 5"
    assert browser.run("return document.activeElement.textContent") == "dec.0.weight"


def test_a_nan_leads_to_the_layer_that_it_is_in_and_so_does_its_address(
    browser: Browser, made: Made, tmp_path: Path
) -> None:
    ones = np.ones((4, 3), np.float32)
    layers = {f"{name}.weight_{part}": ones[:, :size] for name in "ab" for part, size in (("g", 1), ("v", 3))}
    spoilt = ones.copy()
    spoilt[2, 1] = np.nan
    save_file(layers | {"b.weight_v": spoilt, "b.bias": spoilt[2].copy()}, tmp_path / "nan.safetensors")
    page = made(tmp_path / "nan.safetensors")
    browser.open(page)
    assert browser.texts("#health li") == ["b.bias has 1 NaN", "b.weight_v has 1 NaN"]
    assert browser.texts("#health a") == ["b.weight_v has 1 NaN"], "a bias is no layer"
    browser.run("document.querySelector('#health a').focus()")
    browser.keys("\ue007")  # Enter
    assert browser.texts(".places dd")[0] == "1 row: 2"
    assert browser.run("return document.activeElement.textContent") == "b.weight"
    browser.quiet(page)
    browser.driver.get("about:blank")
    browser.driver.get(f"{page.as_uri()}#layer-1")
    browser.until("return document.activeElement.textContent === 'b.weight'")


def test_a_healthy_file_has_no_flag_to_choose_and_no_red(browser: Browser, made: Made) -> None:
    browser.open(made(FIXTURES / "hifigan.safetensors"))
    assert browser.texts("#health") == ["healthy: 234 float tensors read"]
    assert browser.texts("#flag") == []
    assert (
        browser.run("return document.querySelectorAll('.danger, .tag, #overview [stroke*=alarm]').length")
        == 0
    )


# -- the table


def test_500_layers_sort_filter_and_stay_within_a_megabyte_and_a_half(
    browser: Browser, made: Made, tmp_path: Path
) -> None:
    page = made(checkpoint(tmp_path, 500))
    assert page.stat().st_size <= 1_500_000
    browser.open(page)
    assert len(names(browser)) == 500
    browser.click("#layers thead th:nth-child(5) button")
    assert browser.texts("[aria-sort]") == ["|g| mean ↓"] or browser.texts("[aria-sort]") == ["|g| mean"]
    means = list(map(float, column(browser, "|g| mean")))
    assert means == sorted(means, reverse=True)
    browser.click("#layers thead th:nth-child(5) button")
    means = list(map(float, column(browser, "|g| mean")))
    assert means == sorted(means)
    browser.click("#layers thead th:first-child button")
    assert names(browser)[:3] == [
        "dec.blocks.1.conv.weight",
        "dec.blocks.3.conv.weight",
        "dec.blocks.5.conv.weight",
    ]
    browser.type("#layers-search", "ENC 49")
    assert (
        names(browser) == [name for name in names(browser) if name.startswith("enc.") and "49" in name] != []
    )
    browser.type("#layers-search", "")
    browser.choose("#flag", "negative g")
    assert len(names(browser)) == 10
    assert "10 layers" in browser.texts("#overview-note")[0]
    assert browser.one("#overview svg").get_attribute("aria-label").startswith("|g| of 10 layers")
    assert browser.overflow() <= 0
    browser.quiet(page)


def test_a_layer_opens_by_a_key_and_its_charts_have_the_rows(browser: Browser, made: Made) -> None:
    page = made(FIXTURES / "vits.pth")
    browser.open(page)
    browser.run("document.querySelector('#layers tbody button').focus()")
    browser.keys("\ue007")  # Enter
    assert browser.one("#layers tbody button").get_attribute("aria-expanded") == "true"
    browser.until("return document.querySelectorAll('.spreads svg').length === 3")
    assert browser.texts(".spreads figcaption") == [
        "|g| over 16 rows", "‖v‖ over 16 rows", "|g|/‖v‖ over 16 rows",
    ]  # fmt: skip
    assert (
        dict(zip(browser.texts(".places dt"), browser.texts(".places dd"), strict=True))["negative g"]
        == "1 row: 3"
    )
    browser.keys(" ")
    assert browser.texts(".spreads figcaption") == []
    browser.quiet(page)


def test_the_form_is_a_filter_where_there_are_several(browser: Browser, made: Made) -> None:
    browser.open(made(FIXTURES / "vits.pth"))
    browser.choose("select[name=form]", "legacy")
    assert column(browser, "form") == ["legacy"] * 4


# -- the picture of all layers


def test_pointing_at_a_layer_names_it_and_a_click_opens_it(browser: Browser, made: Made) -> None:
    page = made(FIXTURES / "vits.pth")
    browser.open(page)
    browser.until("return document.querySelector('#overview svg')")
    browser.hover(browser.one("#overview"))
    browser.until("return document.querySelector('#overview [aria-label=tip] text')")
    told = browser.one("#overview [aria-label=tip]").text
    assert "enc_q.enc.res_skip_layers.0.weight" in told
    assert "24 rows" in told
    browser.click("#overview")
    assert browser.texts(".spreads figcaption")[0] == "|g| over 24 rows"
    browser.quiet(page)


def test_keys_go_from_layer_to_layer_in_the_picture_and_say_what_stands_there(
    browser: Browser, made: Made
) -> None:
    page = made(FIXTURES / "vits.pth")
    browser.open(page)
    browser.until("return document.querySelector('#overview svg')")
    first, second = names(browser)[:2]
    browser.run("document.querySelector('#overview svg').focus()")
    for key, name in (("", first), ("\ue014", second), ("\ue012", first)):  # right, left
        browser.keys(key)
        browser.until(f"return document.getElementById('spoken').textContent.includes('{name}, min ')")
        assert name in browser.one("#overview [aria-label=tip]").text
    browser.keys("\ue00c")  # Escape
    browser.until("return !document.querySelector('#overview [aria-label=tip] text')")
    browser.keys("\ue014", "\ue007")  # right, Enter
    browser.until("return document.querySelector('tr.open')")
    browser.quiet(page)


def test_on_paper_all_modules_stand_open_and_afterwards_as_they_were(browser: Browser, made: Made) -> None:
    browser.open(made(FIXTURES / "g_02500000"))
    before = len(browser.texts(".tree a"))
    assert browser.pdf().startswith(b"%PDF")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert len(browser.texts(".tree a")) == 78
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert len(browser.texts(".tree a")) == before < 78


def test_another_measure_is_drawn_when_it_is_chosen(browser: Browser, made: Made) -> None:
    browser.open(made(FIXTURES / "vits.pth"))
    browser.click("#measures input[value=ratio]")
    browser.until(
        "return document.querySelector('#overview svg').getAttribute('aria-label').startsWith('|g|/‖v‖')"
    )


# -- modules, names, other normalizations


def test_the_tree_of_modules_opens_closes_and_leads_to_layers(browser: Browser, made: Made) -> None:
    browser.open(made(FIXTURES / "g_02500000"))
    seen = browser.texts(".tree .name")
    assert "ups" in seen
    assert "resblocks" in seen
    assert not any(name.startswith("11") for name in seen)
    browser.click("#unfold")
    assert len(browser.texts(".tree a")) == 78
    browser.click(".tree a[data-layer='77']")
    assert browser.run("return document.activeElement.textContent") == "conv_post.weight"
    browser.click("#enfold")
    assert browser.texts(".tree a") == []


def test_foreign_names_are_red_and_other_normalizations_are_listed(browser: Browser, made: Made) -> None:
    browser.open(made(FIXTURES / "lightning.ckpt"))
    assert browser.texts(".notice ul.alarm li") == ["acme_tts.configs.AudioConfig"]
    assert browser.texts("#kinds tbody th") == ["affine norm"]


def test_a_name_that_would_run_something_is_told_first_and_in_red(
    browser: Browser, made: Made, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"state": {"a": torch.ones(2)}, "config": Runs()}, tmp_path / "in.pt")
    browser.open(made(tmp_path / "in.pt"))
    assert browser.texts(".danger[role=alert] li") == ["posix.getcwd"]


# -- narrow, printed, other containers


@pytest.mark.parametrize("source", ["vits.pth", "zero_row.safetensors", "kinds.pt", "lightning.ckpt"])
def test_nothing_is_wider_than_a_telephone(browser: Browser, made: Made, source: str) -> None:
    page = made(FIXTURES / source)
    browser.open(page, width=375)
    browser.run("document.querySelector('#layers tbody button').click()")
    browser.until("return document.querySelector('#overview svg') || !document.querySelector('#overview')")
    assert browser.overflow() <= 0
    browser.screen(f"{source}-375")
    browser.resize(1280)
    assert browser.overflow() <= 0
    browser.screen(f"{source}-1280")
    browser.quiet(page)


def test_the_page_prints_with_every_layer(browser: Browser, made: Made, tmp_path: Path) -> None:
    browser.open(made(checkpoint(tmp_path, 200)))
    pages = len(re.findall(rb"/Type\s*/Page\b", browser.pdf()))
    assert pages >= 5  # the table is not cut where it scrolls


@pytest.mark.parametrize(
    "source", ["tcn.onnx", "sharded", "distributed", "arrays.npz", "program.pt2", "plain.pt"]
)
def test_every_container_becomes_a_page(browser: Browser, made: Made, source: str) -> None:
    page = made(FIXTURES / source)
    browser.open(page)
    assert browser.texts("h1") == [source]
    assert len(names(browser)) == len(inspect_file(FIXTURES / source, full=True).layers)
    assert len(browser.texts("dd.mono")[1]) == 64  # sha256
    browser.quiet(page)


def test_a_state_dict_in_memory_becomes_a_page_without_commands() -> None:
    found = inspect_state_dict(
        {"a.weight_g": np.ones((2, 1), np.float32), "a.weight_v": np.ones((2, 3), np.float32)}
    )
    text = page_text(inspection_page(found))
    assert "it was in memory" in text
    assert "wnconvert fold" not in text


# -- the data, and the report beside it


def test_the_numbers_on_the_page_are_those_of_the_inspection() -> None:
    found = inspect_file(FIXTURES / "vits.pth", full=True)
    text = page_text(inspection_page(found))
    (data,) = re.findall(r'id="data">(.*?)</script>', text)
    for layer, drawn in zip(found.layers, json.loads(data)["layers"], strict=True):
        assert layer.g is not None
        assert layer.details is not None
        assert layer.details.g is not None
        assert drawn["g"] == pytest.approx([
            layer.g.min, layer.g.q1, layer.g.median, layer.g.mean, layer.g.q3, layer.g.max,
        ], rel=1e-5)  # fmt: skip
        assert drawn["details"]["g"][3:] == list(layer.details.g.counts)
        assert sum(drawn["details"]["g"][3:]) == layer.rows


def test_the_page_has_all_layers_whatever_the_report_shows(run: Runner, tmp_path: Path) -> None:
    done = run("inspect", FIXTURES / "g_02500000", "--top", "2", "--html", tmp_path / "x.html")
    assert len([line for line in done.stdout.splitlines() if ".weight" in line]) == 2
    assert "sha256" not in done.stdout
    assert (tmp_path / "x.html").read_text().count("<tr id=") == 78


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("my model.pt", "'my model.pt'"),
        ("-x.pt", "./-x.pt"),
        ("it's.pt", "'it'\"'\"'s.pt'"),
        ("a\nb.pt", r"$'a\nb.pt'"),
    ],
)
def test_a_command_to_copy_is_one_that_a_shell_reads(name: str, word: str) -> None:
    from dataclasses import replace

    found = replace(inspect_file(FIXTURES / "gan.pt"), source=name)
    verbs = inspection_page(found).shown["verbs"]
    assert verbs[0].command == f"wnconvert fold {word}"


def test_a_model_of_onnx_and_other_normalizations_have_their_commands() -> None:
    model, kinds, plain = FIXTURES / "normed.onnx", FIXTURES / "kinds.pt", FIXTURES / "misfit.safetensors"
    assert f">wnconvert fold {model}<" in page_text(inspection_page(inspect_file(model)))
    words = "prune,spectral,weight"
    assert f">wnconvert fold {kinds} --kinds {words}<" in page_text(inspection_page(inspect_file(kinds)))
    assert "--kinds" not in str(inspection_page(inspect_file(plain)).shown["verbs"])


def test_the_command_for_other_normalizations_folds_them_all(run: Runner, tmp_path: Path) -> None:
    found = inspect_file(FIXTURES / "kinds.pt")
    command = next(
        verb.command for verb in inspection_page(found).shown["verbs"] if "--kinds" in verb.command
    )
    done = run(*command.split()[1:], "-o", tmp_path / "out.pt")
    assert done.returncode == 0, done.stderr
    assert not inspect_file(tmp_path / "out.pt").kinds


def test_a_file_without_tensors_has_no_tree(browser: Browser, made: Made, tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    page = made(tmp_path / "none.safetensors", "--full")
    browser.open(page)
    assert browser.texts("h2") == ["Layers"]
    browser.quiet(page)


def test_a_long_name_stands_beside_its_mark_and_level_with_its_numbers(
    browser: Browser, made: Made, tmp_path: Path
) -> None:
    ones = np.ones((2, 3), np.float32)
    save_file({f"{'x' * 300}.weight_g": ones[:, :1], f"{'x' * 300}.weight_v": ones}, tmp_path / "long")
    browser.open(made(tmp_path / "long"))
    range_of = "const r = document.createRange(); r.selectNodeContents(arguments[0]);"
    top = f"{range_of} return r.getClientRects()[0].top"
    name, number = (browser.one(f"#layers tbody tr {css}") for css in ("button", "td.number"))
    assert abs(browser.run(top, name) - browser.run(top, number)) < 4
    assert browser.texts(".tools output") == ["1 row"]


def test_every_line_of_a_logarithmic_axis_has_its_number(
    browser: Browser, made: Made, tmp_path: Path
) -> None:
    g = np.array([[0.04], [3]], np.float32)
    save_file({"a.weight_g": g, "a.weight_v": np.ones((2, 3), np.float32)}, tmp_path / "wide")
    browser.open(made(tmp_path / "wide"))
    texts = "document.querySelectorAll(\"#overview [aria-label='y-axis tick label'] text\")"
    ticks = browser.run(f"return [...{texts}].map((each) => each.textContent)")
    assert ticks == ["0.05", "0.1", "0.2", "0.5", "1", "2"]
