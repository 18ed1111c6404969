"""Files of flax: values of MessagePack left out, doubled, exchanged; other heads of arrays; bytes spoilt."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import msgpack

from tests.fuzz.case import Case, on_file
from tests.fuzz.values import edge, spoilt, text_of

__all__ = ["case"]

_FIXTURES = Path(__file__).parents[2] / "fixtures" / "frameworks"
_FILES = ("flax_linen.msgpack", "flax_nnx.msgpack", "flax_chunked.msgpack", "flax_train_state.msgpack")


def case(random: Random) -> Case:
    data = (_FIXTURES / random.choice(_FILES)).read_bytes()
    tree = msgpack.unpackb(data, strict_map_key=False)
    for _ in range(random.choice([0, 1, 1, 2, 4])):
        _change(random, tree)
    made: bytes = msgpack.packb(tree, unicode_errors="surrogatepass")
    if random.random() < 0.3:
        made = spoilt(random, made)
    return Case("flax", {"in.msgpack": made}, "in.msgpack", on_file(random, "in.msgpack", ".safetensors"))


def _change(random: Random, tree: dict[Any, Any]) -> None:
    """Change one value somewhere in a tree."""
    below = [value for value in tree.values() if isinstance(value, dict) and value]
    if below and random.random() < 0.8:
        _change(random, random.choice(below))
        return
    if not tree:
        return
    key = random.choice([*tree])
    match random.randrange(6):
        case 0:
            del tree[key]
        case 1:
            tree[text_of(random)] = tree[key]
        case 2:
            tree[key] = tree[random.choice([*tree])]
        case 3:
            tree[key] = _odd(random, tree[key])
        case _:
            tree[key] = _other_array(random, tree[key])


def _odd(random: Random, value: Any) -> Any:
    """Something else in the place of a value."""
    return random.choice(
        [
            None,
            True,
            1.5,
            min(edge(random), (1 << 64) - 1),
            text_of(random),
            [value, value],
            {"0": value},
            b"x",
        ]
    )


def _other_array(random: Random, value: Any) -> Any:
    """An array whose code, shape, dtype or bytes are others."""
    if not isinstance(value, msgpack.ExtType):
        return value
    try:
        shape, kind, content = msgpack.unpackb(value.data)
    except ValueError:
        return value
    match random.randrange(5):
        case 0:
            return msgpack.ExtType(random.choice([0, 2, 3, 99]), value.data)
        case 1:
            shape = [min(edge(random), (1 << 64) - 1), *shape[1:]]
        case 2:
            kind = random.choice(["float64", "bfloat16", "V2", "int4", "object", "<f4", ""])
        case 3:
            content = spoilt(random, content)
        case _:
            shape = random.choice([[], shape[::-1], [*shape, 1], [-1], "ab", None])
    return msgpack.ExtType(value.code, msgpack.packb((shape, kind, content)))
