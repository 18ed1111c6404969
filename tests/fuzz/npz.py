"""NumPy's archives: the heads of their arrays, and what the archive says of them."""

from __future__ import annotations

import struct
from random import Random

from tests.fuzz.case import Case, on_file
from tests.fuzz.values import TEXTS, edge, spoilt
from tests.fuzz.zips import archive

__all__ = ["case"]

_DESCRS = ("'<f4'", "'<f4'", "'<f4'", "'>f4'", "'<f8'", "'<f2'", "'|b1'", "'<i8'", "'|O'", "'|V2'", "'<U3'")
_ODD = (
    "'<f99'",
    "('<f4', (2,))",
    "[('a', '<f4')]",
    "None",
    "'f'",
    "'<f4' ",
    "f4",
    "__import__('os')",
    "9" * 500,
)


def case(random: Random) -> Case:
    records = []
    for at in range(random.randint(1, 3)):
        v = [random.choice([1, 2, 3]) for _ in range(random.choice([1, 2, 3]))]
        where = random.choice([f"l{at}.", "", random.choice(TEXTS).replace("\x00", "")])
        for name, shape in ((f"{where}weight_g", [v[0], *[1] * (len(v) - 1)]), (f"{where}weight_v", v)):
            records.append(
                (f"{name}{random.choice(['.npy', '.npy', '.npy', '', '.NPY'])}", _array(random, shape))
            )
    records = [(name, data) for name, data in records if name.isprintable() and len(name) < 4000]
    made = archive(records or [("a.npy", _array(random, [2]))])
    if random.random() < 0.1:
        made = spoilt(random, made)
    return Case("npz", {"in.npz": made}, "in.npz", on_file(random, "in.npz", ".safetensors"))


def _array(random: Random, shape: list[int]) -> bytes:
    count = 1
    for size in shape:
        count *= size
    descr = random.choice(_DESCRS)
    width = {"f4": 4, "f8": 8, "f2": 2, "i8": 8, "V2": 2}.get(descr[2:4], 4)
    raw = struct.pack(f"<{count}f", *([0.5] * count)) if width == 4 else bytes(width * count)
    said = f"({', '.join(map(str, shape))},)" if shape else "()"
    order = random.choice(["False", "False", "False", "True"])
    if random.random() < 0.3:
        match random.randrange(4):
            case 0:
                descr = random.choice(_ODD)
            case 1:
                said = random.choice(
                    [f"({edge(random)}, {edge(random)},)", "(-1,)", "3", "()", "(1.5,)", "[2]"]
                )
            case 2:
                order = random.choice(["1", "None", "'C'"])
            case _:
                raw = raw[: random.randrange(len(raw) + 1)] + b"x" * random.choice([0, 1])
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {said}, }}".encode()
    version = random.choice([b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x04\x00"])
    form = "<H" if version[0] == 1 else "<I"
    text += b" " * (-(8 + struct.calcsize(form) + len(text) + 1) % 64) + b"\n"
    text = spoilt(random, text) if random.random() < 0.1 else text
    length = len(text) if random.random() < 0.95 else edge(random, len(text)) & 0xFFFF
    return b"\x93NUMPY" + version + struct.pack(form, length & 0xFFFF) + text + raw
