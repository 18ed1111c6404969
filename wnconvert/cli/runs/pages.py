"""The page that a command writes of its result, beside what it prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from wnconvert.cli.terminal import mention
from wnconvert.frozen import dataclass
from wnconvert.messages import printable

if TYPE_CHECKING:
    from wnconvert.reports.html.page import Page

__all__ = ["FORCE_PAGE", "HTML_PAGE", "PageFile"]


HTML_PAGE = click.option(
    "--html",
    type=click.Path(),
    metavar="FILE",
    help="Write the result as a page that opens in a browser, offline.",
)
FORCE_PAGE = click.option("-f", "--force", is_flag=True, help="Replace the page if it exists.")


@dataclass(frozen=True, slots=True)
class PageFile:
    """Where a page goes, if one is asked for, and whether it may replace a file."""

    path: str | None
    force: bool

    def check(self) -> None:
        """Raise for a page that cannot be written, before anything is read."""
        if self.path is not None:
            from wnconvert.reports.html.page import check_page

            check_page(self.path, force=self.force)

    def write(self, page: Callable[[], Page]) -> None:
        """Write the page, if one is asked for, and say where it is."""
        if self.path is None:
            return
        from wnconvert.reports.html.page import write_page

        notes = write_page(page(), self.path, force=self.force)
        for note in (f"the page is in {printable(self.path)}", *notes):
            mention(note)
