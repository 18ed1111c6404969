"""The files of a command inspected: one, shown in full, or many, a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from wnconvert.cli.options import errors_as_json
from wnconvert.cli.runs.fleets import fleet_asked
from wnconvert.cli.runs.many import inspect_many, put_files
from wnconvert.cli.terminal import alarm, fitting_width, mention, progress_bar, put, put_json
from wnconvert.messages import printable

if TYPE_CHECKING:
    from wnconvert.verbs.inspection.result import Inspection

__all__ = ["show_inspections"]


def show_inspections(
    src: Sequence[str],
    *,
    recursive: bool,
    jobs: int | None,
    keep_going: bool,
    report: str | None,
    cluster: str | None,
    style: str,
    check: bool,
    require_folded: bool,
    full: bool,
    drift: bool,
    sort: str | None,
    top: int | None,
    wide: bool,
    plot: str | None,
    html: str | None,
    force: bool,
    no_progress: bool,
    **options: Any,
) -> int:
    """Inspect the files that are named, and print what is in them; the exit code."""
    if style == "json":
        errors_as_json(click.get_current_context())
    request = fleet_asked(
        src, recursive=recursive, jobs=jobs, keep_going=keep_going, report=report, cluster=cluster
    )
    options["full"] = full = full or check or (html is not None and request is None)
    if request is None:
        _check_of_one(sort, full=full, drift=drift)
    else:
        _check_of_several(sort, lists=style != "json" and (options["tensors"] or options["metadata"]))
    _check_outputs(plot, html, force=force)
    if request is None:
        read = options if html is None else _with_page(src[0], options)
        found = [_one(src[0], read, no_progress=no_progress)]
        results, shown = [], [_asked(found[0], sort, top, options)]
    else:
        results = inspect_many(src, request, options)
        shown = found = [result.inspection for result in results if result.inspection is not None]
    written = _written(found, html, force=force)
    # Picture and page come before the report: an error has stdout, and its JSON, for itself.
    drawn = _drawn(shown, plot, force=force)
    width = fitting_width(wide=wide)
    if request is None:
        _put_one(shown[0], style, width)
    elif drift and style != "json":
        _put_drift(found, style, top, width)
    else:
        put_files(results, style=style, top=top, width=width)
    if request is not None and full and style not in ("csv", "json"):
        from wnconvert.reports.text.inspections import healths_text

        put(healths_text(found))
    for note in (*drawn, *written):
        mention(note)
    if any(result.error for result in results):
        return 2
    return int(any(_lacks(item, check=check, require_folded=require_folded) for item in found))


def _lacks(found: Inspection, *, check: bool, require_folded: bool) -> bool:
    """Whether a file lacks what is required of it: health, or that its weights are stored as such."""
    return bool((check and not found.health) or (require_folded and found.unfolded))


def _check_of_one(sort: str | None, *, full: bool, drift: bool) -> None:
    """Raise for what has no place in the table of one file."""
    if sort in ("norm", "ratio") and not full:
        raise click.UsageError(f"--sort {sort} needs --full, which reads v")
    if drift:
        raise click.UsageError("--drift is for several files")


def _check_of_several(sort: str | None, *, lists: bool) -> None:
    """Raise for what has no place in the tables of several files."""
    if sort is not None:
        raise click.UsageError(
            "--sort is for one file; several are sorted by name, and layers (--drift) by how far they moved"
        )
    if lists:
        raise click.UsageError("--tensors and --metadata are for one file; with --json also for several")


def _check_outputs(plot: str | None, html: str | None, *, force: bool) -> None:
    """Raise for a picture or a page that cannot be written, before anything is read."""
    if plot is not None:
        from wnconvert.reports.plots import check_picture

        check_picture(plot, force=force)
    if html is not None:
        from wnconvert.reports.html.page import check_page

        check_page(html, force=force)


#: The SHA-256 of more bytes than these takes longer than all else: it is on a page only if it is asked for.
_QUICKLY_HASHED = 1 << 30


def _with_page(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of an inspection of which a page is made, whatever the report on stdout shows."""
    from wnconvert.storage.files import located
    from wnconvert.verbs.fleet.digests import size_of

    is_quick = size_of(located(path)) <= _QUICKLY_HASHED
    return options | {"tensors": True, "metadata": True, "sha256": options["sha256"] or is_quick}


def _one(path: str, options: dict[str, Any], *, no_progress: bool) -> Inspection:
    from wnconvert.verbs.inspection.inspect import inspect_file

    with progress_bar(path, shown=not no_progress) as progress:
        return inspect_file(path, progress=progress, **options)


def _asked(whole: Inspection, sort: str | None, top: int | None, options: dict[str, Any]) -> Inspection:
    """What of an inspection the report on stdout was asked for."""
    from dataclasses import replace  # which `--help` need not wait for

    from wnconvert.reports.text.inspections import arranged

    asked = replace(
        whole,
        tensors=whole.tensors if options["tensors"] else None,
        metadata=whole.metadata if options["metadata"] else None,
        sha256=whole.sha256 if options["sha256"] else "",
    )
    return arranged(asked, sort=sort, top=top)


def _written(found: Sequence[Inspection], html: str | None, *, force: bool) -> tuple[str, ...]:
    """Write the page that is asked for: of one file with all layers, of several how they moved."""
    if html is None:
        return ()
    from wnconvert.reports.html.inspections import inspection_page
    from wnconvert.reports.html.page import write_page
    from wnconvert.reports.html.runs import run_page

    page = inspection_page(found[0]) if len(found) == 1 else run_page(found)
    return (f"the page is in {printable(html)}", *write_page(page, html, force=force))


def _drawn(found: Sequence[Inspection], plot: str | None, *, force: bool) -> tuple[str, ...]:
    """Draw the picture that is asked for; what there is to say of it."""
    if plot is None:
        return ()
    from wnconvert.reports.plots import plot_magnitudes

    return (f"the picture is in {printable(plot)}", *plot_magnitudes(found, plot, force=force))


def _put_one(found: Inspection, style: str, width: int | None) -> None:
    from wnconvert.reports.text.inspections import inspection_text

    if style == "json":
        put_json(found.to_dict())
    else:
        put(inspection_text(found, style=style, width=width, alarm=alarm))


def _put_drift(found: Sequence[Inspection], style: str, top: int | None, width: int | None) -> None:
    from wnconvert.reports.text.inspections import moves_text

    put(moves_text(found, style=style, top=top, width=width))
