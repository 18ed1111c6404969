"""onnxruntime itself: a model loaded and run on the CPU, in this process. No other module imports it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np

from wnconvert.errors import InputError
from wnconvert.frozen import dataclass
from wnconvert.onnx.runtime.ports import ValueInfo
from wnconvert.onnx.runtime.words import not_loaded, not_run
from wnconvert.tensors.blocks import Array, processors
from wnconvert.tensors.dtypes import DTYPES

__all__ = ["Session", "arrays_of", "load_session", "onnxruntime", "values_of"]


_BFLOAT16 = 16  # TensorProto.DataType
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_FATAL = 4  # onnxruntime writes nothing to stderr below this severity


def onnxruntime() -> Any:
    """The package, which does not report what it runs, unless the user's environment says so."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it is read when the package is imported
    import onnxruntime as package

    return package


@dataclass(frozen=True, slots=True)
class Session:
    """A model that onnxruntime has loaded; ``inputs`` are the required ones."""

    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    own: Any = field(repr=False, compare=False)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, in order. Raises ``VerifyError`` if the model fails, ``InputError``."""
        if any(port.dtype == DTYPES["bfloat16"] for port in (*self.inputs, *self.outputs)):
            return arrays_of(self.outputs, self.values(values_of(feeds)))
        names = [port.name for port in self.outputs]
        runtime = onnxruntime()
        try:
            found = self.own.run(names, dict(feeds))
        except _errors(runtime) as error:
            raise not_run(str(error)) from error
        return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs as onnxruntime's own values, of such values; raises as ``run`` does."""
        names = [port.name for port in self.outputs]
        runtime = onnxruntime()
        try:
            found = self.own.run_with_ort_values(names, dict(given))
        except _errors(runtime) as error:
            raise not_run(str(error)) from error
        return dict(zip(names, found, strict=True))


def load_session(
    model: str | bytes, *, optimize: bool, folder: str = "", threads: int | None = None
) -> Session:
    """Load a model from its path, with its external data from beside it, or from its bytes.

    The external data of a model by its bytes lie in ``folder``, and are mapped. Without ``optimize`` the
    nodes are run as they are in the file, and memory is given back as soon as it is free. A run takes so many
    ``threads``, all processors if None. Raises ``InputError`` (or ``FormatError``) for a model that cannot be
    loaded.
    """
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    # An arena keeps what it has had, for runs that are timed; a pattern of all tensors is for many runs.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = optimize
    options.intra_op_num_threads = threads or processors()
    options.inter_op_num_threads = 1
    # A thread that waits for work must not keep a processor busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if folder:
        options.add_session_config_entry(_DATA_FOLDER, folder)
    try:
        own = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except _errors(runtime) as error:
        beside = folder or (str(Path(model).parent) if isinstance(model, str) else "")
        # Files are named as the model names them: only so does a ``..`` say that one lies outside its folder.
        said = str(error).replace(f"[{beside}/", "[")
        raise not_loaded(said, runtime.__version__) from error
    inputs, outputs = (
        tuple(ValueInfo.of(port.name, port.type, port.shape) for port in ports)
        for ports in (own.get_inputs(), own.get_outputs())
    )
    return Session(inputs, outputs, own)


def _errors(runtime: Any) -> tuple[type[Exception], ...]:
    """The errors of onnxruntime: classes without a common base of their own, and RuntimeError."""
    state = runtime.capi.onnxruntime_pybind11_state
    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError)


def values_of(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Arrays as onnxruntime's own values. Raises ``InputError`` for bfloat16, where it is too old."""
    runtime = onnxruntime()
    return {name: _value(runtime, array) for name, array in arrays.items()}


def _value(runtime: Any, array: Array) -> Any:
    if array.dtype != DTYPES["bfloat16"].numpy():
        return runtime.OrtValue.ortvalue_from_numpy(array)
    make = getattr(runtime.OrtValue, "ortvalue_from_numpy_with_onnx_type", None)
    if make is None:
        what = f"onnxruntime {runtime.__version__} does not take inputs of bfloat16"
        raise InputError(what, fix="install a newer onnxruntime, or use inputs of float32")
    return make(array.view(np.uint16), _BFLOAT16)


def arrays_of(ports: Sequence[ValueInfo], values: Mapping[str, Any]) -> dict[str, Array]:
    """Outputs as arrays. onnxruntime cannot return bfloat16, so these are copied from its memory."""
    found: dict[str, Array] = {}
    for port in ports:
        value = values[port.name]
        if port.dtype == DTYPES["bfloat16"]:
            shape = tuple(value.shape())
            bits = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape)))
            found[port.name] = np.frombuffer(bits, port.dtype.numpy()).reshape(shape)
        else:
            found[port.name] = value.numpy()
    return found
