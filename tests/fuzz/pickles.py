"""Pickles: operations made, left out, doubled, swapped and given other arguments, in torch's containers."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
from pathlib import Path
from random import Random

from tests.fuzz.case import Case, on_file
from tests.fuzz.values import EDGES, TEXTS, edge, spoilt
from tests.fuzz.zips import archive, records_of

__all__ = ["case", "mutated", "operations"]

_FIXTURES = Path(__file__).parents[2] / "fixtures"
_ZIPS = ("sovits.pth", "plain.pt", "tied.pt", "gan.pt", "lightning.ckpt", "waveglow_module.pt", "scripted.pt")
_LEGACY = "legacy_nonzip.pth"
_PADDLE = ("paddle.pdparams", "paddle_protocol2.pdparams", "paddle_nested.pdparams")
_GLOBALS = (
    *("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"),
    *("torch FloatStorage", "torch HalfStorage", "torch DoubleStorage", "torch LongStorage", "torch Size"),
    *("torch BFloat16Storage", "torch.storage UntypedStorage", "torch float32", "torch device", "a b"),
    *("torch._tensor _rebuild_from_type_v2", "torch._utils _rebuild_sparse_tensor", "torch BoolStorage"),
    *("torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_qtensor", "builtins getattr", "os system"),
    *("numpy.core.multiarray scalar", "numpy dtype", "_codecs encode", "builtins set", "builtins complex"),
)


def case(random: Random) -> Case:
    if random.random() < 0.2:
        made = _legacy(random)
    elif random.random() < 0.4:
        made = _grown(random)
    elif random.random() < 0.2:
        made = mutated(random, (_FIXTURES / "frameworks" / random.choice(_PADDLE)).read_bytes())
    else:
        records = dict(records_of((_FIXTURES / random.choice(_ZIPS)).read_bytes()))
        name = random.choice([name for name in records if name.endswith("data.pkl")])
        records[name] = mutated(random, records[name])
        made = archive(list(records.items()))
    return Case("pickles", {"in.pt": made}, "in.pt", on_file(random, "in.pt", ".pt"))


def operations(data: bytes) -> list[bytes]:
    """The bytes of each operation of a pickle, in order."""
    places = [at for _, _, at in pickletools.genops(data) if at is not None]
    return [data[start:end] for start, end in zip(places, [*places[1:], len(data)], strict=True)]


def mutated(random: Random, data: bytes) -> bytes:
    """A pickle with a few of its operations changed; all after its STOP stays."""
    try:
        ops = operations(data)
    except ValueError:  # it was changed before
        return spoilt(random, data)
    for _ in range(random.choice([0, 1, 1, 1, 1, 2, 4])):
        at, other = random.randrange(len(ops)), random.randrange(len(ops))
        match random.randrange(12):
            case 0:
                del ops[at]
            case 1:
                ops.insert(at, ops[other])
            case 2:
                ops[at], ops[other] = ops[other], ops[at]
            case 3:
                ops.insert(at, _operation(random))
            case 4:
                ops[at] = _operation(random)
            case _:
                ops[at] = _other_argument(random, ops[at])
        if not ops:
            break
    made = b"".join(ops)
    return spoilt(random, made) if random.random() < 0.05 else made


def _other_argument(random: Random, op: bytes) -> bytes:
    """The same operation with another argument, or another that takes such a one."""
    code, arg = op[:1], op[1:]
    if code in b"KMJ":
        value = edge(random, int.from_bytes(arg, "little"))
        return _integer(value)
    if code in (b"X", b"\x8c"):
        return _text(random.choice(TEXTS))
    if code == b"c":
        module, name = random.choice(_GLOBALS).split()
        return b"c" + module.encode() + b"\n" + name.encode() + b"\n"
    if code in b"qhrj":
        return code + (random.randrange(256)).to_bytes(len(arg), "little")
    if code == b"\x80":
        return b"\x80" + bytes([random.choice([0, 1, 2, 3, 4, 5, 6, 255])]) if random.random() < 0.6 else b""
    return spoilt(random, op)


def _integer(value: int) -> bytes:
    if value < 256:
        return b"K" + bytes([value])
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = pickle.encode_long(value)
    return b"\x8a" + bytes([len(raw)]) + raw


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _operation(random: Random) -> bytes:
    """Any operation, with an argument that it may have."""
    opcode = random.choice(pickletools.opcodes)
    code = opcode.code.encode("latin-1")
    if opcode.arg is None:
        return code
    module, name = random.choice(_GLOBALS).split()
    text = random.choice(TEXTS).encode("utf-8", "surrogatepass")
    size = opcode.arg.n
    if opcode.name in {"GLOBAL", "INST"}:
        return code + module.encode() + b"\n" + name.encode() + b"\n"
    if size > 0:
        value = edge(random) & ((1 << 8 * size) - 1)
        return code + value.to_bytes(size, "little")
    if size == pickletools.UP_TO_NEWLINE:
        value_text = random.choice([str(edge(random)).encode(), b"01", b"00", b"'a'", text, b"1e5", b"5L"])
        return code + value_text.replace(b"\n", b"") + b"\n"
    length = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(size, 4)
    claimed = len(text) if random.random() < 0.9 else edge(random)
    return code + (claimed & ((1 << 8 * length) - 1)).to_bytes(length, "little") + text


# -- made of nothing


class _Storage:
    """A storage of some dtype, which the pickle names by its key."""

    def __init__(self, key: str, name: str, count: int) -> None:
        self.key, self.name, self.count = key, name, count


_SIZES = {"FloatStorage": 4, "HalfStorage": 2, "DoubleStorage": 8, "BFloat16Storage": 2, "LongStorage": 8}


class _Call:
    """A callable and its arguments, as REDUCE has them."""

    def __init__(self, function: str, *args: object) -> None:
        self.function, self.args = function, args


class _Grower:
    """Writes values as operations of a protocol, at random with a memo, batches and odd spellings."""

    def __init__(self, random: Random, protocol: int) -> None:
        self.random, self.protocol = random, protocol
        self.out, self.memo = bytearray(), 0

    def put(self) -> None:
        if self.protocol >= 4 and self.random.random() < 0.9:
            self.out += b"\x94"
            self.memo += 1
        elif self.random.random() < 0.5:
            self.out += b"r" + struct.pack("<I", self.memo)
            self.memo += 1

    def named(self, function: str) -> None:
        module, name = function.rsplit(".", 1)
        self.out += b"c" + module.encode() + b"\n" + name.encode() + b"\n"
        self.put()

    def value(self, value: object) -> None:
        if isinstance(value, dict):
            self.out += b"}"
            self.put()
            self.out += b"(" if value else b""
            for key, item in value.items():
                self.value(key)
                self.value(item)
            self.out += b"u" if value else b""
        elif isinstance(value, list):
            self.out += b"]"
            for item in value:
                self.value(item)
                self.out += b"a"
        elif isinstance(value, tuple):
            self.out += b"("
            for item in value:
                self.value(item)
            self.out += b"t"
            self.put()
        elif isinstance(value, _Call):
            self.named(value.function)
            self.value(value.args)
            self.out += b"R"
            self.put()
        elif isinstance(value, _Storage):
            self.out += b"(" + _text("storage")
            self.named(f"torch.{value.name}")
            self.out += _text(value.key) + _text("cpu") + _integer(value.count) + b"tQ"
        elif isinstance(value, str):
            self.out += _text(value)
            self.put()
        else:
            self.out += _number(value)


def _number(value: object) -> bytes:
    """A number, True, False or None."""
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    return _integer(value) if isinstance(value, int) else b"N"


class _Tree:
    """A tree made at random, and its storages: pairs and tensors of odd strides among other things."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.storages: dict[str, bytes] = {}

    def tensor(self, shape: tuple[int, ...], name: str) -> _Call:
        random, count = self.random, math.prod(shape)
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        offset = random.choice([0, 0, 0, 3])
        if len(shape) > 1 and random.random() < 0.15:
            shape, strides = shape[::-1], strides[::-1]
        elif random.random() < 0.1:
            strides = [random.choice([0, *strides, 1, 2]) for _ in strides]
        elif random.random() < 0.05:
            offset = random.choice(EDGES)
        key = str(len(self.storages))
        if self.storages and random.random() < 0.1:
            key = random.choice([*self.storages])
        held = count + min(offset, 9)
        self.storages.setdefault(key, self.numbers(name, held))
        storage, hooks = _Storage(key, name, held), _Call("collections.OrderedDict")
        return _Call("torch._utils._rebuild_tensor_v2", storage, offset, shape, tuple(strides), False, hooks)

    def numbers(self, name: str, count: int) -> bytes:
        if name == "BFloat16Storage":
            return b"\x00\x3f" * count
        form = {"FloatStorage": "f", "HalfStorage": "e", "DoubleStorage": "d"}.get(name)
        values = self.random.choices([0.5, 1.0, -2.0, 0.25, 3.0], k=count)
        return (
            struct.pack(f"<{count}{form}", *values) if form else self.random.randbytes(count * _SIZES[name])
        )

    def state(self) -> dict[str, object]:
        random, made = self.random, dict[str, object]()
        for at in range(random.randint(1, 4)):
            name = random.choice(["FloatStorage"] * 4 + [*_SIZES])
            v = tuple(random.choice([1, 2, 3, 5]) for _ in range(random.choice([1, 2, 3, 3, 4])))
            if random.random() < 0.05:  # rows enough for pieces, pages and threads
                v = tuple(random.sample([3, 7, 64, 300], 3))
            dim = random.randrange(len(v))
            g = tuple(size if axis == dim else 1 for axis, size in enumerate(v))
            where = random.choice(["", f"l{at}.", f"l{at}.", random.choice(TEXTS) + "."])
            g_name, v_name = random.choice(_PAIRS)
            made |= {f"{where}{g_name}": self.tensor(g, name), f"{where}{v_name}": self.tensor(v, name)}
            made[f"{where}bias"] = self.tensor(v[:1], name)
        return made

    def tree(self, depth: int) -> object:
        random = self.random
        if depth == 0 or random.random() < 0.4:
            return self.state()
        others = [None, True, 1.5, 7, "text", [1, 2], (1, "a"), {"lr": 0.1}, random.choice(TEXTS)]
        made = {random.choice(TEXTS): random.choice(others) for _ in range(random.randrange(3))}
        return made | {random.choice(["model", "generator", "state_dict", 1, "0"]): self.tree(depth - 1)}


_PAIRS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


def _grown(random: Random) -> bytes:
    """A torch archive of a tree made at random, in any protocol."""
    made = _Tree(random)
    protocol = random.choice([1, 2, 2, 2, 3, 4, 5])
    grower = _Grower(random, protocol)
    if protocol >= 2 and random.random() < 0.9:
        grower.out += b"\x80" + bytes([protocol])
    grower.value(made.tree(2))
    data = bytes(grower.out) + b"."
    if random.random() < 0.3:
        data = mutated(random, data)
    records = [("x/data.pkl", data), ("x/version", b"3\n")]
    return archive(records + [(f"x/data/{key}", raw) for key, raw in made.storages.items()])


def _legacy(random: Random) -> bytes:
    """A file of torch's old format with one of its pickles, or its storages, changed."""
    data = (_FIXTURES / _LEGACY).read_bytes()
    stream, parts = io.BytesIO(data), []
    for _ in range(5):  # magic, protocol, system, the tree, the keys
        start = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        parts.append(data[start : stream.tell()])
    parts.append(data[stream.tell() :])
    at = random.choice([0, 1, 2, 3, 3, 3, 3, 4, 5])
    parts[at] = spoilt(random, parts[at]) if at == 5 else mutated(random, parts[at])
    return b"".join(parts)
