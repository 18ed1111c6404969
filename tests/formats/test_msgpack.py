"""The structure of MessagePack, held against msgpack itself."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wnconvert.errors import FormatError
from wnconvert.formats.msgpack import Extended, Items, Map, MessagePack, Raw, Token
from wnconvert.tensors.files import FrontToBack, MemoryFile

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(width=32, allow_nan=False)
    | st.text()
    | st.binary()
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=70_000))
)
KEYS = st.text(max_size=40) | st.integers(-(1 << 63), (1 << 64) - 1)
TREES = st.recursive(
    LEAVES, lambda below: st.lists(below) | st.dictionaries(KEYS, below, max_size=40), max_leaves=60
)


def built(values: MessagePack, data: bytes) -> Any:
    """The value that tokens describe."""
    token: Token = values.next()
    if isinstance(token, Map):
        return {built(values, data): built(values, data) for _ in range(token.count)}
    if isinstance(token, Items):
        return [built(values, data) for _ in range(token.count)]
    if isinstance(token, Extended):
        values.go_past(token)
        return msgpack.ExtType(token.code, data[token.data.start : token.data.end])
    if isinstance(token, Raw):
        content = data[token.data.start : token.data.end]
        return content.decode() if token.is_text else content
    return token


@given(TREES, st.booleans())
def test_the_tokens_are_what_msgpack_unpacks(tree: Any, single: bool) -> None:
    data: bytes = msgpack.packb(tree, use_single_float=single)
    values = MessagePack(MemoryFile(data))
    assert built(values, data) == msgpack.unpackb(data, strict_map_key=False)
    assert values.is_done


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 65_535, 65_536, 200_000])
def test_every_width_of_a_length_is_read(size: int) -> None:
    for value in ("x" * size, bytes(size), [0] * size, msgpack.ExtType(5, bytes(size))):
        data: bytes = msgpack.packb({"a": value})
        assert built(MessagePack(MemoryFile(data)), data) == {"a": value}


@given(st.binary(max_size=64))
def test_any_bytes_are_values_or_refused(data: bytes) -> None:
    values = MessagePack(MemoryFile(data))
    with contextlib.suppress(FormatError):
        while not values.is_done:
            token = values.next()
            if isinstance(token, Extended):
                values.go_past(token)


def test_long_bytes_are_gone_past_and_not_read() -> None:
    asked: list[int] = []

    class Counting(MemoryFile):
        def read(self, at: int, size: int, /) -> bytes:
            asked.append(size)
            return super().read(at, size)

    data: bytes = msgpack.packb([bytes(1 << 20)] * 20)
    assert built(MessagePack(Counting(data)), data) == [bytes(1 << 20)] * 20
    assert sum(asked) < len(data) // 100


@given(st.binary(min_size=1, max_size=300), st.data())
def test_bytes_are_taken_one_after_another(data: bytes, chance: st.DataObject) -> None:
    forward, at = FrontToBack(MemoryFile(data)), 0
    while at < len(data):
        size = chance.draw(st.integers(1, len(data) - at))
        if chance.draw(st.booleans()):
            assert forward.take(size) == data[at : at + size]
        else:
            forward.skip(size)
        at += size
        assert (forward.at, forward.left) == (at, len(data) - at)
    for beyond in (forward.take, forward.skip):
        with pytest.raises(FormatError, match="it ends before 1 bytes"):
            beyond(1)
