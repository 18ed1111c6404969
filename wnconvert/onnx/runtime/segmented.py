"""A model in segments, loaded and run one behind the other, in this process."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from wnconvert.errors import InputError
from wnconvert.frozen import dataclass
from wnconvert.messages import printable
from wnconvert.onnx.file.tensors import CODES
from wnconvert.onnx.file.wire import bytes_record, int_record
from wnconvert.onnx.runtime.ports import ValueInfo, torch_name
from wnconvert.onnx.runtime.session import Session, arrays_of, load_session, values_of
from wnconvert.onnx.segments import Segment, with_inputs
from wnconvert.tensors.blocks import Array, processors

__all__ = ["Segmented", "load_segmented", "type_message"]


#: Of the fields of a TypeProto, those of a tensor and of a sequence; the code of texts.
_TENSOR, _SEQUENCE = 1, 4
_CODES = CODES | {"string": 8}


@dataclass(frozen=True, slots=True)
class Segmented:
    """A model whose segments onnxruntime has loaded; ``inputs`` are the required ones of the model."""

    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    segments: tuple[Session, ...] = field(repr=False, compare=False)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, in order. Raises ``VerifyError`` if a segment fails, ``InputError``."""
        last = {port.name: at for at, segment in enumerate(self.segments) for port in segment.inputs}
        last |= dict.fromkeys((port.name for port in self.outputs), len(self.segments))
        values = values_of(feeds)
        for at, segment in enumerate(self.segments):
            values |= segment.values({port.name: values[port.name] for port in segment.inputs})
            for name in [name for name in values if last.get(name, at) <= at]:
                del values[name]  # no segment needs it any more
        return arrays_of(self.outputs, values)


def load_segmented(segments: Iterable[Segment], outputs: Sequence[str], *, folder: str) -> Segmented:
    """Load a model in segments, with the names of its ``outputs``, its nodes run as they are.

    Raises as ``load_session`` does, and ``InputError`` for a segment that takes what is neither a tensor
    nor a sequence of tensors.
    """
    models = list(segments)
    threads = max(processors() // len(models), 1)  # each has its own; together they are those of one model
    kinds: dict[str, ValueInfo] = {}
    loaded: list[Session] = []
    for segment in models:
        model = with_inputs(segment.model, {name: type_message(kinds[name].kind) for name in segment.takes})
        loaded.append(load_session(model, optimize=False, folder=folder, threads=threads))
        kinds |= {port.name: port for port in loaded[-1].outputs}
    return Segmented(loaded[0].inputs, tuple(kinds[name] for name in outputs), tuple(loaded))


def type_message(kind: str) -> bytes:
    """A type, as onnxruntime writes it, as a TypeProto without a shape.

    Raises ``InputError`` for one that is neither a tensor nor a sequence of tensors.

    >>> type_message("tensor(float)").hex(), type_message("seq(tensor(int64))").hex()
    ('0a020801', '22060a040a020807')
    """
    found = re.fullmatch(r"(tensor|seq)\((.*)\)", kind)
    if found and found[1] == "seq":
        return bytes_record(_SEQUENCE, bytes_record(1, type_message(found[2])))
    code = _CODES.get(torch_name(found[2])) if found else None
    if code is None:
        raise InputError(f"a value of it is {printable(kind)}", fix="give a model of tensors")
    return bytes_record(_TENSOR, int_record(1, code))
