"""safetensors files: the JSON of their headers, its offsets, dtypes, names, doubles, nesting and metadata."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

from tests.fuzz.case import Case, on_file
from tests.fuzz.values import edge, spoilt, text_of

__all__ = ["case", "written"]

_DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "I32": 4}
_ODD_DTYPES: tuple[Any, ...] = (
    "F4",
    "F6_E2M3",
    "F8_E8M0",
    "C64",
    "f32",
    "",
    "F32 ",
    "U64",
    "E8M0",
    1,
    None,
    [],
)
_FLOATS = {"F32": "f", "F16": "e", "F64": "d"}


def case(random: Random) -> Case:
    files = {"in.safetensors": written(random)}
    return Case("safetensors", files, "in.safetensors", on_file(random, "in.safetensors", ".safetensors"))


def written(random: Random) -> bytes:
    """A file made at random; most often with one thing wrong in it."""
    header, body = _whole(random)
    for _ in range(random.choice([0, 0, 0, 1, 1, 2])):
        whole = [name for name, item in header.items() if isinstance(item, dict) and len(item) > 2]
        if random.random() < 0.15:
            body = body[: random.randrange(len(body) + 1)] + b"x" * random.choice([0, 0, 1, 8])
        elif random.random() < 0.15:
            header["__metadata__"] = random.choice([_texts(random), _json(random, 2)])
        elif whole:
            _change(random, header, random.choice(whole))
    return _packed(random, header, body)


def _change(random: Random, header: dict[str, Any], name: str) -> None:
    """Change what the header says of one tensor."""
    item = header[name]
    match random.randrange(7):
        case 0:
            item["data_offsets"] = [
                edge(random, random.randrange(99)) for _ in range(random.choice([2, 2, 2, 1, 3]))
            ]
        case 1:
            item["dtype"] = random.choice([*_ODD_DTYPES, *_DTYPES])
        case 2:
            item["shape"] = [edge(random, 2) for _ in range(random.choice([0, 1, 2, 3, 9, 65]))]
        case 3:
            item[random.choice(["extra", "shape", "dtype", "data_offsets"])] = _json(random, 2)
        case 4:
            del item[random.choice([*item])]
        case 5:
            header[text_of(random)] = dict(item)
        case _:
            header[name] = _json(random, 2)


def _whole(random: Random) -> tuple[dict[str, Any], bytes]:
    """A header as it should be, and the bytes of its tensors."""
    header: dict[str, Any] = {}
    body = b""

    def add(name: str, dtype: str, shape: list[int]) -> None:
        nonlocal body
        count = 1
        for size in shape:
            count *= size
        if dtype in _FLOATS:
            values = random.choices([0.5, 1.0, -2.0, 0.25, 1e-7, 3.0], k=count)
            raw = struct.pack(f"<{count}{_FLOATS[dtype]}", *values)
        else:
            raw = b"\x00\x3f" * count if dtype == "BF16" else bytes(count * _DTYPES[dtype])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw

    for at in range(random.randint(1, 4)):
        where = random.choice([f"l{at}.", f"l{at}.", "", text_of(random) + "."])
        dtype = random.choice(["F32"] * 6 + [*_DTYPES])
        v = [random.choice([1, 2, 3, 4]) for _ in range(random.choice([1, 2, 3, 3, 4]))]
        if random.random() < 0.05:  # rows enough for pieces, pages and threads
            v = random.sample([3, 7, 64, 300], 3)
        dim = random.choice([0, 0, len(v) - 1])
        g = [size if axis == dim else 1 for axis, size in enumerate(v)]
        kind = random.randrange(4)
        if kind < 2:
            add(f"{where}weight_g", dtype, random.choice([g, g, g, [v[0]], [1] * len(v), []]))
            add(f"{where}weight_v", random.choice([dtype, dtype, dtype, "F16"]), v)
        elif kind == 2:
            add(f"{where}parametrizations.weight.original0", dtype, g)
            add(f"{where}parametrizations.weight.original1", dtype, v)
        else:
            add(f"{where}weight", dtype, v)
    if random.random() < 0.3:
        header["__metadata__"] = _texts(random)
    return header, body


def _texts(random: Random) -> dict[str, str]:
    made = {text_of(random): text_of(random) for _ in range(random.randrange(4))}
    if random.random() < 0.3:
        made["wnconvert"] = json.dumps(_json(random, 3))
    return made


def _json(random: Random, depth: int) -> Any:
    """Any JSON, at random."""
    if depth and random.random() < 0.5:
        if random.random() < 0.5:
            return [_json(random, depth - 1) for _ in range(random.randrange(4))]
        return {text_of(random): _json(random, depth - 1) for _ in range(random.randrange(4))}
    return random.choice([None, True, edge(random), -1, 0.5, 1e308, text_of(random), "fold", [], {}])


def _packed(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    """The file: JSON in one of its spellings, its length, the tensors."""
    text = json.dumps(header, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    match random.randrange(40):
        case 0:
            at = text.find(b'"', random.randrange(len(text)))
            text = (
                text[:at]
                + random.choice([b'"a":1,', b"[" * 99, b" ", b"\x00", b"NaN", b"1e999,"])
                + text[at:]
            )
        case 1:
            first = next(iter(header))
            double = json.dumps({first: header[first]}).encode()[1:-1]
            text = b"{" + double + b"," + text[1:]
        case 2:
            text = spoilt(random, text)
        case 3:
            text = random.choice([b" ", b"\n", b"\xef\xbb\xbf"]) + text
        case _:
            text += b" " * (-len(text) % 8)
    length = len(text) if random.random() < 0.95 else edge(random, len(text))
    return struct.pack("<Q", length & ((1 << 64) - 1)) + text + body
