"""Zip archives: every field of the local headers, of the directory and of its end, by a writer of our own."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.case import Case, on_file
from tests.fuzz.values import TEXTS, edge, spoilt

__all__ = ["archive", "case", "records_of"]

_FIXTURES = Path(__file__).parents[2] / "fixtures"
_SOURCES = (
    "sovits.pth",
    "plain.pt",
    "tied.pt",
    "gan.pt",
    "scripted.pt",
    "program.pt2",
    "waveglow_module.pt",
    "kinds.pt",
)
_LOCAL = ("need", "flags", "method", "time", "date", "crc", "packed", "plain")
_ENTRY = (*_LOCAL, "made", "disk", "inner", "outer", "place")


@dataclass(frozen=True)
class _Record:
    """A record, and the fields that its headers have in place of the right ones."""

    name: bytes
    data: bytes
    local: dict[str, int] = field(default_factory=dict)
    entry: dict[str, int] = field(default_factory=dict)
    extra: bytes = b""
    comment: bytes = b""
    other_name: bytes | None = None


def records_of(data: bytes) -> list[tuple[str, bytes]]:
    """Names and bytes of the records of an archive."""
    if data[:2] != b"PK":
        data = b"PK" + data[2:]
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return [(name, opened.read(name)) for name in opened.namelist()]


def archive(records: Sequence[tuple[str, bytes]]) -> bytes:
    """An uncompressed archive as it should be."""
    return _written([_Record(name.encode(), data) for name, data in records], {}, b"", b"")


def case(random: Random) -> Case:
    source = random.choice(_SOURCES)
    data = (_FIXTURES / source).read_bytes()
    records = [_Record(name.encode(), content) for name, content in records_of(data)]
    end: dict[str, int] = {}
    comment, front = b"", b""
    for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
        match random.randrange(9):
            case 0:
                end[random.choice(["disks", "here", "count", "length", "start"])] = edge(random, len(records))
            case 1:
                comment = random.choice([b"x", b"PK\x05\x06" + bytes(18), b"a" * 65535, random.randbytes(99)])
            case 2:
                front = random.choice([b"#!/bin/sh\n", random.randbytes(64), b"PK\x03\x04"])
            case 3:
                random.shuffle(records)
            case 4:
                records.insert(random.randrange(len(records)), random.choice(records))
            case 5:
                del records[random.randrange(len(records))]
            case _ if records:
                at = random.randrange(len(records))
                records[at] = _changed(random, records[at])
    if not records:
        records = [_Record(b"x/data.pkl", b"N.")]
    made = _written(records, end, comment, front, wide=random.random() < 0.1)
    if random.random() < 0.1:
        made = spoilt(random, made)
    suffix = ".pt2" if source.endswith(".pt2") else ".pt"
    name = f"in{suffix}"
    return Case("zips", {name: made}, name, on_file(random, name, suffix))


def _changed(random: Random, record: _Record) -> _Record:
    """A record with one thing about it changed."""
    near = random.choice([len(record.data), zlib.crc32(record.data), 0])
    text = random.choice(TEXTS).encode("utf-8", "surrogatepass")
    change: dict[str, Any] = {}
    match random.randrange(10):
        case 0:
            change["local"] = record.local | {random.choice(_LOCAL): edge(random, near)}
        case 1 | 2:
            change["entry"] = record.entry | {random.choice(_ENTRY): edge(random, near)}
        case 3:
            wide = [edge(random, near) for _ in range(random.randrange(4))]
            change["extra"] = _pack(f"HH{'Q' * len(wide)}", 1, 8 * len(wide), *wide)
            full = random.sample(["packed", "plain", "place"], 2)
            change["entry"] = record.entry | dict.fromkeys(full, 0xFFFFFFFF)
        case 4:
            top, _, rest = record.name.partition(b"/")
            names = [text, top + b"/" + text, top + text + b"/" + rest, b"\xff" + text]
            change["name"] = random.choice(names)
        case 5:
            change["other_name"] = text
        case 6:
            change["extra"] = random.randbytes(random.choice([1, 3, 4, 8, 40]))
        case 7:
            change["comment"] = random.randbytes(random.choice([1, 20, 300]))
        case 8:  # really compressed
            sizes = {"method": 8, "plain": len(record.data), "crc": zlib.crc32(record.data)}
            change |= {"data": zlib.compress(record.data)[2:-4], "local": sizes, "entry": dict(sizes)}
        case _:
            change["data"] = spoilt(random, record.data)
    return replace(record, **change)


_64 = (1 << 64) - 1


def _pack(form: str, *values: int) -> bytes:
    """Numbers as fields, cut to what these hold."""
    sizes = {"H": 0xFFFF, "I": 0xFFFFFFFF, "Q": _64}
    return struct.pack(f"<{form}", *(v & sizes[code] for code, v in zip(form, values, strict=True)))


def _written(
    records: Sequence[_Record], end: dict[str, int], comment: bytes, front: bytes, *, wide: bool = False
) -> bytes:
    out, central = bytearray(front), bytearray()
    for record in records:
        right = {"need": 20, "flags": 0, "method": 0, "time": 0, "date": 0x21}
        right |= {"crc": zlib.crc32(record.data), "packed": len(record.data), "plain": len(record.data)}
        place = len(out)
        head = right | record.local
        name = record.name if record.other_name is None else record.other_name
        padding = -(len(out) + 30 + len(name) + 4) % 64
        extra = _pack("HH", 0x4246, padding) + b"Z" * padding
        out += b"PK\x03\x04" + _pack("HHHHHIIIHH", *(head[key] for key in _LOCAL), len(name), len(extra))
        out += name + extra + record.data
        entry = right | {"made": 20, "disk": 0, "inner": 0, "outer": 0, "place": place} | record.entry
        central += b"PK\x01\x02" + _pack("H", entry["made"])
        central += _pack("HHHHHIII", *(entry[key] for key in _LOCAL))
        central += _pack("HHH", len(record.name), len(record.extra), len(record.comment))
        central += _pack("HHII", *(entry[key] for key in ("disk", "inner", "outer", "place")))
        central += record.name + record.extra + record.comment
    start, count = len(out), len(records)
    fields = {"disks": 0, "here": 0, "count": count, "length": len(central), "start": start} | end
    out += central
    if wide:
        size, place = fields["length"], fields["start"]
        out += b"PK\x06\x06" + _pack("QHHIIQQQQ", 44, 45, 45, 0, 0, count, fields["count"], size, place)
        out += b"PK\x06\x07" + _pack("IQI", 0, start + len(central), 1)
        fields |= {"count": 0xFFFF, "length": 0xFFFFFFFF, "start": 0xFFFFFFFF}
    out += b"PK\x05\x06" + _pack("HHHH", fields["disks"], fields["here"], fields["count"], fields["count"])
    out += _pack("IIH", fields["length"], fields["start"], len(comment)) + comment
    return bytes(out)
