"""A page: one file of HTML with its styles, scripts and data in it, which asks nobody for anything.

A kind of page is a template, a script and a style of its name (the last two only where it needs them). All
text of a file goes through ``printable`` and Jinja's escaping, all data through ``_as_json``. The policy of
the page lets the browser run just the scripts and styles that stand here, by their hashes, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wnconvert import __version__
from wnconvert.errors import ArgumentError, OutputError
from wnconvert.frozen import dataclass
from wnconvert.messages import printable, refuse_other_than_path, to_install
from wnconvert.reports.plots import is_checkpoint
from wnconvert.reports.tables import bytes_text
from wnconvert.storage.staging import check_target, staged
from wnconvert.verbs.shared.leftovers import cleaned_leftovers

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Page", "check_page", "page_text", "write_page"]


_SUFFIXES = (".html", ".htm")
_ASSETS = files("wnconvert.reports.html") / "assets"
_LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
#: The style that the charting library puts into each of its charts, allowed by its hash as ours is.
_CHART_STYLE = """:where(.plot-d6a7b5) {
  --plot-background: white;
  display: block;
  height: auto;
  height: intrinsic;
  max-width: 100%;
}
:where(.plot-d6a7b5 text),
:where(.plot-d6a7b5 tspan) {
  white-space: pre;
}"""


@dataclass(frozen=True, slots=True)
class Page:
    """What a page is made of.

    ``kind`` names its template ``templates/KIND.html``, and its own ``assets/KIND.js`` and
    ``assets/KIND.css`` where there are such. ``title`` is the head of the page, ``about`` the line above
    it, such as the command. ``shown`` is what the template shows, by name. ``data`` is what scripts draw:
    numbers, texts, lists and mappings by text. ``media`` allows sounds and pictures that are in the page as
    ``data:`` URIs. ``uses`` are other kinds whose scripts and styles draw parts of it.
    """

    kind: str
    title: str
    about: str
    shown: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    media: bool = False
    uses: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the assets of its own, which stand behind those of every page."""
        return (*self.uses, self.kind)


def check_page(path: str | Path, *, force: bool = False) -> None:
    """Raise for a page that cannot be written there, before anything is read.

    ``ArgumentError``: another suffix than ``.html``, or Jinja2 is not installed; ``OutputError``: the file
    exists (and there is no ``force``, or it is a checkpoint), or its folder does not.
    """
    refuse_other_than_path(path, "a page")
    if Path(path).suffix not in _SUFFIXES:
        raise ArgumentError(f"{path} is none of {', '.join(_SUFFIXES)}", fix="end its name in .html")
    _check_jinja()
    if is_checkpoint(path):
        raise OutputError(
            "it is a checkpoint, and no page is written over one",
            where=str(path),
            fix="choose another --html FILE",
        )
    check_target(Path(path), force=force, option="--html FILE")


def _check_jinja() -> None:
    if find_spec("jinja2") is None:
        raise ArgumentError("pages need Jinja2", fix=to_install("'.[html]'"))


def write_page(page: Page, path: str | Path, *, force: bool = False) -> tuple[str, ...]:
    """Write a page whole or not at all; notes on what killed runs left beside it, which is deleted.

    Raises as ``check_page`` does.
    """
    check_page(path, force=force)
    text = page_text(page)
    with staged(Path(path), force=force) as target:
        target.write(text.encode(), 0)
    return cleaned_leftovers(Path(path))


def page_text(page: Page) -> str:
    """A page as HTML; the same page is the same text.

    Raises ``ArgumentError`` if Jinja2 is not installed.
    """
    _check_jinja()
    names = ("page", *page.parts)
    scripts = list(map(_asset, (*_LIBRARIES, *(f"{name}.js" for name in names if _is_asset(f"{name}.js")))))
    styles = [_asset(f"{name}.css") for name in names if _is_asset(f"{name}.css")]
    return (
        _environment()
        .get_template(f"{page.kind}.html")
        .render(
            page.shown,
            title=page.title,
            about=page.about,
            policy=_policy(scripts, [*styles, _CHART_STYLE], media=page.media),
            scripts=scripts,
            styles=styles,
            data=_as_json(page.data),
            version=__version__,
        )
    )


def _is_asset(name: str) -> bool:
    return (_ASSETS / name).is_file()


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str], styles: Sequence[str], *, media: bool) -> str:
    """The Content-Security-Policy: nothing is loaded, and only these scripts and styles are used."""
    embedded = "; media-src data:" if media else ""
    return (
        f"default-src 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)}; "
        f"img-src data:{embedded}; base-uri 'none'; form-action 'none'"
    )


def _hashes(texts: Sequence[str]) -> str:
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts
    )


def _environment() -> Environment:
    """Jinja's environment, which escapes all that is not said to be HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("wnconvert.reports.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    made.filters["bytes_text"] = bytes_text
    made.filters["count"] = lambda value: f"{value:,}"
    return made


#: What must not stand in a script as it is: the end of the script, and comments of HTML.
_UNSAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&"}


def _as_json(data: Mapping[str, Any]) -> str:
    r"""Data as JSON in ASCII that no browser takes for HTML; texts as they are shown, infinities as words.

    >>> print(_as_json({"</script>": [1.5, float("inf"), "a\nb"]}))
    {"\u003c/script\u003e":[1.5,"inf","a\\nb"]}
    """
    text = json.dumps(_plain(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE)


def _plain(value: Any) -> Any:
    if isinstance(value, float):  # which most are
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return printable(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return {printable(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_plain(each) for each in value]
    return value
