"""A proof as a page: that a model computes what its reference does, on which samples, and how nearly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import PurePath
from typing import Any

import numpy as np

from wnconvert import __version__
from wnconvert.messages import counted
from wnconvert.reports.html.page import Page
from wnconvert.reports.html.signals import Picture, Wave, picture_of, wave_of
from wnconvert.reports.tables import bytes_text, number_text
from wnconvert.reports.text.exports import proof_more
from wnconvert.verbs.models.proof.outputs import OutputProof
from wnconvert.verbs.models.proof.report import ExportReport

__all__ = ["proof_page"]


_COLUMNS = (
    ("output", ""),
    ("dtype", "word wide"),
    ("shape", "word long-word wide"),
    ("elements", "number wide"),
    ("max abs", "number"),
    ("allowed", "number"),
    ("max rel", "number wide"),
    ("SNR dB", "number"),
    ("worst at", "word long-word wide"),
    ("reference", "number wide"),
    ("candidate", "number wide"),
    ("outside", "number wide"),
)
_PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy")
#: The most outputs that are drawn: the first ones.
_MOST_DRAWN = 8


def proof_page(report: ExportReport, about: str, sha256: str = "") -> Page:
    """The page of a proof; ``about`` is the command, ``sha256`` that of the model, where it was written."""
    _, verdict, *why = proof_more(report)
    seen = [one for output in report.outputs[:_MOST_DRAWN] for one in _seen(output)]
    shown = {
        "report": report,
        "verdict": verdict.removesuffix(":"),
        "why": why,
        "facts": list(_facts(report, sha256)),
        "columns": _COLUMNS,
        "rows": [(_row(report, output), output.passed) for output in report.outputs],
        "samples": list(_samples(report)),
        "seen": seen,
        "versions": list(_versions()),
    }
    data = {
        "outputs": [
            {
                "name": output.name,
                "found": output.max_abs,
                "allowed": _allowed(report, output),
                "passed": output.passed,
            }
            for output in report.outputs
        ],
        "waves": [_wave_data(word, wave) for one in seen for word, wave in one.waves],
    }
    return Page("proof", PurePath(report.model).name, about, shown, data, media=True)


def _facts(report: ExportReport, sha256: str) -> Iterator[tuple[str, str]]:
    yield "model", f"{report.model} ({bytes_text(report.size)})"
    if sha256:
        yield "SHA-256", sha256
    yield "reference", report.reference
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


def _row(report: ExportReport, output: OutputProof) -> tuple[str, ...]:
    worst = output.worst
    return (
        output.name,
        output.dtype,
        "×".join(map(str, output.shape)) or "()",
        f"{output.elements:,}",
        "0" if output.identical else number_text(output.max_abs),
        number_text(_allowed(report, output)),
        number_text(output.max_rel),
        "same bits" if output.identical else number_text(output.snr_db),
        "" if worst is None else f"[{', '.join(map(str, worst.index))}]",
        "" if worst is None else f"{worst.reference:.7g}",
        "" if worst is None else f"{worst.candidate:.7g}",
        f"{output.out_of_tolerance:,}",
    )


def _allowed(report: ExportReport, output: OutputProof) -> float:
    """What the tolerance allows at the worst element of an output."""
    worst = output.worst
    reference = abs(worst.reference) if worst is not None and math.isfinite(worst.reference) else 0.0
    return report.proof.atol + report.proof.rtol * reference


def _samples(report: ExportReport) -> Iterator[tuple[str, str, str]]:
    """Of each sample its number, its sizes, and where its values are from."""
    for at, sample in enumerate(report.proof.samples, 1):
        sizes = ", ".join(f"{letter} = {size}" for letter, size in sample.sizes.items())
        yield str(at), sizes or "fixed", sample.source or f"drawn, seed {sample.seed}"


def _versions() -> Iterator[tuple[str, str]]:
    yield "wnconvert", __version__
    yield from ((name, version(name)) for name in _PACKAGES if find_spec(name) is not None)


_WORDS = ("reference", "candidate", "difference")


@dataclass(frozen=True, slots=True)
class _Seen:
    """An output as it can be seen: in which sample, and as three waveforms or three pictures with words."""

    name: str
    sample: str
    is_finite: bool
    waves: tuple[tuple[str, Wave], ...]
    pictures: tuple[tuple[str, Picture], ...]


def _seen(output: OutputProof) -> Iterator[_Seen]:
    """An output in the sample of its worst element, if it is a waveform or a picture."""
    pair = output.pair
    if pair is None or not pair.reference.size:
        return
    is_finite = all(bool(np.isfinite(values).all()) for values in (pair.reference, pair.candidate))
    index = () if output.worst is None else output.worst.index
    if (waves := wave_of(pair)) is not None:
        yield _Seen(output.name, str(pair.sample), is_finite, tuple(zip(_WORDS, waves, strict=True)), ())
    elif (pictures := picture_of(pair, index)) is not None:
        plane = _plane_in_words(index, pair.reference.shape)
        yield _Seen(
            output.name, f"{pair.sample}{plane}", is_finite, (), tuple(zip(_WORDS, pictures, strict=True))
        )


def _plane_in_words(index: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Which plane of an output a picture shows, where there are several.

    >>> _plane_in_words((0, 2, 5, 7), (1, 3, 64, 64)), _plane_in_words((), (1, 64, 64))
    (', the plane [0, 2]', '')
    """
    if math.prod(shape[:-2]) == 1:
        return ""
    return f", the plane [{', '.join(map(str, index[:-2] or (0,) * (len(shape) - 2)))}]"


def _wave_data(word: str, wave: Wave) -> dict[str, Any]:
    """A waveform as a script draws it."""
    return {"word": word, "samples": wave.samples, "low": list(wave.low), "high": list(wave.high)}
