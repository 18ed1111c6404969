"""A command that converts: one file, printed in full, or many, a row for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from wnconvert.cli.options import FIRST_LAYERS, errors_as_json
from wnconvert.cli.runs.fleets import fleet_asked
from wnconvert.cli.runs.many import convert_many
from wnconvert.cli.terminal import mention_json, progress_bar

if TYPE_CHECKING:
    from wnconvert.cli.output import Output
    from wnconvert.plan.plan import Plan

__all__ = ["convert_files"]


def convert_files(
    verb: str,
    function: Callable[..., Any],
    src: tuple[str, ...],
    out: str | None,
    *,
    recursive: bool,
    jobs: int | None,
    skip_existing: bool,
    keep_going: bool,
    report: str | None,
    cluster: str | None,
    output: Output,
    **options: Any,
) -> int:
    """Run a verb on the files that are named, and print what came of it; the exit code.

    ``function`` is the verb for one file.
    """
    request = fleet_asked(
        src,
        recursive=recursive,
        jobs=jobs,
        skip_existing=skip_existing,
        keep_going=keep_going,
        report=report,
        cluster=cluster,
    )
    if request is None:
        _convert_one(verb, function, src[0], out, output=output, **options)
        return 0
    shown = ("list", "no_progress")
    given = {name: value for name, value in options.items() if name not in shown}
    return convert_many(verb, src, out, request, output=output, options=given)


def _convert_one(
    verb: str,
    function: Callable[..., Any],
    src: str,
    out: str | None,
    *,
    output: Output,
    no_progress: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run a verb on a file, or plan it, and print the result."""
    from dataclasses import replace  # which `--help` need not wait for

    from wnconvert.reports.text.conversions import plan_line, plan_text, result_line, result_text
    from wnconvert.storage.files import kind_of
    from wnconvert.verbs.conversion.places.piped import goes_to_stdout
    from wnconvert.verbs.conversion.targets import kind_of_verb, target_of

    piped = goes_to_stdout(src, out)
    if piped:
        output = replace(output, on_stderr=True)
        if output.json:
            errors_as_json(click.get_current_context(), mention_json)
    in_place, kind = options["in_place"], kind_of_verb(verb, options)
    target = None if piped else target_of(src, out, kind, as_folder=options["as_folder"], in_place=in_place)
    shown = "stdout" if target is None else str(target.path)
    most = None if options.pop("list") else FIRST_LAYERS
    if dry_run:
        plan = function(src, out, dry_run=True, **options)
        there = target is not None and kind_of(target.path) is not None
        exists = there and plan.writes and not (options["force"] or in_place)
        output.notes((*plan.notes, *([f"{shown} exists: --force replaces it"] if exists else [])))
        output.result(plan.to_dict, lambda: plan_text(plan, shown, most), lambda: plan_line(plan, shown))
        return
    said: set[str] = set()

    def before(plan: Plan) -> None:  # what is lost, or left random, is said before it is
        said.update(plan.notes)
        output.notes(plan.notes)

    with progress_bar(src, shown=output.steps and not no_progress) as progress:
        result = function(src, out, progress=progress, on_plan=before, **options)
    output.notes(tuple(note for note in result.notes if note not in said))
    output.result(result.to_dict, lambda: result_text(result, most), lambda: result_line(result))
