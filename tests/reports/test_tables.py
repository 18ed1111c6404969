from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wnconvert.reports.tables import Table, shortened

LONG = "generator.resblocks.11.convs2.2.weight"
TABLE = Table(
    ("layer", "rows", "flags"),
    ((LONG, "8", "tied, so it is"), ("a", "1", "")),
    frozenset({"rows"}),
    ("layer", "flags"),
)


@given(st.text(max_size=60), st.integers(3, 60))
def test_a_shortened_text_fits_and_keeps_both_ends(text: str, room: int) -> None:
    short = shortened(text, room)
    assert len(short) <= max(room, 0) or short == text
    assert short == text if len(text) <= room else short[0] == text[0] and short[-1] == text[-1]


@pytest.mark.parametrize("width", [50, 60])
def test_a_table_gives_way_where_it_may_until_it_fits(width: int) -> None:
    assert max(map(len, TABLE.text(width).splitlines())) <= width
    assert LONG not in TABLE.text(width)


def test_a_table_that_fits_is_left_alone() -> None:
    assert TABLE.text(200) == TABLE.text()
    assert LONG in TABLE.text()


def test_csv_is_read_back_as_it_was() -> None:
    assert list(csv.reader(io.StringIO(TABLE.csv()))) == [list(TABLE.heads), *map(list, TABLE.rows)]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+1+1", "'+1+1"),
        ("-1+1", "'-1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", r"'\t=1"),
        ("\r=1", r"'\r=1"),
        ("a=1", "a=1"),
        ("-0.5", "-0.5"),
        ("-inf", "-inf"),
        ("+1e-3", "+1e-3"),
        ('a"b,c', 'a"b,c'),
        ("a\nb", r"a\nb"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("\ud800", r"\ud800"),
    ],
)
def test_a_cell_of_csv_is_no_formula_and_controls_nothing(cell: str, shown: str) -> None:
    text = Table(("layer", "n"), ((cell, "1"),)).csv()
    assert list(csv.reader(io.StringIO(text))) == [["layer", "n"], [shown, "1"]]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("dec.weight_g", "dec.weight_g"),
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("<img src=x>", r"\<img src=x\>"),
        ("a`b", r"a\`b"),
        ("[a](b)", r"\[a\](b)"),
        ("*a*", r"\*a\*"),
        ("_orig_mod.a_", r"\_orig_mod.a\_"),
        ("&lt;", r"\&lt;"),
        ("@name", "<code>@name</code>"),
        ("#1", "<code>#1</code>"),
        ("a\nb", r"a\\nb"),
    ],
)
def test_markdown_shows_a_cell_as_it_is(cell: str, shown: str) -> None:
    *_, row = Table(("layer", "n"), ((cell, "1"),)).markdown().splitlines()
    assert [part.strip() for part in row[1:-1].rsplit("|", 1)] == [shown, "1"]


def test_names_cannot_move_the_cursor() -> None:
    assert "\x1b" not in Table(("layer",), (("a\x1b[2Jb",),)).text()


def test_an_empty_table_is_its_heads() -> None:
    assert Table(("a", "b"), ()).text().splitlines()[0].split() == ["a", "b"]


def test_columns_that_may_go_give_way_in_their_order_and_are_named() -> None:
    table = Table(
        ("layer", "a", "b", "c"), (("conv.weight", "1" * 20, "2" * 20, "3" * 20),), spare=("b", "c")
    )
    assert "(no room for b: --wide)" in table.text(60)
    assert "(no room for b, c: --wide)" in table.text(40)
    assert "no room" not in table.text(100)
    assert max(map(len, table.text(60).splitlines())) <= 60


def test_columns_are_two_wider_than_their_heads_and_numbers_stand_right() -> None:
    table = Table(("layer", "rows"), ((" a ", "8"), ("conv|1", "123456789")), frozenset({"rows"}))
    assert table.text().splitlines() == [
        "layer         rows",
        "-------  ---------",
        "a                8",
        "conv|1   123456789",
    ]
    assert table.markdown().splitlines() == [
        "| layer   |      rows |",
        "|---------|-----------|",
        "| a       |         8 |",
        "| conv\\|1 | 123456789 |",
    ]
    assert Table(("a", "rows"), (), frozenset({"rows"})).markdown() == "| a   | rows   |\n|-----|--------|"
