"""What a cell of a notebook shows: the table of the command line, few rows of it, every text escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.reports import comparison, export_report
from wnconvert import compare_files, fold_file, inspect_file, inspect_state_dict
from wnconvert.reports import notebooks
from wnconvert.reports.text.conversions import plan_text
from wnconvert.shown import Shown

if TYPE_CHECKING:
    from wnconvert.shown import Showing

#: The module that results look up is what they take it for, which mypy holds.
showing: Showing = notebooks

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\n$x$"
SHOWN = "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;\\x1b[31m\\n$x$"


def html(result: Shown) -> str:
    return result._repr_html_()


def rows(text: str) -> list[list[str]]:
    """The rows of all tables, without their heads."""
    bodies = re.findall(r"<tr>(<td.*?)</tr>", text)
    return [[unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", body)] for body in bodies]


def test_a_plan_of_many_layers_shows_twenty_and_counts_the_others() -> None:
    plan = fold_file(FIXTURES / "g_02500000", dry_run=True)
    text = html(plan)
    *shown, last = rows(text)
    assert len(shown) == 20
    assert last == ["… 58 more"]
    printed = plan_text(plan, "x").splitlines()[2:22]
    assert [re.split(r" {2,}", line) for line in printed] == [[cell for cell in row if cell] for row in shown]
    assert "<br>" not in text
    assert "would write: 78 layers folded, 78 tensors kept" in text
    assert len(text) < 12_000


def test_of_twenty_layers_none_is_left_out_and_of_twenty_one_one_is() -> None:
    def inspected(count: int) -> list[list[str]]:
        pairs = {
            f"l{at}.weight_{half}": np.ones((2, size))
            for at in range(count)
            for half, size in (("g", 1), ("v", 3))
        }
        return rows(html(inspect_state_dict(pairs)))

    assert len(inspected(20)) == 20
    assert inspected(21)[19:] == [inspected(20)[19], ["… 1 more"]]


def test_a_result_says_what_was_done_where(tmp_path: Path) -> None:
    result = fold_file(FIXTURES / "gan.pt", tmp_path / "out.pt", verify=True)
    text = html(result)
    assert f"{tmp_path / 'out.pt'}: " in text
    assert "read back and recomputed by" in text
    nothing = html(fold_file(FIXTURES / "plain.pt", tmp_path / "no.pt"))
    assert "nothing is written: 0 layers folded" in nothing
    assert "note: nothing to fold" in nothing
    assert rows(nothing) == []


def test_an_inspection_shows_its_facts_and_options_as_python_spells_them() -> None:
    text = html(inspect_file(FIXTURES / "do_02500000", full=True))
    assert "<b>fold</b>: would make 9 plain weights" in text
    assert "<b>health</b>: healthy" in text
    assert "kinds=&quot;spectral&quot;" in text
    assert "--kinds" not in text


def test_a_comparison_shows_what_differs_and_its_verdict(tmp_path: Path) -> None:
    text = html(comparison(tmp_path))
    assert [row[0] for row in rows(text)] == ["shape", "values"]
    assert "only in" in text
    assert "different: 3 tensors compared" in text
    equal = html(compare_files(FIXTURES / "g_02500000", FIXTURES / "hifigan.safetensors"))
    assert rows(equal) == []
    assert "equal: 156 tensors compared" in equal


@pytest.mark.parametrize(
    ("off", "verdict"), [(1e-6, "equal to Net in torch"), (1.0, "different from Net in torch")]
)
def test_a_report_shows_a_row_for_each_output_and_its_verdict(off: float, verdict: str) -> None:
    text = html(export_report(off))
    assert [row[0] for row in rows(text)] == ["output"]
    assert verdict in text


def test_what_would_have_passed_is_said_as_python_spells_it(tmp_path: Path) -> None:
    for result, said in (
        (comparison(tmp_path), "atol=0.5 or rtol=0.334"),
        (export_report(1.0), "rtol=2.2 would"),
    ):
        text = html(result)
        assert said in text
        assert "--" not in text


def test_every_text_of_a_file_is_escaped(tmp_path: Path) -> None:
    pair = {
        f"{HOSTILE}.weight_g": np.ones((2, 1), np.float32),
        f"{HOSTILE}.weight_v": np.ones((2, 3), np.float32),
    }
    found = inspect_state_dict(pair)
    hostile = replace(
        found,
        source=HOSTILE,
        dangerous=(HOSTILE,),
        foreign=(HOSTILE,),
        notes=(HOSTILE,),
        metadata={HOSTILE: HOSTILE},
    )
    compared = replace(comparison(tmp_path), a=HOSTILE, only_in_a=(HOSTILE,), notes=(HOSTILE,))
    plan = replace(fold_file(FIXTURES / "gan.pt", dry_run=True), notes=(HOSTILE,), copied=(HOSTILE,))
    proven = replace(
        export_report(1.0, HOSTILE, HOSTILE), reference=HOSTILE, notes=(HOSTILE,), remedy=HOSTILE
    )
    for result, least in ((hostile, 6), (compared, 3), (plan, 2), (proven, 5)):
        text = html(result)
        assert text.count(SHOWN) >= least, text
        assert not re.search(r"<script|\x1b|alert\(1\)</", text)
        assert set(re.findall(r"</?(\w+)", text)) <= {
            "div",
            "p",
            "b",
            "br",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
        }


def test_a_notebook_takes_no_dollar_sign_for_a_formula() -> None:
    assert html(inspect_file(FIXTURES / "gan.pt")).startswith('<div class="tex2jax_ignore mathjax_ignore">')
