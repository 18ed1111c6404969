"""Quantized ONNX models for tests: a vocoder that onnxruntime quantizes, and weights of stored codes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from tests.helpers.onnx_graphs import COMBINED, NORMS, Build

__all__ = ["LAYERS", "Coded", "coded", "outputs_of", "quantize", "vocoder", "weighted"]

Floats = NDArray[np.float32]

#: The layers of the vocoder: the shape of v, and of which op it is the weight.
LAYERS = {
    "pre": ((16, 8, 7), "Conv"),
    "up": ((16, 8, 4), "ConvTranspose"),
    "res": ((8, 8, 3), "Conv"),
    "post": ((1, 8, 7), "Conv"),
}


def vocoder(seed: int = 0) -> ModelProto:
    """A small vocoder with its weight norm left in, spelled as torch's older exporter does."""
    random, b, x = np.random.default_rng(seed), Build(17), "mel"
    for name, (shape, op) in LAYERS.items():
        v = b.tensor(f"{name}.weight_v", random.normal(0, 1, shape).astype(np.float32))
        g = random.uniform(0.5, 1.5, (shape[0], 1, 1)).astype(np.float32)
        norm = NORMS["ReduceL2"](b, v, shape, 0)
        ratio = b.op("Div", v, norm, name=f"{name}.ratio")
        w = b.op("Mul", ratio, b.tensor(f"{name}.weight_g", g), name=f"{name}.product")
        bias = b.tensor(
            f"{name}.bias", random.normal(0, 0.1, shape[op == "ConvTranspose"]).astype(np.float32)
        )
        steps: dict[str, Any] = (
            {"pads": [1, 1], "strides": [2]} if op == "ConvTranspose" else {"pads": [shape[2] // 2] * 2}
        )
        made = b.op(op, x, w, bias, **steps)
        x = b.op("LeakyRelu", b.op("Add", x, made) if name == "res" else made, alpha=0.1)
    b.op("Tanh", x, name="wav")
    return b.model(["wav"], {"mel": (1, 8, 20)})


def quantize(model: ModelProto, folder: Path, **options: Any) -> Path:
    """A model as onnxruntime's ``quantize_static`` quantizes it, with made-up data."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Mels(CalibrationDataReader):  # type: ignore[misc]
        """Three mels."""

        def __init__(self) -> None:
            self.left = iter(range(3))

        def get_next(self) -> dict[str, Floats] | None:
            seed = next(self.left, None)
            if seed is None:
                return None
            return {"mel": np.random.default_rng(seed).normal(0, 1, (1, 8, 20)).astype(np.float32)}

    source, target = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(model, source)
    logging.disable(logging.WARNING)  # it recommends to fold first
    try:
        quantize_static(source, target, Mels(), **options)
    finally:
        logging.disable(logging.NOTSET)
    return target


@dataclass(frozen=True)
class Coded:
    """Codes, their scale and zero, and the numbers that they stand for."""

    codes: NDArray[Any]
    scale: NDArray[Any]
    zero: NDArray[Any] | None
    numbers: NDArray[Any]
    attributes: Mapping[str, Any]


def coded(x: Floats, dtype: str, kind: str, *, shifted: bool = False, scale_dtype: Any = np.float32) -> Coded:
    """A weight as codes by one scale (``tensor``), one a row (``axis``), or one for 4 places (``block``)."""
    kinds: dict[str, tuple[Any, float, float]] = {
        "int8": (np.int8, -127, 127),
        "uint8": (np.uint8, 0, 255),
        "int16": (np.int16, -32767, 32767),
        "uint16": (np.uint16, 0, 65535),
        "int4": (ml_dtypes.int4, -7, 7),
        "uint4": (ml_dtypes.uint4, 0, 15),
        "float8_e4m3fn": (ml_dtypes.float8_e4m3fn, -448, 448),
        "float8_e5m2": (ml_dtypes.float8_e5m2, -57344, 57344),
    }
    kind_of, least, most = kinds[dtype]
    behind = tuple(range(1, x.ndim))
    rows, columns, *others = x.shape
    attributes: dict[str, int]
    spread: Callable[[NDArray[Any]], NDArray[Any]]
    if kind == "tensor":
        top, spread, attributes = np.abs(x).max(), np.asarray, {}
    elif kind == "axis":
        top, attributes = np.abs(x).max(axis=behind), {"axis": 0}
        spread = partial(np.expand_dims, axis=behind)
    else:
        top = np.abs(x.reshape(rows, columns // 4, 4, *others)).max(axis=2)
        spread, attributes = partial(np.repeat, repeats=4, axis=1), {"axis": 1, "block_size": 4}
    scale = np.asarray(top * 2 / (most - least), scale_dtype)
    zero = np.full(scale.shape, 0.0 if least < 0 else (least + most + 1) // 2)
    if shifted:
        zero += np.random.default_rng(1).integers(1, 3, scale.shape)
    wide, moved = spread(scale.astype(np.float64)), spread(zero)
    raw = x / wide
    codes = raw if dtype.startswith("float8") else np.clip(np.rint(raw) + moved, least, most)
    stored = codes.astype(kind_of)
    numbers = ((stored.astype(np.float64) - moved) * wide).astype(scale_dtype)
    return Coded(stored, scale, zero.astype(kind_of) if shifted or least == 0 else None, numbers, attributes)


def weighted(v: Coded, g: Floats | Coded, opset: int = 21) -> ModelProto:
    """A convolution whose weight is g·v/‖v‖ of v behind DequantizeLinear, and perhaps g."""
    b, shape = Build(opset), v.codes.shape
    names = [
        _numbers(b, f"conv.weight_{name}", part)
        if isinstance(part, Coded)
        else b.tensor("conv.weight_g", part)
        for name, part in (("v", v), ("g", g))
    ]
    w = COMBINED["g(v/n)"](b, names[1], names[0], NORMS["ReduceL2"](b, names[0], shape, 0))
    b.op("Conv", "x", w, pads=[1, 1], name="y")
    made = b.model(["y"], {"x": (1, shape[1], 9)}, ir_version=10)
    if v.scale.dtype != np.float32:
        for port in (*made.graph.input, *made.graph.output):
            port.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return made


def _numbers(b: Build, name: str, part: Coded) -> str:
    names = [b.tensor(f"{name}_quantized", part.codes), b.tensor(f"{name}_scale", part.scale)]
    if part.zero is not None:
        names.append(b.tensor(f"{name}_zero_point", part.zero))
    return b.op("DequantizeLinear", *names, name=f"{name}_numbers", **part.attributes)


def outputs_of(path: Path, names: Sequence[str]) -> Mapping[str, NDArray[Any]]:
    """Values inside a model, as onnxruntime computes them without optimizations."""
    import onnxruntime as ort

    model = onnx.load(path)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    mel = np.random.default_rng(9).normal(0, 1, (1, 8, 20)).astype(np.float32)
    return dict(zip(names, session.run(list(names), {"mel": mel}), strict=True))


def stored(model: ModelProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """The initializers of a model."""
    for tensor in model.graph.initializer:
        yield tensor.name, numpy_helper.to_array(tensor)
