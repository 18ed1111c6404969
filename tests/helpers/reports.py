"""Results to be shown: a comparison with a difference of every kind, and the report of an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from wnconvert.numerics.distance import Tolerance
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.verbs.comparison.compare import compare_files
from wnconvert.verbs.comparison.result import Comparison
from wnconvert.verbs.models.proof.outputs import OutputMeter
from wnconvert.verbs.models.proof.proof import Proof
from wnconvert.verbs.models.proof.report import ExportReport
from wnconvert.verbs.models.proof.samples import Sample


def comparison(folder: Path, a: Path | None = None, b: Path | None = None) -> Comparison:
    """Two files compared; without any, two of which a shape, a value, and a name on each side differ."""
    if a is None or b is None:
        a, b = folder / "a.safetensors", folder / "b.safetensors"
        one = np.ones(2, np.float32)
        save_file({"shape": one, "values": one, "same": one, "here": one}, a)
        other = np.array([1, 1.5], np.float32)
        save_file({"shape": np.ones(3, np.float32), "values": other, "same": one, "there": one}, b)
    return compare_files(a, b)


def export_report(off: float = 1e-6, name: str = "output", model: str = "model.onnx") -> ExportReport:
    """A report of one output, which is off by so much in one element of its second sample."""
    expected = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    found = expected.copy()
    found[1, 2] += np.float32(off)
    samples = (Sample(0, {"B": 2}), Sample(1, {"B": 2}, 1))
    meter = OutputMeter(name, DTYPES["float32"], Tolerance(1e-5, 1e-3))
    meter.add(samples[0], expected, expected)
    meter.add(samples[1], found, expected)
    proof = Proof((meter.result(),), (), samples, rtol=1e-3, atol=1e-5)
    return ExportReport(model, 1234, "Net in torch 2.13", proof, opset=18, nodes=4, nodes_exported=9)
