"""Pictures of magnitudes: a box for each layer of one file, or a line for each layer over several files."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wnconvert.errors import ArgumentError, FormatError, InputError, OutputError
from wnconvert.messages import option, printable, refuse_other_than_path, to_install
from wnconvert.reports.tables import shortened
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.staging import check_target, staged
from wnconvert.verbs.inspection.magnitudes import Spread
from wnconvert.verbs.inspection.result import Inspection, moves
from wnconvert.verbs.shared.leftovers import cleaned_leftovers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = [
    "check_magnitudes",
    "check_matplotlib",
    "check_picture",
    "draw_boxes",
    "is_checkpoint",
    "name_rows",
    "picture_inches",
    "plot_magnitudes",
]


_SUFFIXES = (".png", ".svg", ".pdf")
_NO_DATE = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}  # the same magnitudes give the same picture
_NAMED = 150  # the most names that can be read one below the other; of more layers, every few are named
_LINES_NAMED = 8
_ROW_INCHES = 0.16
_SEEN = "\u200b"  # matplotlib omits labels that begin with "_" from a legend, such as _orig_mod.


def check_picture(path: str | Path, *, force: bool) -> None:
    """Raise for a picture that cannot be drawn there, before anything is read.

    ``ArgumentError``: another suffix, or matplotlib is not installed; ``OutputError``: the file exists (and
    there is no ``force``, or it is a checkpoint), or its folder does not.
    """
    refuse_other_than_path(path, "a picture")
    if Path(path).suffix not in _SUFFIXES:
        raise ArgumentError(f"{path} is none of {', '.join(_SUFFIXES)}", fix="--plot FILE.png")
    check_matplotlib()
    if is_checkpoint(path):
        raise OutputError(
            "it is a checkpoint, and no picture is drawn over one",
            where=str(path),
            fix="choose another --plot FILE",
        )
    check_target(Path(path), force=force, option="--plot FILE")


def check_matplotlib() -> None:
    """Raise ``ArgumentError`` if matplotlib, which draws, is not installed."""
    if find_spec("matplotlib") is None:
        raise ArgumentError("pictures need matplotlib", fix=to_install("matplotlib"))


def check_magnitudes(found: Sequence[Inspection]) -> int:
    """How many layers have magnitudes. Raises ``ArgumentError`` if none has: there is nothing to draw."""
    drawn = sum(layer.g is not None for inspection in found for layer in inspection.layers)
    if not drawn:
        reads = f"{option('full', True)} reads those of folded layers"
        raise ArgumentError("there are no magnitudes to draw", fix=reads)
    return drawn


def picture_inches(rows: int) -> tuple[float, float]:
    """The width and height, in inches, of a picture with so many rows."""
    return 9, 1 + _ROW_INCHES * min(max(rows, 8), _NAMED)


def is_checkpoint(path: str | Path) -> bool:
    """Whether a file is a checkpoint by its content, whole or damaged."""
    try:
        open_checkpoint(path)
    except FormatError:
        return True
    except InputError:
        return False
    return True


def plot_magnitudes(found: Sequence[Inspection], path: str | Path, *, force: bool = False) -> tuple[str, ...]:
    """Draw |g| per layer on a log axis into a picture; several files become lines over files.

    A layer is a box of quartiles with whiskers to its least and greatest |g|. What killed runs left beside
    the picture, which is small, is deleted; returns notes on that. Raises as ``check_picture`` does, and
    ``ArgumentError`` if there is nothing to draw.
    """
    check_picture(path, force=force)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawn = check_magnitudes(found)
    if len(found) == 1:
        figure = Figure(figsize=picture_inches(drawn), layout="constrained")
        draw_boxes(figure.subplots(), found[0])
    else:
        figure = Figure(figsize=(9, 5), layout="constrained")
        _lines(figure.subplots(), found)
    drawing = io.BytesIO()
    dated = _NO_DATE.get(Path(path).suffix)
    with rc_context({"svg.hashsalt": "wnconvert"}):
        figure.savefig(drawing, format=Path(path).suffix[1:], dpi=150, metadata=dated)
    with staged(Path(path), force=force) as target:
        target.write(drawing.getvalue(), 0)
    return cleaned_leftovers(Path(path))


def _values(spread: Spread) -> tuple[float, ...]:
    return spread.min, spread.q1, spread.median, spread.q3, spread.max


def draw_boxes(axes: Axes, found: Inspection) -> None:
    """Draw |g| of one file: a box of quartiles for each layer, with whiskers to its least and greatest."""
    several = len({layer.state_dict for layer in found.layers}) > 1
    layers = [
        (f"{layer.state_dict}: {layer.name}" if several else layer.name, layer.g)
        for layer in found.layers
        if layer.g is not None
    ]
    # 0 has no place on a log axis: it is drawn left of all other values.
    least = min((value for _, spread in layers for value in _values(spread) if value > 0), default=1.0)
    has_zero = any(spread.min <= 0 for _, spread in layers)
    edge = least / 2 if has_zero else least
    boxes = [
        {
            "whislo": max(spread.min, edge),
            "q1": max(spread.q1, edge),
            "med": max(spread.median, edge),
            "q3": max(spread.q3, edge),
            "whishi": max(spread.max, edge),
        }
        for _, spread in layers
    ]
    axes.bxp(
        boxes,
        positions=range(len(layers)),
        **_lying(axes),
        widths=0.6,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": "#a9c4de", "edgecolor": "#4878a8", "linewidth": 0.7},
        medianprops={"color": "#10243c", "linewidth": 1.2},
        whiskerprops={"color": "#4878a8", "linewidth": 0.7},
        capprops={"color": "#4878a8", "linewidth": 0.7},
    )
    _log(axes.xaxis, axes.set_xscale)
    zero = "; 0 stands at the left edge" if has_zero else ""
    axes.set_xlabel(f"|g| over a layer's rows: least, quartiles, greatest{zero}")
    name_rows(axes, [name for name, _ in layers])
    axes.set_title(printable(Path(found.source).name), fontsize=10, parse_math=False)


def _lying(axes: Axes) -> dict[str, Any]:
    """What draws boxes along the x axis; matplotlib has another word for it from 3.10 on."""
    known = inspect.signature(axes.bxp).parameters
    return {"orientation": "horizontal"} if "orientation" in known else {"vert": False}


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a picture from its top down; of more than can be read, every few."""
    step = -(-len(names) // _NAMED)
    axes.set_yticks(
        range(0, len(names), step),
        [shortened(printable(name), 40) for name in names[::step]],
        fontsize=6.5,
        parse_math=False,
    )
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", which="both", alpha=0.25)


def _lines(axes: Axes, found: Sequence[Inspection]) -> None:
    drawn = moves(found)
    for place, move in reversed(list(enumerate(drawn))):
        named = place < _LINES_NAMED
        axes.plot(
            range(len(found)),
            [mean or float("nan") for mean in move.means],
            marker="o",
            markersize=3,
            linewidth=1.6 if named else 0.7,
            color=f"C{place}" if named else "0.75",
            label=f"{_SEEN}{shortened(printable(move.name), 40)}  {move.moved or 0:.1%}" if named else None,
            zorder=3 if named else 1,
        )
    _log(axes.yaxis, axes.set_yscale)
    axes.set_ylabel("mean |g|")
    names = [shortened(printable(Path(item.source).name), 24) for item in found]
    axes.set_xticks(
        range(len(found)), names, fontsize=7, rotation=30 if len(found) > 6 else 0, parse_math=False
    )
    axes.grid(axis="y", which="both", alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(
        handles[::-1],
        labels[::-1],
        fontsize=7,
        title="moved most",
        title_fontsize=8,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _log(axis: Axis, set_scale: Callable[[str], None]) -> None:
    """A log axis whose ticks are plain numbers: 1, 1.5, 2, 3, 5, 7."""
    from matplotlib.ticker import LogLocator, NullFormatter

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
