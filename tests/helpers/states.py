"""What the tests of files share: float64 folds, and files read by others than us."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from fixtures.make import foreign
from tests.helpers.deprecated import deprecated
from tests.helpers.infos import flax_halves, halves
from wnconvert import Result

State = dict[str, Any]  # a state dict may hold more than tensors


def load(path: Path) -> Any:
    """A torch file as torch reads it."""
    return torch.load(path, map_location="cpu", weights_only=True)


def output_of(result: Result) -> Path:
    """The path of an output that was written."""
    assert result.output is not None
    return Path(result.output)


def state_dicts(path: Path) -> dict[str, State]:
    """Every state dict of a file by its path, as torch or the safetensors library reads them."""
    content = path.read_bytes()
    if content[8:9] == b"{":
        found = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return {"": {name: found[name] for name in header if name != "__metadata__"}}
    is_zip = content[2:4] == b"\x03\x04"
    archive = io.BytesIO(b"PK" + content[2:] if is_zip else content)
    is_script = is_zip and any(
        name.endswith("/constants.pkl") for name in zipfile.ZipFile(archive).namelist()
    )
    archive.seek(0)
    if is_script:
        with deprecated():
            return {"": torch.jit.load(archive).state_dict()}  # type: ignore[no-untyped-call]
    with foreign("acme_tts.configs", "AudioConfig"), foreign("glow", "WaveGlow", "WN", base=nn.Module):
        tree = torch.load(archive, map_location="cpu", weights_only=False)
    return dict(_state_dicts("", tree))


def _state_dicts(path: str, value: Any) -> Iterator[tuple[str, State]]:
    if isinstance(value, nn.Module):
        yield path, value.state_dict()
    elif isinstance(value, Mapping) and not {"state", "param_groups"} <= set(value):
        if any(isinstance(item, Tensor) for item in value.values()):
            yield path, {str(key): item for key, item in value.items()}
        for key, item in value.items():
            yield from _state_dicts(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, (list, tuple)):
        for at, item in enumerate(value):
            yield from _state_dicts(f"{path}.{at}" if path else str(at), item)


def hold(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    exclude: Collection[str] = (),
    dtype: torch.dtype | None = None,
) -> int:
    """Hold a folded state dict against its source; how many layers were compared.

    Every weight must be within a unit in the last place of the float64 fold (rows of zeros are zero), at
    the place of its first half; everything else must be equal bit for bit, or to torch's cast of it.
    """
    every = halves(before) | flax_halves(before)
    pairs = {weight: both for weight, both in every.items() if weight not in exclude}
    weight_of = {half: weight for weight, both in pairs.items() for half in both}
    assert list(after) == list(dict.fromkeys(weight_of.get(name, name) for name in before))
    for name, value in after.items():
        if name in pairs:
            g, v = (before[half] for half in pairs[name])
            assert value.dtype == (dtype or v.dtype), name
            assert ulps(value, folded64(g, v).nan_to_num(0)) <= 1, name
        elif isinstance(value, Tensor):
            was = before[name]
            assert same(value, was.to(dtype) if dtype and was.dtype in _FLOATS else was), name
        else:
            assert value == before[name]
    return len(pairs)


_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def folded64(g: Tensor, v: Tensor) -> Tensor:
    """g·v/‖v‖ in float64, written out; the axes that are summed over are those where g has size 1."""
    wide_g, wide_v = g.detach().double(), v.detach().double()
    if g.numel() == 1:
        return wide_g.reshape(()) * wide_v / wide_v.square().sum().sqrt()
    if g.dim() == 1 and v.dim() > 1:
        rest = [1] * (v.dim() - 1)  # by hand: of ours, only the first axis fits, or the last (flax)
        wide_g = wide_g.reshape(-1, *rest) if len(wide_g) == len(v) else wide_g.reshape(*rest, -1)
    axes = [axis for axis in range(v.dim()) if wide_g.shape[axis] == 1]
    norm = wide_v.square().sum(dim=axes, keepdim=True).sqrt() if axes else wide_v.abs()
    return wide_g * wide_v / norm


def ulps(found: Tensor, exact: Tensor) -> float:
    """How many units in the last place of its own dtype a tensor is at most off a float64 one."""
    assert found.shape == exact.shape
    assert found.numel() > 0, "a comparison of nothing is a failure"
    assert torch.isfinite(found).all()
    bits, least = {
        torch.float64: (53, -1074),
        torch.float32: (24, -149),
        torch.float16: (11, -24),
        torch.bfloat16: (8, -133),
    }[found.dtype]
    exponent = np.frexp(exact.numpy())[1]
    unit = np.ldexp(1.0, np.maximum(exponent - bits, least))
    return float(np.max(np.abs(found.detach().double().numpy() - exact.numpy()) / unit))


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, dtype and shape included."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    bits = [side.detach().contiguous().reshape(-1).view(torch.uint8) for side in (left, right)]
    return torch.equal(*bits)
