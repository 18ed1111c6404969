"""onnxruntime's errors in words: what its messages say about the model, and what to do."""

from __future__ import annotations

import re

from wnconvert.errors import FormatError, InputError, VerifyError, WnconvertError
from wnconvert.messages import printable

__all__ = ["NoAnswerError", "no_memory", "not_loaded", "not_run"]


class NoAnswerError(InputError):
    """onnxruntime did not come to an end: its time is over, its memory short, it was killed or crashed."""


_NO_MEMORY = re.compile(r"bad_alloc|bad allocation|[Ff]ailed to allocate|[Cc]annot allocate|[Oo]ut of memory")


#: What is said of external data. Of a file that is missing, onnxruntime 1.21 says only what the system said.
_DATA = re.compile(
    "external data|external initializer|ExternalData|GetExtData|cannot get file size", re.IGNORECASE
)


def no_memory() -> NoAnswerError:
    """The error for a model that needs more memory than there is."""
    return NoAnswerError(
        "onnxruntime needs more memory for it than is free",
        fix="free some memory, or use a machine that has more",
    )


def not_loaded(message: str, version: str) -> WnconvertError:
    """The error for a model that was not loaded, by words in onnxruntime's message."""
    if _NO_MEMORY.search(message):
        return no_memory()
    said = _useful(message)
    if "Protobuf parsing failed" in message or "No graph was found" in message:
        return FormatError("not an ONNX model, or cut short", fix="export it again")
    if _DATA.search(message):
        return _without_data(message, said)
    newer = re.search(r"Opset (\d+) is under development.*till opset (\d+)", said)
    if newer:
        said = f"its opset is {newer[1]}, and the newest known opset is {newer[2]}"
    if re.search(r"NOT_IMPLEMENTED|opset|IR version|No Op registered", message):
        return InputError(
            f"onnxruntime {version} cannot run this model: {said}",
            fix="export in float32, with a lower --opset, without custom operators; or update onnxruntime",
        )
    return FormatError(f"not a valid ONNX model: {said}", fix="export it again")


def _without_data(message: str, said: str) -> InputError:
    """The error for a model whose external data cannot be read."""
    if re.search(r"escapes|outside|\[\.\./", message):
        return InputError(
            f"external data lies outside the folder of the model: {said}",
            fix="put external data into the folder of the model, or below",
        )
    if "out of bounds" in message or "can not be read in full" in message:
        return InputError(
            f"external data is cut short: {said}",
            fix="put the whole file of external data beside the model",
        )
    return InputError(
        f"external data is missing: {said}", fix="put the files of external data beside the model"
    )


def not_run(message: str) -> WnconvertError:
    """The error for a model that failed while it ran, with the innermost node."""
    if _NO_MEMORY.search(message):
        return no_memory()
    nodes = re.findall(r"while running (\S+) node\. Name:'([^']*)'", message)
    said = _useful(message.rpartition("Status Message: ")[2])
    at = f"{nodes[-1][0]} node '{printable(nodes[-1][1])}': " if nodes else ""
    fix = "export it with these sizes dynamic, or give ranges of sizes that it takes"
    return VerifyError(f"the model fails in onnxruntime: {at}{said}", fix=fix)


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
