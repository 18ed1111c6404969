"""What export is held against: torch's own exporter, and one run of onnxruntime."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

from tests.bench.models import export


def main(target: str) -> None:
    export(Path(target), dynamo=True)
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    session.run(None, {"spectrogram": np.random.default_rng(0).standard_normal((1, 108, 80), np.float32)})


main(*sys.argv[1:])
