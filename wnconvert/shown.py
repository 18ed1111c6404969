"""Results that show themselves: in a notebook, as a frame of pandas, as a picture.

A result knows no report: all that is shown is made in ``reports``, above the verbs. So what makes it is
looked up by name when it is first asked for, as public names are; that is done here, and nowhere else.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, overload

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

__all__ = ["Drawn", "Paged", "Showing", "Shown", "showing"]


class Showing(Protocol):
    """What shows results: the module ``wnconvert.reports.notebooks``."""

    def cell_html(self, result: Shown) -> str:
        """A result as a notebook shows it, in HTML."""
        ...

    def frame(self, result: Shown) -> DataFrame:
        """The rows of a result as a frame."""
        ...

    def drawing(self, result: Drawn, ax: Axes | None) -> Axes:
        """The axes on which the numbers of a result were drawn; new ones, if none are given."""
        ...

    def model_card(self, found: Shown, report: Shown) -> str:
        """The model card of an ONNX model, of its inspection and the report of its export."""
        ...

    def page_html(self, result: Paged) -> str:
        """A result as a page of its own."""
        ...

    def write_page_of(self, result: Paged, path: str | Path, *, force: bool) -> None:
        """Write the page of a result."""
        ...


def showing() -> Showing:
    """What shows results, loaded now."""
    return cast("Showing", import_module("wnconvert.reports.notebooks"))


class Shown:
    """A result that a notebook shows as a table, and that becomes a frame of pandas."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return showing().cell_html(self)

    def to_pandas(self) -> DataFrame:
        """The rows of the result as a frame: a row for each layer, difference or output, numbers unrounded.

        docs/python.md has the columns and their units. Raises ``ArgumentError`` if pandas is not installed.
        """
        return showing().frame(self)


class Drawn(Shown):
    """A result with numbers to draw."""

    __slots__ = ()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the numbers of the result on ``ax``, or on a new figure; the axes, to change them further.

        Raises ``ArgumentError`` if matplotlib is not installed, or if there is nothing to draw.
        """
        return showing().drawing(self, ax)


class Paged:
    """A result that becomes a page."""

    __slots__ = ()

    @overload
    def to_html(self) -> str: ...

    @overload
    def to_html(self, path: str | Path, *, force: bool = False) -> None: ...

    def to_html(self, path: str | Path | None = None, *, force: bool = False) -> str | None:
        """The result as a page: one file of HTML that opens in a browser without a network.

        With a ``path`` the page is written there, and nothing returned; without one its text is returned, as
        for the ``srcdoc`` of an iframe. What was not read is not on it. Raises ``ArgumentError`` if Jinja2 is
        not installed or the path ends otherwise than in ``.html``, and ``OutputError`` if the file exists,
        unless ``force``.
        """
        if path is None:
            return showing().page_html(self)
        showing().write_page_of(self, path, force=force)
        return None
