"""Files and notebooks as code: places, encodings, magics; all that is not edited stays as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wnconvert.source.code import Edit, code_of_file, code_of_notebook, edited
from wnconvert.source.scopes import parsed


def notebook(*cells: str | list[str], **style: Any) -> bytes:
    made = [
        {"cell_type": "code", "source": cell, "outputs": [{"text": "weight_norm é"}], "metadata": {"a": 1}}
        for cell in cells
    ]
    made.insert(1, {"cell_type": "markdown", "source": "weight_norm(m)", "metadata": {}})
    data = {"cells": made, "metadata": {"kernelspec": {}}, "nbformat": 4, "nbformat_minor": 5}
    return (json.dumps(data, **style) + "\n").encode()


@pytest.mark.parametrize("style", [{"indent": 1, "ensure_ascii": False}, {"indent": 4}, {}], ids=str)
def test_a_notebook_changes_in_the_edited_source_alone(style: dict[str, Any]) -> None:
    raw = notebook("a = 1\n", ["%matplotlib inline\n", "f(b)\n", "g(c)"], **style)
    code = code_of_notebook(raw)
    at = code.code.index(b"f(b)")
    assert code.place(at) == (3, 2)
    assert code.rewritten([]) == raw
    made = code.rewritten([Edit(at, at + 1, "weight_norm")])
    assert made == raw.replace(b'"f(b)', b'"weight_norm(b)')


@pytest.mark.parametrize(
    "source",
    [
        "%matplotlib inline",
        "!ls *.py",
        "if x:\n    !pip install torch\n    f(x)",
        "files = !ls",
        "a = %timeit -o f(x)",
        "torch?",
        "%%bash\nfor i in *; do echo $i; done",
        "%%time\nf(x)",
    ],
)
def test_magics_are_no_python_and_do_not_hide_the_rest(source: str) -> None:
    code = code_of_notebook(notebook(source, "f(y)"))
    parsed(code)
    assert code.code.endswith(b"f(y)")
    assert code.place(len(code.code) - 1) == (3, 1)


@pytest.mark.parametrize("raw", [b"{}", b"[]", b"no json", b'{"cells": 1}'], ids=repr)
def test_what_is_no_notebook_is_told(raw: bytes) -> None:
    with pytest.raises(SyntaxError, match="no"):
        code_of_notebook(raw)


@pytest.mark.parametrize(
    "raw",
    [
        "# -*- coding: latin-1 -*-\nx = 'é'; f(y)\n".encode("latin-1"),
        b"\xef\xbb\xbfx = 1; f(y)\r\n",
        "x = '€'; f(y)".encode(),
    ],
    ids=["latin-1", "mark", "utf-8"],
)
def test_a_file_keeps_its_encoding_and_its_ends_of_lines(raw: bytes) -> None:
    code = code_of_file(raw)
    module = parsed(code)
    (name,) = [node for node in code.tree.body[-1:] if module.parents]
    at = code.start(name)
    assert code.rewritten([]) == raw
    assert code.rewritten([Edit(at, at + 1, "g")]) == raw.replace(b"f(y)", b"g(y)")


def test_a_wrong_encoding_is_told() -> None:
    with pytest.raises(SyntaxError):
        code_of_file("x = 'é'".encode("latin-1"))


def test_two_edits_of_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="two edits"):
        edited(b"abcd", [Edit(0, 2, "x"), Edit(1, 3, "y")])
