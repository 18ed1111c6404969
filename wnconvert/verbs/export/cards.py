"""The model card of an exported model: a file of Markdown beside it, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from wnconvert.errors import ArgumentError
from wnconvert.messages import refuse_other_than_path
from wnconvert.shown import showing
from wnconvert.storage.staging import check_target, staged
from wnconvert.verbs.conversion.targets import StrPath
from wnconvert.verbs.inspection.inspect import inspect_file
from wnconvert.verbs.models.proof.report import ExportReport
from wnconvert.verbs.shared.leftovers import cleaned_leftovers

__all__ = ["check_card", "write_card"]


def check_card(card: StrPath, model: Path, *, force: bool) -> None:
    """Raise for a card that cannot be written there, before anything is exported.

    ``ArgumentError``: another suffix than ``.md``, or the place of the model; ``OutputError``: the file
    exists (and there is no ``force``), or its folder does not.
    """
    refuse_other_than_path(card, "a model card")
    path = Path(card)
    if path.suffix != ".md" or path == model:
        raise ArgumentError(f"{path} is no name of a model card", fix="--card README.md")
    check_target(path, force=force, option="--card FILE.md")


def write_card(card: StrPath, report: ExportReport, *, force: bool) -> tuple[str, ...]:
    """Write the card of the model that a report is of; notes on what killed runs left beside it."""
    text = showing().model_card(inspect_file(report.model, sha256=True), report)
    with staged(Path(card), force=force) as target:
        target.write(text.encode(errors="replace"), 0)
    return cleaned_leftovers(Path(card))
