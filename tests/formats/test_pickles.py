"""Pickles as data: they come back as they came, nothing in them runs, and bad ones are refused cheaply."""

from __future__ import annotations

import codecs
import collections
import copyreg
import functools
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.marks import some
from wnconvert.errors import FormatError
from wnconvert.formats.pickle.reader import load
from wnconvert.formats.pickle.values import (
    Dict,
    Global,
    Latin1,
    Object,
    PersistentId,
    Value,
    globals_of,
    walk,
)
from wnconvert.formats.pickle.writer import dump

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def again(data: bytes) -> bytes:
    """A pickle read and written back in its own protocol."""
    read = load(data)
    return dump(read.root, read.protocol)


def round_trip(value: object, protocol: int) -> Any:
    data = pickle.dumps(value, protocol)
    written = again(data)
    assert dump(load(written).root, load(written).protocol) == written, "writing twice gives the same bytes"
    return pickle.loads(written)


# -- what pickles hold


class Plain:
    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)

    def method(self) -> str:
        return "bound"

    class Inner:
        class Innermost:
            pass


class OwnList(list[Any]):
    pass


class OwnDict(dict[Any, Any]):
    pass


class Slots:
    __slots__ = ("a", "b")


class NewArgs:
    made: tuple[object, ...]

    def __new__(cls, *args: object, **kwargs: object) -> NewArgs:
        self = super().__new__(cls)
        self.made = (args, kwargs)
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[object, ...], dict[str, object]]:
        return (1, "two"), {"three": 3}

    def __getstate__(self) -> None:
        return None


class Reduced:
    """Comes back through every part of what ``__reduce__`` may return."""

    def __init__(self, arg: object) -> None:
        self.arg, self.items, self.pairs, self.state = arg, list[object](), dict[object, object](), object()

    def append(self, item: object) -> None:
        self.items.append(item)

    def __setitem__(self, key: object, value: object) -> None:
        self.pairs[key] = value

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __reduce__(self) -> tuple[object, ...]:
        return Reduced, ("arg",), {"s": 1}, iter(range(2500)), iter([("k", [1]), ("l", None)])


class InArgs:
    """Its own argument leads back to it."""

    def __init__(self, holder: list[object]) -> None:
        self.holder = holder

    def __reduce__(self) -> tuple[object, ...]:
        return InArgs, (self.holder,)


class Registered:
    pass


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_that_names_no_protocol_is_of_that_of_its_newest_operation(protocol: int) -> None:
    newest = {2: (True, 1), 3: b"x", 4: {1}, 5: bytearray(b"x")}[protocol]
    data = pickle.dumps(newest, protocol)
    assert data[:1] == b"\x80"
    bare = data[2:] if protocol < 4 else data[11:]  # a frame too
    assert pickle.loads(bare) == newest
    assert load(bare).protocol == load(data).protocol == protocol
    assert again(bare)[:2] == bytes([0x80, protocol])
    assert load(b"\x80\x01" + bare).protocol == protocol, "or an older one than it has"


@pytest.mark.parametrize("protocol", [0, 1])
def test_old_pickles_stay_old(protocol: int) -> None:
    data = pickle.dumps([True, {"a": 1}, (1, 2)], protocol)
    assert load(data).protocol <= protocol
    assert b"\x80" not in again(data)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_builtins_come_back(protocol: int) -> None:
    value = {
        "none": None,
        "flags": [True, False],
        "ints": [0, 255, 256, 65535, 65536, -1, -(2**31), 2**31, 2**63, -(2**70), 1 << 3000],
        "floats": [0.0, -0.0, 1.5, float("inf"), 5e-324],
        "complex": 1 + 2j,
        "text": ["", "a", "é", "𝄞" * 300, "\ud800 alone", "\x80", "line\nbreak"],
        "bytes": [b"", b"abc", bytes(range(256)) * 2],
        "bytearray": bytearray(b"mutable"),
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((),)],
        "sets": [set(), {1, 2}, frozenset({3})],
        "slice": slice(1, None, 2),
        "range": range(3),
        1: "integer key",
        (2, 3): "tuple key",
        None: "no key",
    }
    got = round_trip(value, protocol)
    assert repr(got) == repr(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_come_back(protocol: int) -> None:
    own_list, own_dict = OwnList([1, 2]), OwnDict(a=1)
    vars(own_list)["me"] = own_list
    vars(own_dict)["of"] = own_list
    got = round_trip(
        [Plain(x=1), own_list, own_dict, Reduced("x"), collections.OrderedDict([("b", 1), ("a", 2)])],
        protocol,
    )
    assert vars(got[0]) == {"x": 1}
    assert got[1] == [1, 2]
    assert vars(got[1])["me"] is got[1]
    assert got[2] == {"a": 1}
    assert vars(got[2])["of"] is got[1]
    assert (got[3].arg, got[3].items, got[3].pairs, got[3].state) == (
        "arg", list(range(2500)), {"k": [1], "l": None}, {"s": 1},
    )  # fmt: skip
    assert list(got[4].items()) == [("b", 1), ("a", 2)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_functions_classes_and_bound_methods_come_back(protocol: int) -> None:
    value = [Plain, Plain.Inner, Plain.Inner.Innermost, Plain().method, len, functools.partial(int, base=2)]
    got = round_trip(value, protocol)
    assert got[:3] == value[:3]
    assert got[3]() == "bound"
    assert got[4] is len
    assert got[5]("101") == 5


@pytest.mark.parametrize("protocol", range(2, 6))
def test_slots_and_new_arguments_come_back(protocol: int) -> None:
    slots = Slots()
    slots.a, slots.b = 1, [2]  # type: ignore[attr-defined]
    got = round_trip([slots, NewArgs()], protocol)
    assert (got[0].a, got[0].b) == (1, [2])
    assert got[1].made == ((1, "two"), {"three": 3})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cycles_come_back(protocol: int) -> None:
    loop: list[Any] = []
    loop.append(loop)
    mapping: dict[str, Any] = {}
    mapping["me"] = mapping
    of_one: list[Any] = []
    of_four: list[Any] = []
    of_one.append((of_one,))
    of_four.append((1, 2, 3, of_four))
    node = Plain()
    vars(node)["me"] = [node]
    holder: list[Any] = []
    holder.append(InArgs(holder))
    frozen = Plain()
    vars(frozen)["in"] = frozenset({frozen})
    got = round_trip([loop, mapping, of_one, of_four, node, holder, frozen], protocol)
    assert got[0][0] is got[0]
    assert got[1]["me"] is got[1]
    assert got[2][0][0] is got[2]
    assert got[3][0][3] is got[3]
    assert vars(got[4])["me"][0] is got[4]
    assert got[5][0].holder is got[5]
    assert next(iter(vars(got[6])["in"])) is got[6]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_tuple_that_a_cycle_leads_back_to_is_made_once(protocol: int) -> None:
    # Written from the tuple: the list in it leads back to the tuple before that exists.
    inner: list[Any] = []
    for outer in ((inner,), (1, 2, 3, 4, inner), frozenset({Hashable(inner)})):
        inner[:] = [outer]
        if isinstance(outer, frozenset) and protocol < 4:
            continue  # Python itself makes an empty one of it
        got = round_trip(outer, protocol)
        back = next(iter(got)).value if isinstance(got, frozenset) else got[-1]
        assert back[0] is got


class Hashable:
    def __init__(self, value: object) -> None:
        self.value = value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_identity_is_kept_and_equality_does_not_make_any(protocol: int) -> None:
    shared, text, number = [1], "x" * 40, bytearray(b"b")
    equal = "".join(["x"] * 40)
    got = round_trip([shared, shared, [1], text, text, equal, number, number, bytearray(b"b")], protocol)
    assert got[0] is got[1]
    assert got[0] is not got[2]
    assert got[3] is got[4]
    assert got[3] == got[5]
    assert got[6] is got[7]
    assert got[6] is not got[8]


def test_classes_of_the_extension_registry_come_back() -> None:
    copyreg.add_extension(__name__, "Registered", 77_000)
    try:
        for protocol in (2, 5):
            assert isinstance(round_trip([Registered(), Registered()], protocol)[1], Registered)
    finally:
        copyreg.remove_extension(__name__, "Registered", 77_000)


def test_instances_of_python_2_come_back() -> None:
    name = f"{__name__}\nPlain\n".encode()
    for data in (b"(i" + name + b"(dS'a'\nI1\nsb.", b"(c" + name + b"o}U\x01aK\x01sb."):
        got = pickle.loads(again(data))
        assert isinstance(got, Plain)
        assert vars(got) == {"a": 1}
    bare = again(b"(cbuiltins\nlist\nU\x02abo.")
    assert pickle.loads(bare) == ["a", "b"]


def test_strings_of_python_2_stay_bytes() -> None:
    for data in (b"U\x03a\xe9\n.", b"T\x03\0\0\0a\xe9\n.", b"S'a\\xe9\\n'\n.", b'S"a\\xe9\\n"\n.'):
        assert load(data).root == "a\xe9\n"
        assert pickle.loads(again(data), encoding="bytes") == b"a\xe9\n"
    long = again(b"T\x2c\x01\0\0" + b"\xff" * 300 + b".")
    assert pickle.loads(long, encoding="latin-1") == "\xff" * 300
    assert not isinstance(load(b"X\x01\0\0\0a.").root, Latin1)


def test_odd_escapes_of_python_2_give_no_warning() -> None:
    assert load(b"S'\\d'\n.").root == "\\d"


def test_names_that_are_not_ascii_come_back() -> None:
    data = b"\x80\x03c" + "mod\nGröße\n".encode() + b"."
    assert [item.dotted for item in globals_of(load(data).root)] == ["mod.Größe"]
    assert again(data) == b"\x80\x03c" + "mod\nGröße\n".encode() + b"q\0."


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_protocol_is_kept(protocol: int) -> None:
    data = pickle.dumps({"a": [1, 2.0, "x", None, (1, 2), 300, collections.OrderedDict(a=1)]}, protocol)
    read = load(data)
    written = again(data)
    assert read.protocol == protocol
    assert max(opcode.proto for opcode, _, _ in pickletools.genops(written)) <= max(protocol, 1)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.binary().map(bytearray),
    lambda of: (
        st.lists(of)
        | st.lists(of).map(tuple)
        | st.dictionaries(st.text() | st.integers(), of)
        | st.sets(st.integers())
        | st.frozensets(st.text())
        | of.map(lambda value: [value, value])
    ),
    max_leaves=30,
)


@settings(deadline=None, max_examples=150)
@given(VALUES, st.sampled_from(PROTOCOLS))
def test_whatever_python_pickles_comes_back(value: Any, protocol: int) -> None:
    got = round_trip(value, protocol)
    assert got == value
    assert repr(got) == repr(value) or "{" in repr(value)  # types too; sets have no order


def test_torch_reads_what_is_written_without_trust() -> None:
    import torch

    buffer = io.BytesIO()
    tree = {"sd": collections.OrderedDict(a=torch.zeros(2)), "epoch": 3, "names": ("a", None, True, 1.5)}
    torch.save(tree, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    parts, at = [], 0
    for _ in range(5):
        parts.append(load(data, at))
        at = parts[-1].end
    written = b"".join(dump(part.root, part.protocol) for part in parts) + data[at:]
    got = torch.load(io.BytesIO(written), weights_only=True)
    assert got["names"] == tree["names"]
    assert torch.equal(got["sd"]["a"], torch.zeros(2))


# -- the writer


def test_a_substitute_stands_everywhere_where_the_old_value_stood() -> None:
    old = Dict([("old", 1)])
    new = Dict([("new", 2)])
    data = dump([old, old, (old,)], 2, lambda value: new if value is old else value)
    got = pickle.loads(data)
    assert got == [{"new": 2}, {"new": 2}, ({"new": 2},)]
    assert got[0] is got[1] is got[2][0]


def test_substitutes_that_live_only_while_they_are_written_are_not_taken_for_one_another() -> None:
    # Each is freed as soon as nothing holds it; the next may get its id.
    rows = [[index] for index in range(3000)]
    data = dump(rows, 2, lambda value: (value[0], str(value[0])) if len(value) == 1 else value)
    assert pickle.loads(data) == [(index, str(index)) for index in range(3000)]


def test_a_substitute_may_hold_what_it_replaces() -> None:
    old: list[Any] = [1]
    fresh = Dict([("parts", old)])
    once = iter([fresh])
    data = dump([old], 2, lambda value: next(once) if value is old else value)
    # The old value inside of the new one is the new one again: references to it are one node.
    got = pickle.loads(data)
    assert got[0]["parts"] is got[0]


def test_two_globals_of_one_name_are_one() -> None:
    data = dump([Global("collections", "OrderedDict"), Global("collections", "OrderedDict")], 4)
    assert data.count(b"OrderedDict") == 1


def test_only_pickle_values_are_written() -> None:
    with pytest.raises(TypeError):
        dump(object(), 2)


def test_deep_values_are_written_without_recursion() -> None:
    value: list[Any] = []
    for _ in range(4000):
        value = [value]
    assert again(dump(value, 2)) == dump(value, 2)


# -- refusals


def sample() -> bytes:
    value = {
        "text": ["a", "é" * 300, b"bytes" * 60, 1 << 80, 1.5, -7, 70000],
        "object": Plain(x=(1, 2, 3, 4)),
        "sets": [{1}, frozenset({2})],
    }
    return pickle.dumps(value, 4)


@pytest.mark.parametrize("data", [sample(), pickle.dumps([Plain(a="x"), 1 << 80, 0.5, "é"], 0)])
def test_a_pickle_cut_at_any_byte_is_refused(data: bytes) -> None:
    load(data)
    for end in range(len(data)):
        with pytest.raises(FormatError):
            load(data[:end])


MALFORMED = {
    "nothing": b"",
    "a stop alone": b".",
    "a mark where the value should be": b"(.",
    "no such opcode": b"\xff.",
    "no such protocol": b"\x80\x06N.",
    "a tuple of what is not there": b"N\x87.",
    "a dict of three": b"(NNNd.",
    "a key without a value": b"}(Nu.",
    "items without a mark": b"]Ne.",
    "an item for nothing": b"Na.",
    "a state for nothing": b"b.",
    "items of a number": b"K\x01(Ne.",
    "pairs of a list": b"](NNu.",
    "a state of a list": b"]Nb.",
    "an item of a frozenset": b"(\x91(N\x90.",
    "a call of nothing": b")R.",
    "an instance of nothing": b"(o.",
    "an unknown memo entry": b"h\x07.",
    "a memo entry of nothing": b"q\0.",
    "an absurd memo index": b"Nr\xff\xff\xff\xff.",
    "an absurd memo index in digits": b"Np99999999999999999999\n.",
    "a negative memo index": b"Np-1\n.",
    "a global without a name": b"c\n\n.",
    "a global cut short": b"cos\n",
    "a global of a number": b"K\x01K\x02\x93.",
    "a global over two lines": b"\x8c\x03a\nb\x8c\x01c\x93.",
    "a global of half a character": b"X\x03\0\0\0\xed\xa0\x80U\x01a\x93.",
    "no number": b"Ione\n.",
    "a number of 5000 digits": b"L" + b"9" * 5000 + b"L\n.",
    "a negative length": b"\x8b\xff\xff\xff\xff.",
    "half a surrogate pair": b"X\x01\0\0\0\xff.",
    "a string without quotes": b"Sx\n.",
    "a string with one quote": b"S'\n.",
    "a buffer outside of the file": b"\x97.",
    "more bytes than there are": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.",
    "8 EB": b"\x8e\0\0\0\0\0\0\0\x80x.",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_pickle_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="the pickle in it") as caught:
        load(data)
    assert caught.value.fix


@pytest.mark.parametrize(
    "data",
    [
        b"(" * 100_000,
        b"](" * 100_000,
        b"](" * 100_000 + b"e" * 100_000 + b".",
        b"]" * 100_000 + b"a" * 99_999 + b".",
        b"]" * 100_000 + b"0" * 99_999 + b".",
        b"}N" * 100_000 + b"s" * 100_000 + b".",
        b"N" + b"\x85" * 100_000 + b".",
    ],
    ids=["marks", "marks and lists", "lists by e", "lists by a", "lists by 0", "dicts", "tuples"],
)
def test_nesting_without_end_is_refused(data: bytes) -> None:
    if data.endswith(b"0."):
        assert load(data).root == []  # what was popped is gone, and nests nothing
    else:
        with pytest.raises(FormatError):
            load(data)


def test_what_python_itself_can_nest_is_read() -> None:
    value: list[Any] = []
    for _ in range(100):
        value = [{"a": (value,)}]
    assert pickle.loads(again(pickle.dumps(value, 4))) == value


BOMBS: dict[str, str] = {
    "lists": "b'(' + b']' * 30_000_000 + b'l.'",
    "doubled": "b'N' + b'2' * 30_000_000 + b'.'",
    "tuples of tuples": "b'N' + b'2\\x86' * 15_000_000 + b'.'",
    "calls": "b'cA\\nB\\n' + b')R' * 15_000_000 + b'.'",
    "pairs": "b'}(' + b'J\\xff\\xff\\xff\\x7f' * 6_000_000 + b'u.'",
    "numbers": "b'(' + b'G12345678' * 3_400_000 + b't.'",
    "memo": "b'N' + b'\\x94' * 30_000_000 + b'.'",
    "changes": "b'cA\\nB\\n)R' + b'NNsNa' * 6_000_000 + b'.'",
    "a long number": "b'\\x8b' + struct.pack('<i', 31 << 20) + b'\\x7f' * (31 << 20) + b'0'",
    "wide text": "b'X' + struct.pack('<I', 23 << 20) + b'a' * 24117244 + b'\\xf0\\x9f\\x98\\x80' + b'0'",
    "texts": "b'(' + (b'X' + struct.pack('<I', 1 << 10) + b'\\xf0\\x9f\\x98\\x80' * (1 << 8)) * 31_000",
    "marks": "b'(' * 30_000_000",
}


@some("bomb", BOMBS, [*BOMBS][::3])
def test_a_memory_bomb_is_refused_within_256_mib(bomb: str) -> None:
    script = f"""
        import resource, struct, sys
        from wnconvert.errors import FormatError
        from wnconvert.formats.pickle.reader import load
        data = {bomb}
        resource.setrlimit(resource.RLIMIT_DATA, (256 << 20, 256 << 20))
        try:
            load(data)
        except FormatError as error:
            print("refused")
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


# -- nothing runs


def planted(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Pickles that write a file, or import a module that does, when Python loads them."""
    witness = str(folder / "ran")
    command = f"touch {witness}"

    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (command,)

    for protocol in PROTOCOLS:
        yield f"os.system {protocol}", pickle.dumps(Runs(), protocol)
        yield f"deep inside {protocol}", pickle.dumps({"a": [1, (Runs(),)]}, protocol)
    text = b"X" + struct.pack("<I", len(command)) + command.encode()
    yield "import", b"cwitness_module\nx\n."
    yield "inst", b"(" + text + b"iposix\nsystem\n."
    yield "obj", b"(cposix\nsystem\n" + text + b"o."
    yield "memoised names", b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x940h\0h\1\x93" + text + b"\x85R."
    yield "dotted", b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93" + text + b"\x85R."
    yield "getattr", b"cbuiltins\ngetattr\n(cwitness_module\nx\nX\6\0\0\0systemtR" + text + b"\x85R."
    yield "import by call", b"cbuiltins\n__import__\nX\x0e\0\0\0witness_module\x85R."
    yield "state", b"cwitness_module\nx\n)R}" + text + b"Nsb."
    yield "new", b"cwitness_module\nx\n)\x81."
    yield "persistent id", b"cwitness_module\nx\nQ."
    yield "extension", b"\x82\x01."


def test_nothing_named_in_a_pickle_is_imported_or_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "witness_module.py").write_text("import pathlib; pathlib.Path('ran').touch()\nx = print\n")
    pickles = list(planted(tmp_path))
    codecs.lookup("raw-unicode-escape")  # of the operation UNICODE
    before = set(sys.modules)
    for _, data in pickles:
        read = load(data)
        assert load(dump(read.root, read.protocol)).protocol == max(read.protocol, 1)
        assert list(walk(read.root))
    assert set(sys.modules) == before
    assert [path.name for path in tmp_path.iterdir()] == ["witness_module.py"]


def test_the_planted_pickles_do_run_where_python_loads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "witness_module.py").write_text("import pathlib; pathlib.Path('ran').touch()\nx = print\n")
    pickles = dict(planted(tmp_path))
    for name in ("os.system 2", "memoised names", "dotted", "inst", "obj", "import"):
        pickle.loads(pickles[name])
        (tmp_path / "ran").unlink()
    monkeypatch.delitem(sys.modules, "witness_module")


def test_records_say_what_the_pickle_said() -> None:
    root = load(b"ccollections\nOrderedDict\n)R(X\1\0\0\0aK\1uX\1\0\0\0bNs}b.").root
    assert isinstance(root, Object)
    assert root.is_call_of("collections.OrderedDict")
    assert not root.is_call_of("collections.Counter")
    assert root.pairs == [("a", 1), ("b", None)]
    assert isinstance(root.state, Dict)
    persistent: Value = load(b"Pkey\n.").root
    assert isinstance(persistent, PersistentId)
    assert persistent.pid == "key"
