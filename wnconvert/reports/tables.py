"""Tables of text: aligned for a terminal, as Markdown, HTML, CSV; long names are shortened in the middle."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.messages import printable

__all__ = [
    "Table",
    "bytes_text",
    "distance_text",
    "exact_text",
    "html_text",
    "layer_table",
    "markdown_text",
    "number_text",
    "shortened",
]


@dataclass(frozen=True, slots=True)
class Table:
    """Heads and rows of text.

    ``right`` names the columns of numbers. If the table is too wide, ``elastic`` columns are shortened and
    then ``spare`` columns left out, in the order given.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()
    elastic: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()

    def text(self, width: int | None = None) -> str:
        """Aligned columns, in ``width`` characters if that is given and possible.

        >>> print(Table(("layer", "rows"), (("conv.weight", "8"),), frozenset({"rows"})).text())
        layer          rows
        -----------  ------
        conv.weight       8
        """
        table = self if width is None else self._fitted(width)
        lines = [line.rstrip() for line in table._rendered("simple").split("\n")]
        left_out = [head for head in self.heads if head not in table.heads]
        return "\n".join([*lines, *([f"(no room for {', '.join(left_out)}: --wide)"] if left_out else [])])

    def markdown(self) -> str:
        """A pipe table of GitHub's Markdown."""
        rows = tuple(tuple(map(markdown_text, row)) for row in self.rows)
        right = frozenset(map(markdown_text, self.right))
        return Table(tuple(map(markdown_text, self.heads)), rows, right)._rendered("github")

    def html(self, most: int) -> str:
        """A table of HTML that shows the first ``most`` rows, and counts the others.

        >>> print(Table(("layer",), (("<b>",), ("c",), ("d",))).html(1))
        <table><thead><tr><th style="text-align:left">layer</th></tr></thead><tbody>
        <tr><td style="text-align:left">&lt;b&gt;</td></tr>
        <tr><td style="text-align:left" colspan="1">… 2 more</td></tr>
        </tbody></table>
        """
        sides = ["right" if head in self.right else "left" for head in self.heads]

        def row(cells: Sequence[str], kind: str) -> str:
            shown = (
                f'<{kind} style="text-align:{side}">{html_text(cell)}</{kind}>'
                for cell, side in zip(cells, sides, strict=True)
            )
            return f"<tr>{''.join(shown)}</tr>"

        lines = [f"<table><thead>{row(self.heads, 'th')}</thead><tbody>"]
        lines += [row(cells, "td") for cells in self.rows[:most]]
        if left := len(self.rows[most:]):
            more = f'<td style="text-align:left" colspan="{len(self.heads)}">… {left} more</td>'
            lines.append(f"<tr>{more}</tr>")
        return "\n".join([*lines, "</tbody></table>"])

    def csv(self) -> str:
        """Comma-separated values with a head line; quotes where needed.

        A cell that a spreadsheet would compute has a ``'`` before it.
        """
        import csv  # which tables on a terminal do not need

        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows(map(_csv_text, row) for row in (self.heads, *self.rows))
        return out.getvalue().rstrip("\n")

    def _rendered(self, style: str) -> str:
        """The lines in a style; a column is as wide as its widest cell, or two wider than its head."""
        heads, *rows = ([printable(cell).strip() for cell in row] for row in (self.heads, *self.rows))
        widths = [max(len(head) + 2, *(len(row[at]) for row in rows), 0) for at, head in enumerate(heads)]
        pads = [str.rjust if rows and head in self.right else str.ljust for head in self.heads]
        first, *others = (
            [pad(cell, width) for cell, width, pad in zip(cells, widths, pads, strict=True)]
            for cells in (heads, *rows)
        )
        if style == "github":
            rule = ["-" * width for width in widths]
            return "\n".join([_piped(first), _piped(rule).replace(" ", "-"), *map(_piped, others)])
        return "\n".join("  ".join(cells) for cells in (first, ["-" * width for width in widths], *others))

    def _fitted(self, width: int) -> Table:
        table = self
        for at in (self.heads.index(head) for head in self.elastic if head in self.heads):
            excess = max(map(len, table._rendered("simple").splitlines())) - width
            if excess > 0 and table.rows:
                room = max(max(len(row[at]) for row in table.rows) - excess, 20)
                cells = _told_apart([row[at] for row in table.rows], room)
                rows = tuple(
                    (*row[:at], cell, *row[at + 1 :]) for row, cell in zip(table.rows, cells, strict=True)
                )
                table = replace(table, rows=rows)
        for head in self.spare:
            if head in table.heads and max(map(len, table._rendered("simple").splitlines())) > width:
                table = table._without(table.heads.index(head))
        return table

    def _without(self, at: int) -> Table:
        rows = tuple((*row[:at], *row[at + 1 :]) for row in self.rows)
        return replace(self, heads=(*self.heads[:at], *self.heads[at + 1 :]), rows=rows)


def _piped(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def _told_apart(texts: Sequence[str], room: int) -> list[str]:
    """Texts in ``room`` characters, or in more if different texts would become equal."""
    different = len(set(texts))
    while True:
        short = [shortened(text, room) for text in texts]
        if len(set(short)) == different:
            return short
        room += 4


def shortened(text: str, room: int) -> str:
    """A text in ``room`` characters, cut in the middle, because both ends of a name carry information.

    >>> shortened("generator.resblocks.11.convs2.2.weight", 21)
    'generator.…2.2.weight'
    """
    if len(text) <= room:
        return text
    head = (room - 1) // 2
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"


_MARKDOWN = re.compile(r"[\\`*\[\]<>&|~]|(?<![^\W_])_+|_+(?![^\W_])")
#: What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def markdown_text(text: str) -> str:
    r"""A text that Markdown shows as it is; where GitHub would call someone, in the type of code.

    >>> print(*map(markdown_text, ["dec.weight_g", "<img>", "a|b", "@me"]))
    dec.weight_g \<img\> a\|b <code>@me</code>
    """
    shown = _MARKDOWN.sub(lambda found: "".join(f"\\{char}" for char in found[0]), printable(text))
    return f"<code>{shown}</code>" if "@" in text or "#" in text else shown


def html_text(text: str) -> str:
    r"""A text that HTML shows as it is, whatever is in it.

    >>> print(html_text("<b>" + chr(27)))
    &lt;b&gt;\x1b
    """
    import html

    return html.escape(printable(text))


def _csv_text(text: str) -> str:
    """A cell of CSV, which must be neither a formula nor control a terminal."""
    shown = printable(text)
    return f"'{shown}" if text.startswith(_FORMULA) and not _is_number(text) else shown


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def exact_text(value: float | None) -> str:
    """A number with all its digits; ``""`` for None."""
    return "" if value is None else repr(value)


def number_text(value: float | None) -> str:
    """A number with four significant digits; ``""`` for None.

    >>> number_text(0.123456), number_text(12), number_text(None)
    ('0.1235', '12', '')
    """
    return "" if value is None else f"{value:.4g}"


def distance_text(value: float | None, unmatched: int) -> str:
    """The largest distance, or how many elements have none: they are NaN or infinite on one side only.

    >>> distance_text(0.123456, 0), distance_text(None, 2)
    ('0.1235', '2 NaN/inf')
    """
    return f"{unmatched:,} NaN/inf" if unmatched else number_text(value)


def bytes_text(count: int) -> str:
    """A number of bytes in decimal units.

    >>> bytes_text(999), bytes_text(1_234_567)
    ('999 B', '1.2 MB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


# -- rows of layers


_HEADS = {"state_dict": "state dict", "zero_rows": "zero rows"}
_RIGHT = frozenset(("dim", "rows", "zero rows", "zeros", "count", "tensors", "parameters", "bytes"))


def layer_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    number: Callable[[float | None], str] = number_text,
    name: str = "layer",
) -> Table:
    """Rows of named values as a table; if they are of several state dicts, these are the first column.

    ``name`` is the head of the column of names.
    """
    if len({row["state_dict"] for row in rows}) > 1:
        columns = ["state_dict", *columns]
    heads = tuple((_HEADS | {"name": name}).get(column, column) for column in columns)
    cells = tuple(tuple(_cell(row, column, number) for column in columns) for row in rows)
    right = _RIGHT | {head for head in heads if head.startswith(("|", "‖", "g/", "σ"))}
    spare = ("‖v‖ mean", "|g| min", "|g| max", "g/‖v‖ min", "‖u‖", "dtype", "form", "dim")
    return Table(heads, cells, right, elastic=(name, "flags"), spare=spare)


def _cell(row: Mapping[str, Any], column: str, number: Callable[[float | None], str]) -> str:
    value = row[column]
    if column in ("dim", "shape") and row["form"] in ("refused", "computed"):
        return ""  # it is not known
    if column == "dim":
        return "none" if value is None else str(value)
    if column == "shape":
        return "×".join(map(str, value)) or "()"
    if column == "flags":
        return ", ".join(value)
    return number(value) if value is None or isinstance(value, float) else str(value)
