"""A proof as a page: that a model computes what its reference does, on which samples, and how nearly."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import PurePath

from wnconvert import __version__
from wnconvert.messages import counted
from wnconvert.reports.html.outputs import shown_outputs
from wnconvert.reports.html.page import Page
from wnconvert.reports.tables import bytes_text
from wnconvert.reports.text.exports import proof_more
from wnconvert.verbs.models.proof.report import ExportReport

__all__ = ["package_versions", "proof_page"]


_PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy")


def proof_page(report: ExportReport) -> Page:
    """The page of the proof of an export or a check."""
    _, verdict, *why = proof_more(report)
    outputs = shown_outputs(report.proof)
    shown = {
        "report": report,
        "verdict": verdict.removesuffix(":"),
        "why": why,
        "facts": list(_facts(report)),
        "outputs": outputs,
        "versions": package_versions(_PACKAGES),
    }
    about = f"wnconvert {'check' if report.exporter is None else 'export'}"
    return Page("proof", PurePath(report.model).name, about, shown, outputs.data, media=True)


def package_versions(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """wnconvert and those of some packages that are installed, each with its version."""
    found = [(name, version(name)) for name in names if find_spec(name) is not None]
    return [("wnconvert", __version__), *found]


def _facts(report: ExportReport) -> Iterator[tuple[str, str]]:
    yield "model", f"{report.model} ({bytes_text(report.size)})"
    for name, digest in report.sha256.items():
        yield "SHA-256", digest if len(report.sha256) == 1 else f"{digest} of {name}"
    yield "reference", report.reference
    if report.reference_sha256:
        yield "its SHA-256", f"{report.reference_sha256}, of its parameters and buffers"
    if report.opset is not None:
        yield "opset", str(report.opset)
    if report.exporter is not None:
        yield "exporter", f"torch's {report.exporter}"
    if report.nodes is not None:
        before = "" if report.nodes_exported is None else f"{report.nodes_exported:,} as exported, "
        yield "nodes", f"{before}{report.nodes:,} in the file"
    if report.folded_in_module is not None:
        graph = f", {report.folded_in_graph} in the graph" if report.folded_in_graph else ""
        yield "folded", f"{counted(report.folded_in_module, 'layer')} in the module{graph}, correctly rounded"
    if report.residual_weight_norm is not None:
        norms = counted(report.residual_weight_norm, "layer") if report.residual_weight_norm else "none"
        yield "weight norm left", norms
        yield "still computed", counted(len(report.computed), "weight") if report.computed else "no weight"
    if report.layers:
        off = max(layer.distance for layer in report.layers)
        yield "weights", f"{counted(len(report.layers), 'layer')} compared, at most {off:.3g} off"
    yield "equal means", report.proof.tolerance
    yield "measured", report.proof.measured
