"""ONNX models: the fields of their messages, one level or many levels down."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TypeAlias, Union

from tests.fuzz.case import Case, on_file
from tests.fuzz.values import TEXTS, edge, spoilt

__all__ = ["case"]

_SOURCE = Path(__file__).parents[2] / "fixtures" / "tcn.onnx"
#: A field: its number, its wire type, and a number, bytes, or the fields of a message.
_Field: TypeAlias = tuple[int, int, Union[int, bytes, "list[_Field]"]]


def case(random: Random) -> Case:
    fields = _parsed(_SOURCE.read_bytes())
    assert fields is not None, "the fixture is a message"
    for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
        _change(random, fields)
    made = _written(fields)
    if random.random() < 0.05:
        made = spoilt(random, made)
    return Case("onnx", {"in.onnx": made}, "in.onnx", on_file(random, "in.onnx", ".onnx"))


def _change(random: Random, fields: list[_Field]) -> None:
    """Change one field of a message, or of one that it holds."""
    if not fields:
        fields.append(_field(random))
        return
    at = random.randrange(len(fields))
    number, wire, value = fields[at]
    if isinstance(value, list) and random.random() < 0.85:
        _change(random, value)
        return
    match random.randrange(9):
        case 0:
            del fields[at]
        case 1:
            fields.insert(random.randrange(len(fields)), fields[at])
        case 2:
            random.shuffle(fields)
        case 3:
            fields.insert(at, _field(random))
        case 4:
            fields[at] = (random.choice([1, 2, 3, 4, 5, 8, 9, 13, 20, 100, 1 << 28]), wire, value)
        case 5:
            fields[at] = (number, random.choice([0, 1, 2, 3, 4, 5, 6, 7]), value)
        case 6 if isinstance(value, list):
            fields[at] = (number, wire, spoilt(random, _written(value)))
        case 6 | 7 if isinstance(value, bytes):
            fields[at] = (number, wire, random.choice([spoilt(random, value), _text(random), b""]))
        case _:
            fields[at] = (number, wire, edge(random, value) if isinstance(value, int) else _text(random))


def _text(random: Random) -> bytes:
    return random.choice(
        [text.encode("utf-8", "surrogatepass") for text in TEXTS] + [b"\xff\xfe", b"Mul", b"X"]
    )


def _field(random: Random) -> _Field:
    number = random.choice([*range(1, 16), 20, 21, 536870911])
    made: list[_Field] = [
        (number, 0, edge(random)),
        (number, 2, _text(random)),
        (number, 5, 1),
        (number, 1, 1),
    ]
    return random.choice(made)


def _parsed(data: bytes, depth: int = 0) -> list[_Field] | None:
    """The fields of a message, or None if the bytes are none; texts that could be one are taken for it."""
    fields: list[_Field] = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 64 or wire not in {0, 1, 2, 5} or at > len(data):
            return None
        if wire == 0:
            value, at = _varint(data, at)
            fields.append((number, wire, value))
        elif wire == 2:
            length, at = _varint(data, at)
            inside = data[at : at + length]
            if len(inside) < length:
                return None
            below = _parsed(inside, depth + 1) if depth < 6 and length < 20_000 else None
            fields.append((number, wire, below or inside))
            at += length
        else:
            width = 8 if wire == 1 else 4
            fields.append((number, wire, int.from_bytes(data[at : at + width], "little")))
            at += width
    return fields if at == len(data) else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    return value, len(data) + 1


def _number(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 127
        out.append(low | 128 if value else low)
        if not value:
            return bytes(out)


def _written(fields: list[_Field]) -> bytes:
    out = bytearray()
    for number, wire, value in fields:
        out += _number(number << 3 | wire)
        if wire == 0:
            out += _number(value if isinstance(value, int) else len(value))
        elif wire in {1, 5}:
            width = 8 if wire == 1 else 4
            out += (value if isinstance(value, int) else 1).to_bytes(16, "little")[:width]
        else:
            raw = _written(value) if isinstance(value, list) else value
            raw = _number(raw) if isinstance(raw, int) else raw
            out += _number(len(raw)) + raw
    return bytes(out)
