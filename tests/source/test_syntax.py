"""Imports without some of their names, in the layouts that people have: comments and the end stay."""

from __future__ import annotations

import ast

import pytest

from wnconvert.source.syntax import behind_last_argument, without_names

IMPORTS = [
    ("from a import b, c", ["c"], "from a import b"),
    ("from a import b, c", ["b"], "from a import c"),
    ("from a import (b, c)", ["c"], "from a import (b)"),
    ("from a import (b, c,)", ["c"], "from a import (b,)"),
    ("from a import (\n    b,\n    c\n)", ["c"], "from a import (\n    b,\n)"),
    ("from a import (\n    b,  # one\n    c  # two\n)", ["c"], "from a import (\n    b,  # one\n)"),
    ("from a import (\n    b,  # one\n    c,  # two\n)", ["b"], "from a import (\n    c,  # two\n)"),
    ("from a import (b,\n              c, d)", ["c", "d"], "from a import (b,\n)"),
    ("from a import b, \\\n    c", ["c"], "from a import b"),
    ("from a import b as x, c as y", ["b"], "from a import c as y"),
]


@pytest.mark.parametrize(("before", "gone", "after"), IMPORTS)
def test_an_import_keeps_its_layout(before: str, gone: list[str], after: str) -> None:
    made, _ = without_names(before, gone)
    ast.parse(made)
    assert made == after


def test_comments_of_the_names_that_go_are_given() -> None:
    assert without_names("from a import (\n    b,  # one\n    c,  # two\n)", ["b"])[1] == {"b": "# one"}
    assert without_names("from a import b, c", ["b"])[1] == {}


@pytest.mark.parametrize(
    ("call", "before"),
    [
        ("f(m)", "f(m"),
        ("f( m , )", "f( m"),
        ("f((m))", "f((m)"),
        ("f(\n    m,  # why\n)", "f(\n    m"),
        ("a.b\\\n.f(m)", "a.b\\\n.f(m"),
        ("f(é, k='ü')", "f(é, k='ü'"),
        ("(f)(m)", "(f)(m"),
    ],
)
def test_an_argument_goes_behind_the_last_one(call: str, before: str) -> None:
    assert call.encode()[: behind_last_argument(call)].decode() == before
