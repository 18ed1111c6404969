"""The model card of an exported model, in the Markdown of the hub: what its weights are, and its proof."""

from __future__ import annotations

from dataclasses import replace

from wnconvert import __version__
from wnconvert.messages import counted
from wnconvert.reports.tables import markdown_text
from wnconvert.reports.text.exports import proof_more, proof_table
from wnconvert.reports.text.inspections import rounding_text, weights_section
from wnconvert.verbs.inspection.result import Inspection
from wnconvert.verbs.models.proof.report import ExportReport

__all__ = ["card_text"]


#: What the hub reads: the library that opens the model, and words to find it by. No text of a user is in it.
_METADATA = "---\nlibrary_name: onnx\ntags:\n- onnx\n- wnconvert\n---"


def card_text(found: Inspection, report: ExportReport) -> str:
    """The card of an ONNX model: metadata for the hub, how it was made, its weights, its proof."""
    name = report.model.rpartition("/")[2]  # where it lies here is of no use to others
    found, report = replace(found, source=name), replace(report, model=name)
    head = [_METADATA, f"# {markdown_text(name)}", _made(found, report)]
    return "\n\n".join([*head, weights_section(found), _proof(report)]) + "\n"


def _made(found: Inspection, report: ExportReport) -> str:
    folded = (report.folded_in_module or 0) + (report.folded_in_graph or 0)
    what = f"Exported from {markdown_text(report.reference)}"
    if not folded:
        return f"{what} with wnconvert {__version__}; there was nothing to fold."
    how = rounding_text(found.dtypes)
    return f"{what}; {counted(folded, 'layer')} folded with wnconvert {__version__}, {how}."


def _proof(report: ExportReport) -> str:
    """The verdict and the outputs, with every figure of the proof."""
    table = proof_table(report.proof)
    lines = [markdown_text(line) for line in proof_more(report)]
    return "\n\n".join(["## Proof", *([table.markdown()] if table else []), *lines])
