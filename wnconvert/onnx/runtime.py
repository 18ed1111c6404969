"""Runs ONNX models in onnxruntime, and turns its errors into ours."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from wnconvert.errors import ArgumentError, FormatError, InputError, VerifyError, WnconvertError
from wnconvert.messages import listed, printable, to_install
from wnconvert.onnx.file.tensors import CODES
from wnconvert.tensors.blocks import Array, processors
from wnconvert.tensors.dtypes import DTYPES, DType

__all__ = ["Opened", "ValueInfo", "open_model", "run"]


#: The torch names of dtypes by those of onnxruntime, where these differ.
_NAMES = {
    "float": "float32",
    "double": "float64",
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
}
_FATAL = 4  # onnxruntime writes nothing to stderr below this severity


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """An input or output of a model: a number, a name or None for each size.

    ``dtype`` is None if it is not a tensor of numbers; ``kind`` is its type in any case. ``shape`` is ()
    also if the model does not give a shape.
    """

    name: str
    kind: str
    dtype: DType | None
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        """The dtype and shape, as a text for ``--input``."""
        sizes = ",".join("?" if size is None else printable(str(size)) for size in self.shape)
        return f"{self.dtype or self.kind}[{sizes}]"


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that onnxruntime has loaded; ``inputs`` are the required ones."""

    path: Path
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    session: Any = field(repr=False, compare=False)


def open_model(path: str | Path, *, optimize: bool = True) -> Opened:
    """Load a model and its external data from beside it, to run on the CPU.

    Without ``optimize`` the nodes are run as they are in the file. Raises ``ArgumentError`` if onnxruntime
    is not installed, ``InputError`` (or ``FormatError``) for a model that it cannot load.
    """
    runtime = _onnxruntime()
    path = Path(path)
    _check_file(path)
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = processors()
    options.inter_op_num_threads = 1
    # A thread that waits for work must not keep a processor busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _errors(runtime) as error:
        raise _not_loaded(path, str(error), runtime.__version__) from error
    inputs, outputs = (tuple(map(_port, ports)) for ports in (session.get_inputs(), session.get_outputs()))
    return Opened(path, inputs, outputs, session)


def run(
    opened: Opened, feeds: Mapping[str, Array], spelled: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Array]:
    """The outputs of a model by name, in its order; ``spelled`` is how the user writes names of inputs.

    Raises ``ArgumentError`` if the names, dtypes or shapes of ``feeds`` do not fit its inputs,
    ``InputError`` if an output is not a tensor of numbers, ``VerifyError`` if the model fails.
    """
    runtime = _onnxruntime()
    _check_feeds(opened, feeds, spelled)
    for port in opened.outputs:
        if port.dtype is None or port.dtype.is_float8:
            what = f"output {printable(port.name)} is {port.kind}, which cannot be compared"
            raise InputError(
                what, where=str(opened.path), fix="give a model whose outputs are tensors of numbers"
            )
    names = [port.name for port in opened.outputs]
    try:
        if any(port.dtype == DTYPES["bfloat16"] for port in (*opened.inputs, *opened.outputs)):
            values = {name: _value(runtime, np.ascontiguousarray(array)) for name, array in feeds.items()}
            return _arrays(opened, opened.session.run_with_ort_values(names, values))
        found = opened.session.run(names, dict(feeds))
    except _errors(runtime) as error:
        raise _not_run(opened.path, str(error)) from error
    return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ArgumentError(
            "running an ONNX model needs onnxruntime", fix=to_install("onnxruntime")
        ) from error
    return onnxruntime


def _errors(runtime: Any) -> tuple[type[Exception], ...]:
    """The errors of onnxruntime: classes without a common base of their own, and RuntimeError."""
    state = runtime.capi.onnxruntime_pybind11_state
    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError)


def _port(port: Any) -> ValueInfo:
    kind = re.fullmatch(r"tensor\((\w+)\)", port.type)
    name = _NAMES.get(kind[1], kind[1]) if kind else ""
    return ValueInfo(port.name, port.type, DTYPES.get(name), tuple(port.shape))


# -- inputs


def _check_feeds(opened: Opened, feeds: Mapping[str, Array], spelled: Mapping[str, str]) -> None:
    where, names = str(opened.path), [port.name for port in opened.inputs]
    have = f"its inputs are {listed(map(printable, names))}" if names else "it has no inputs"
    for name in feeds:
        if name not in names:
            raise ArgumentError(f"the model has no input {printable(name)}", where=where, fix=have)
    for port in opened.inputs:
        name = printable(port.name)
        if port.name not in feeds:
            raise ArgumentError(f"the input {name} is missing", where=where, fix=have)
        array = feeds[port.name]
        text = f"{printable(spelled.get(port.name, port.name))}={port}"
        if port.dtype is None or array.dtype.name != port.dtype.name:
            what = f"input {name} is {port.dtype or port.kind}, but {array.dtype} is given"
            raise ArgumentError(what, where=where, fix=f"give {text}")
        fits = len(array.shape) == len(port.shape) and all(
            size == want or not isinstance(want, int)
            for size, want in zip(array.shape, port.shape, strict=True)
        )
        if port.shape and not fits:
            shape = ",".join(map(str, array.shape))
            what = f"input {name} is {port}, but the shape [{shape}] is given"
            raise ArgumentError(what, where=where, fix=f"give sizes that it takes: {text}")


def _value(runtime: Any, array: Array) -> Any:
    if array.dtype != DTYPES["bfloat16"].numpy():
        return runtime.OrtValue.ortvalue_from_numpy(array)
    make = getattr(runtime.OrtValue, "ortvalue_from_numpy_with_onnx_type", None)
    if make is None:
        what = f"onnxruntime {runtime.__version__} does not take inputs of bfloat16"
        raise InputError(what, fix="install a newer onnxruntime, or use inputs of float32")
    return make(array.view(np.uint16), CODES["bfloat16"])


def _arrays(opened: Opened, values: Any) -> dict[str, Array]:
    """Outputs as arrays. onnxruntime cannot return bfloat16, so these are copied from its memory."""
    found: dict[str, Array] = {}
    for port, value in zip(opened.outputs, values, strict=True):
        if port.dtype == DTYPES["bfloat16"]:
            shape = tuple(value.shape())
            bits = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape)))
            found[port.name] = np.frombuffer(bits, port.dtype.numpy()).reshape(shape)
        else:
            found[port.name] = value.numpy()
    return found


# -- errors


def _check_file(path: Path) -> None:
    if not path.exists():
        raise InputError("no such file", where=str(path))
    if not path.is_file():
        raise InputError("not a file", where=str(path), fix="give the .onnx file itself")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InputError(str(error.strerror or error), where=str(path)) from error
    if empty:
        raise FormatError("an empty file, not an ONNX model", where=str(path), fix="export it again")


def _not_loaded(path: Path, message: str, version: str) -> WnconvertError:
    """The error for a model that was not loaded, by words in onnxruntime's message."""
    said, where = _useful(message), str(path)
    if "Protobuf parsing failed" in message or "No graph was found" in message:
        return FormatError("not an ONNX model, or cut short", where=where, fix="export it again")
    if re.search("external data|external initializer|ExternalData|GetExtData", message, re.IGNORECASE):
        if "escapes" in message or "outside" in message:
            fix = "put external data into the folder of the model, or below"
            return InputError(
                f"external data lies outside the folder of the model: {said}", where=where, fix=fix
            )
        if "out of bounds" in message or "can not be read in full" in message:
            fix = "put the whole file of external data beside the model"
            return InputError(f"external data is cut short: {said}", where=where, fix=fix)
        fix = "put the files of external data beside the model"
        return InputError(f"external data is missing: {said}", where=where, fix=fix)
    newer = re.search(r"Opset (\d+) is under development.*till opset (\d+)", said)
    if newer:
        said = f"its opset is {newer[1]}, and the newest known opset is {newer[2]}"
    if re.search(r"NOT_IMPLEMENTED|opset|IR version|No Op registered", message):
        what = f"onnxruntime {version} cannot run this model: {said}"
        fix = "export in float32, with a lower --opset, without custom operators; or update onnxruntime"
        return InputError(what, where=where, fix=fix)
    return FormatError(f"not a valid ONNX model: {said}", where=where, fix="export it again")


def _not_run(path: Path, message: str) -> WnconvertError:
    """The error for a model that failed while it ran, with the innermost node."""
    nodes = re.findall(r"while running (\S+) node\. Name:'([^']*)'", message)
    said = _useful(message.rpartition("Status Message: ")[2])
    at = f"{nodes[-1][0]} node '{printable(nodes[-1][1])}': " if nodes else ""
    fix = "export it with these sizes dynamic, or give ranges of sizes that it takes"
    return VerifyError(f"the model fails in onnxruntime: {at}{said}", where=str(path), fix=fix)


#: A place in onnxruntime's source: file, line and function (its name or whole signature).
_PLACE = re.compile(
    r"(?:Error: )?(?:/[\w./+-]*/)?\w+\.(?:cc|cpp|h|hpp):\d+ "
    r"(?:[^()]*::[^()]*\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^\]]*\])?|\w+) "
)


def _useful(message: str) -> str:
    """The part of onnxruntime's message that is about the model, in one line.

    >>> _useful("[ONNXRuntimeError] : 1 : FAIL : a.cc:3 Check External data path does not exist: w.bin")
    'External data path does not exist: w.bin'
    """
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", message)
    text = re.sub(r"^Load model from .*? failed:\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"^(Error: )?(This is an i|I)nvalid model\. ", "", _PLACE.sub(" ", text).strip())
    text = re.sub(r"^In Node, .*, Error ", "", text, flags=re.DOTALL)
    return printable(" ".join(text.split()))
