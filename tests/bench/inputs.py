"""The files that are converted: the shapes of real models, random numbers.

A block of 16 MiB is repeated, so that gigabytes are written as fast as the disk takes them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

Shapes = dict[str, tuple[int, ...]]

MIB = 1 << 20
GIB = 1 << 30
BLOCK = np.random.default_rng(0).standard_normal(4 * MIB, np.float32)


def layer(name: str, *shape: int, dim: int | None = 0) -> Shapes:
    """The shapes of a weight-normalized layer."""
    g = tuple(size if axis == dim else 1 for axis, size in enumerate(shape))
    return {f"{name}.weight_g": g, f"{name}.weight_v": shape}


def hifigan() -> Shapes:
    """The generator of HiFi-GAN V1: 78 layers, 13.9 million weights."""
    shapes = layer("conv_pre", 512, 80, 7) | {"conv_pre.bias": (512,)}
    channels = 512
    for stage, kernel in enumerate((16, 16, 4, 4)):
        half = channels // 2
        shapes |= layer(f"ups.{stage}", channels, half, kernel) | {f"ups.{stage}.bias": (half,)}
        channels = half
        for block, width in enumerate((3, 7, 11)):
            for conv in ("convs1.0", "convs1.1", "convs1.2", "convs2.0", "convs2.1", "convs2.2"):
                name = f"resblocks.{3 * stage + block}.{conv}"
                shapes |= layer(name, channels, channels, width) | {f"{name}.bias": (channels,)}
    return shapes | layer("conv_post", 1, channels, 7) | {"conv_post.bias": (1,)}


def many_layers(size: int) -> Shapes:
    """Layers of 0.4 to 16 MiB and plain tensors, of ``size`` bytes in all."""
    shapes: Shapes = {}
    left = size
    for number in range(size):
        part = layer(f"blocks.{number}.conv", 512, 512, 7) | layer(f"blocks.{number}.up", 512, 256, 16)
        part |= layer(f"blocks.{number}.small", 192, 192, 3) | layer(f"blocks.{number}.out", 1024, 4096)
        part |= {f"blocks.{number}.conv.bias": (512,), f"blocks.{number}.attention.weight": (1024, 1024)}
        if (left := left - nbytes(part)) < 0:
            break
        shapes |= part
    return shapes


#: The weights that are layers in ``many_layers``, as globs.
LAYERS = ("*.conv.weight", "*.up.weight", "*.small.weight", "*.out.weight")


def plain(size: int) -> Shapes:
    """``many_layers`` folded."""
    shapes = many_layers(size)
    return {name.removesuffix("_v"): shape for name, shape in shapes.items() if not name.endswith("weight_g")}


def nbytes(shapes: Shapes) -> int:
    return sum(4 * math.prod(shape) for shape in shapes.values())


def write_folder(folder: Path, shapes: Shapes, files: int, *, sparse: bool = False) -> None:
    """Write shards of about the same size, and their index; ``sparse`` ones are zeros and take no disk."""
    folder.mkdir()
    most, at = nbytes(shapes), 0
    parts: list[Shapes] = [{} for _ in range(files)]
    weight_map = {}
    for name, shape in shapes.items():
        number = min(files * at // most, files - 1)
        parts[number][name] = shape
        weight_map[name] = f"model-{number + 1:05}-of-{files:05}.safetensors"
        at += nbytes({name: shape})
    for number, part in enumerate(parts):
        path = folder / f"model-{number + 1:05}-of-{files:05}.safetensors"
        if not sparse:
            write(path, part)
            continue
        text = _header(part)
        path.write_bytes(text)
        os.truncate(path, len(text) + nbytes(part))
    index = {"metadata": {"total_size": most}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")


def write(path: Path, shapes: Shapes) -> None:
    """Write a state dict of float32 tensors, as safetensors or, by the path's suffix, as torch does."""
    plain = path.with_suffix(".safetensors")
    with plain.open("wb") as file:
        file.write(_header(shapes))
        for piece in _pieces(nbytes(shapes)):
            file.write(piece)
    if path != plain:
        torch.save({"generator": load_file(plain)}, path)
        plain.unlink()


def _header(shapes: Shapes) -> bytes:
    """The first bytes of a safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        start, at = at, at + nbytes({name: shape})
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, at]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def shift(path: Path) -> None:
    """Make each float32 of a safetensors file its neighbour."""
    data = np.memmap(path, np.uint8, "r+")
    values = data[8 + int(data[:8].view("<u8")[0]) :].view("<i4")
    for at in range(0, values.size, MIB):
        values[at : at + MIB] += 1
    data.flush()


def _pieces(size: int) -> Iterator[memoryview]:
    for at in range(0, size, BLOCK.nbytes):
        yield BLOCK.data.cast("B")[: min(BLOCK.nbytes, size - at)]
