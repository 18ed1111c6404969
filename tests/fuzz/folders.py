"""Folders: the index of their shards, files beside them, and torch.distributed's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.case import Case, on_file
from tests.fuzz.pickles import mutated
from tests.fuzz.safetensors import written
from tests.fuzz.values import TEXTS, edge, spoilt

__all__ = ["case"]

_FIXTURES = Path(__file__).parents[2] / "fixtures"


def case(random: Random) -> Case:
    name = random.choice(["sharded", "sharded", "distributed"])
    top = _FIXTURES / name
    files = {
        f"in/{path.relative_to(top)}": path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()
    }
    for _ in range(random.choice([0, 1, 1, 2, 3])):
        at = random.choice([*files])
        match random.randrange(6):
            case 0 | 1 | 2:
                files[at] = _changed(random, at, files[at])
            case 3 if len(files) > 1:
                del files[at]
            case 4:
                files[f"in/{_name(random)}"] = random.choice([files[at], b"", b"{}"])
            case _ if at.endswith(".safetensors"):
                files[at] = written(random)
    source = random.choice(["in", "in", "in", next((n for n in files if n.endswith(".index.json")), "in")])
    suffix = random.choice(["", "", ".safetensors", ".pt"])
    return Case("folders", files, source, on_file(random, source, suffix))


def _name(random: Random) -> str:
    name = random.choice(TEXTS).replace("/", "_").replace("\x00", "").strip(".")
    name = name.encode("utf-8", "replace")[:200].decode("utf-8", "replace")
    return name + random.choice(["", ".safetensors", ".json", ".py", ".distcp"]) or "x"


def _changed(random: Random, name: str, data: bytes) -> bytes:
    if name.endswith(".metadata"):
        return mutated(random, data)
    if not name.endswith(".json"):
        return spoilt(random, data)
    try:
        tree = json.loads(data)
    except ValueError:
        return spoilt(random, data)
    return json.dumps(_other(random, tree)).encode() if random.random() < 0.9 else spoilt(random, data)


def _other(random: Random, tree: Any) -> Any:
    """The same JSON with one value, key or item of it changed."""
    if isinstance(tree, dict) and tree and random.random() < 0.9:
        key = random.choice([*tree])
        made = dict(tree)
        match random.randrange(4):
            case 0:
                made[random.choice(TEXTS)] = made.pop(key)
            case 1:
                del made[key]
            case _:
                made[key] = _other(random, tree[key])
        return made
    if isinstance(tree, list) and tree and random.random() < 0.7:
        at = random.randrange(len(tree))
        return [*tree[:at], _other(random, tree[at]), *tree[at + 1 :]]
    return random.choice([None, True, edge(random), -1, 0.5, [], {}, random.choice(TEXTS), ["a"], {"a": "b"}])
