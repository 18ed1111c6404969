"""Every writer of a container, held to the same contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
from onnx import numpy_helper

from tests.helpers.contracts import WriterContract


class TestSafetensors(WriterContract):
    SOURCES = ("hifigan.safetensors", "legacy_nonzip.pth", "frameworks/paddle_protocol2.pdparams")
    SUFFIX = ".safetensors"

    def read(self, path: Path) -> dict[str, Any]:
        return dict(safetensors.numpy.load_file(path))


class TestTorchZip(WriterContract):
    SOURCES = ("g_02500000", "hifigan.safetensors", "sovits.pth", "frameworks/paddle_nested.pdparams")
    SUFFIX = ".pt"

    def read(self, path: Path) -> dict[str, Any]:
        from tests.helpers.states import state_dicts

        found = state_dicts(path)
        return {f"{at}.{name}": value.numpy() for at, state in found.items() for name, value in state.items()}


class TestNpz(WriterContract):
    SOURCES = ("g_02500000", "hifigan.safetensors", "sovits.pth", "arrays.npz", "frameworks/paddle.pdparams")
    SUFFIX = ".npz"

    def read(self, path: Path) -> dict[str, Any]:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


class TestOnnx(WriterContract):
    SOURCES = ("tcn.onnx",)
    SUFFIX = ".onnx"

    def read(self, path: Path) -> dict[str, Any]:
        graph = onnx.load(path).graph
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
