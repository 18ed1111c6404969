"""NumPy's archives: the heads of their arrays, and what the archive says of them."""

from __future__ import annotations

import math
import struct
from random import Random

from tests.fuzz.case import Case, on_file
from tests.fuzz.values import edge, spoilt, text_of
from tests.fuzz.zips import archive

__all__ = ["case"]

_DESCRS = ("'<f4'", "'<f4'", "'<f4'", "'<f8'", "'<f2'", "'|b1'", "'<i8'")
_ODD = (
    *(
        "'>f4'",
        "'|O'",
        "'|V2'",
        "'<U3'",
        "'<f99'",
        "('<f4', (2,))",
        "[('a', '<f4')]",
        "None",
        "'f'",
        "'<f4' ",
    ),
    *("f4", "__import__('os')", "9" * 500),
)


def case(random: Random) -> Case:
    records: list[tuple[str, bytes]] = []
    odd = random.choice([None, 0, 1, 2])
    for at in range(random.randint(1, 3)):
        v = [random.choice([1, 2, 3]) for _ in range(random.choice([1, 2, 3]))]
        where = random.choice([f"l{at}.", f"l{at}.", "", text_of(random)])
        descr = random.choice(_DESCRS)
        for name, shape in ((f"{where}weight_g", [v[0], *[1] * (len(v) - 1)]), (f"{where}weight_v", v)):
            suffix = random.choice(["", ".NPY"]) if random.random() < 0.05 else ".npy"
            records.append((name + suffix, _array(random, descr, shape, odd=odd == len(records))))
    records = [(name, data) for name, data in records if name.isprintable() and len(name) < 4000]
    made = archive(records or [("a.npy", _array(random, "'<f4'", [2], odd=False))])
    if random.random() < 0.1:
        made = spoilt(random, made)
    return Case("npz", {"in.npz": made}, "in.npz", on_file(random, "in.npz", ".safetensors"))


def _array(random: Random, descr: str, shape: list[int], *, odd: bool) -> bytes:
    """An array with its head; something in that is wrong where it is ``odd``."""
    count = math.prod(shape)
    width = {"f4": 4, "f8": 8, "f2": 2, "i8": 8}.get(descr[2:4], 1)
    values = random.choices([0.5, 1.0, -2.0], k=count)
    raw = struct.pack(f"<{count}f", *values) if descr == "'<f4'" else b"\x01" * (width * count)
    said = f"({', '.join(map(str, shape))},)" if shape else "()"
    order = random.choice(["False", "False", "False", "True"])
    version = random.choice([b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00"])
    match random.randrange(6) if odd else 9:
        case 0:
            descr = random.choice(_ODD)
        case 1:
            said = random.choice([f"({edge(random)}, {edge(random)},)", "(-1,)", "3", "()", "(1.5,)", "[2]"])
        case 2:
            order = random.choice(["1", "None", "'C'"])
        case 3:
            version = random.choice([b"\x04\x00", b"\x00\x00", b"\x01\x07"])
        case 4:
            raw = raw[: random.randrange(len(raw) + 1)] + b"x" * random.choice([0, 1])
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {said}, }}".encode()
    form = "<H" if version[0] == 1 else "<I"
    text += b" " * (-(8 + struct.calcsize(form) + len(text) + 1) % 64) + b"\n"
    if odd and random.random() < 0.3:
        text = spoilt(random, text)
    length = edge(random, len(text)) if odd and random.random() < 0.1 else len(text)
    return b"\x93NUMPY" + version + struct.pack(form, length & 0xFFFF) + text + raw
