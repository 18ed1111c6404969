"""What two processes say to each other through a pipe: an object of JSON, and arrays.

A frame is the length of its head (8 bytes), the head (JSON, with names, dtypes and shapes of the arrays), and
the bytes of the arrays. Nothing of it is code.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from io import RawIOBase
from typing import Any, TypeAlias

import numpy as np

from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES

__all__ = ["MODEL", "Frame", "receive", "send"]


#: What is said, and the arrays that belong to it, by name.
Frame: TypeAlias = tuple[dict[str, Any], dict[str, Array]]

#: The name of the bytes of a model among arrays: no input is called so.
MODEL = ""

_LENGTH = struct.Struct("<Q")


def send(pipe: RawIOBase, said: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a frame. Raises ``OSError`` if nobody reads any more."""
    kinds = [(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    head = json.dumps({"said": said, "arrays": kinds}).encode()
    _write(pipe, memoryview(_LENGTH.pack(len(head)) + head))
    for array in arrays.values():
        _write(pipe, _bytes_of(np.ascontiguousarray(array)))


def receive(pipe: RawIOBase) -> Frame:
    """Read a frame. Raises ``EOFError`` if the other process has ended."""
    (length,) = _LENGTH.unpack(_read(pipe, memoryview(bytearray(_LENGTH.size))))
    head = json.loads(bytes(_read(pipe, memoryview(bytearray(length)))))
    arrays = {name: np.empty(shape, DTYPES[kind].numpy()) for name, kind, shape in head["arrays"]}
    for array in arrays.values():
        _read(pipe, _bytes_of(array))
    return head["said"], arrays


def _bytes_of(array: Array) -> memoryview:
    """The memory of an array; numpy gives no buffer of bfloat16."""
    return array.reshape(-1).view(np.uint8).data


def _write(pipe: RawIOBase, data: memoryview) -> None:
    while data:
        data = data[pipe.write(data) or 0 :]


def _read(pipe: RawIOBase, into: memoryview) -> memoryview:
    done = 0
    while done < len(into):
        count = pipe.readinto(into[done:])
        if not count:
            raise EOFError
        done += count
    return into
