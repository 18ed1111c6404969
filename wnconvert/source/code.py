"""Python code as bytes with the places of its lines: a file's, or that of a notebook's cells in a row.

Bytes in, bytes out: no file is opened here. All positions are offsets in the code in UTF-8.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from wnconvert.frozen import dataclass

__all__ = ["Code", "Edit", "code_of_file", "code_of_notebook", "edited"]


_LINE = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Edit:
    """The bytes from ``start`` to ``end`` are replaced by a text."""

    start: int
    end: int
    text: str


def edited(code: bytes, edits: Sequence[Edit], start: int = 0) -> bytes:
    """Code after edits that do not overlap; ``start`` is the offset of its first byte.

    >>> edited(b"f(a)", [Edit(0, 1, "g"), Edit(3, 3, ", b")])
    b'g(a, b)'
    """
    parts, done = [], 0
    for edit in sorted(edits, key=lambda one: (one.start, one.end)):
        first = edit.start - start
        if first < done:
            raise ValueError(f"two edits of the same code at {edit.start}")
        parts += [code[done:first], edit.text.encode()]
        done = edit.end - start
    return b"".join([*parts, code[done:]])


@dataclass(frozen=True)
class Code:
    """The code of a file, parsed; ``cells`` are the spans of a notebook's cells, and empty for a file."""

    code: bytes
    raw: bytes
    encoding: str = "utf-8"
    cells: tuple[tuple[int, int, int], ...] = ()

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree. Raises ``SyntaxError``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in its strings
            return ast.parse(self.code.decode())

    @cached_property
    def starts(self) -> list[int]:
        """The offsets of all lines."""
        return [0, *(found.end() for found in _LINE.finditer(self.code))]

    @cached_property
    def newline(self) -> str:
        """How its lines end."""
        found = _LINE.search(self.code)
        return found[0].decode() if found else "\n"

    def start(self, node: Any) -> int:
        """The offset of a node's first byte."""
        return int(self.starts[node.lineno - 1] + node.col_offset)

    def end(self, node: Any) -> int:
        """The offset behind a node's last byte."""
        return int(self.starts[node.end_lineno - 1] + node.end_col_offset)

    def text(self, node: Any) -> str:
        """A node as it is written."""
        return self.code[self.start(node) : self.end(node)].decode()

    def line(self, at: int) -> bytes:
        """The line in which an offset lies, without its end."""
        first = bisect_right(self.starts, at) - 1
        last = self.starts[first + 1] if first + 1 < len(self.starts) else len(self.code)
        return self.code[self.starts[first] : last].rstrip(b"\r\n")

    def place(self, at: int) -> tuple[int | None, int]:
        """The cell (None in a file) and the line in it, both counted from 1."""
        line = bisect_right(self.starts, at)
        for number, start, end in self.cells:
            if start <= at <= end:
                return number, line - bisect_right(self.starts, start) + 1
        return None, line

    def rewritten(self, edits: Sequence[Edit]) -> bytes:
        """The whole file after edits of its code."""
        if self.cells:
            return _notebook_with(self, edits)
        return edited(self.code, edits).decode().encode(self.encoding)


def code_of_file(raw: bytes) -> Code:
    """The code of a Python file. Raises ``SyntaxError`` if its encoding is not known, or not kept to."""
    encoding = tokenize.detect_encoding(io.BytesIO(raw).readline)[0]
    try:
        code = raw.decode(encoding).encode()
    except UnicodeDecodeError as error:
        raise SyntaxError(f"it is not {encoding}") from error
    return Code(code, raw, encoding)


# -- notebooks


#: Lines that IPython understands and Python does not: magics, shell commands, and questions.
_MAGIC = re.compile(rb"(?m)^([ \t]*)(?:[%!?]|[\w., \t]+=[ \t]*[%!]|[\w.]+\?+[ \t]*$)[^\r\n]*")


def code_of_notebook(raw: bytes) -> Code:
    """The code of a notebook: its code cells, with magics masked by as many bytes.

    Raises ``SyntaxError`` if it is not a notebook.
    """
    parts: list[bytes] = []
    cells, at = [], 0
    for number, cell in enumerate(_cells(raw), 1):
        if cell.get("cell_type") == "code":
            part = _masked(_source(cell).encode())
            cells.append((number, at, at + len(part)))
            parts.append(part)
            at += len(part) + 1
    return Code(b"\n".join(parts), raw, cells=tuple(cells))


def _cells(raw: bytes) -> list[Any]:
    try:
        found = json.loads(raw)["cells"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SyntaxError("it is not a notebook of version 4") from error
    if not isinstance(found, list):
        raise SyntaxError("it is not a notebook of version 4")
    return found


def _source(cell: Any) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def _masked(code: bytes) -> bytes:
    """Code without magics: such a line is a number and a comment."""
    if code.lstrip().startswith(b"%%"):
        return re.sub(rb"(?m)^[^\r\n]", b"#", code)
    return _MAGIC.sub(lambda found: (found[1] + b"0#").ljust(len(found[0]), b"#")[: len(found[0])], code)


def _notebook_with(code: Code, edits: Sequence[Edit]) -> bytes:
    """The notebook with edits in the sources of its cells: all else stays, in the style it is written in."""
    data = json.loads(code.raw)
    for number, start, end in code.cells:
        own = [edit for edit in edits if start <= edit.start <= end]
        if own:
            cell = data["cells"][number - 1]
            source = edited(_source(cell).encode(), own, start).decode()
            cell["source"] = source if isinstance(cell["source"], str) else source.splitlines(keepends=True)
    return _in_style(data, code.raw)


def _in_style(data: Any, raw: bytes) -> bytes:
    """JSON as a file has it: with its indentation, its escapes and its last newline."""
    text, old = raw.removeprefix(_BOM).decode(), json.loads(raw)
    tail = text[len(text.rstrip()) :]
    for indent in (1, 2, 4, None):
        for ascii_only in (False, True):
            if json.dumps(old, indent=indent, ensure_ascii=ascii_only) == text.rstrip():
                return (json.dumps(data, indent=indent, ensure_ascii=ascii_only) + tail).encode()
    return (json.dumps(data, indent=1, ensure_ascii=False) + tail).encode()
