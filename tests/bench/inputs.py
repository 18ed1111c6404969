"""The files that are converted: the shapes of real models, random numbers.

A block of 16 MiB is repeated, so that gigabytes are written as fast as the disk takes them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from wnconvert.layers.recipes import Recipe, RecipeFold

Shapes = dict[str, tuple[int, ...]]

_DTYPES = {
    name: np.dtype(kind) for name, kind in (("F32", "f4"), ("F16", "f2"), ("BF16", ml_dtypes.bfloat16))
}

MIB = 1 << 20
GIB = 1 << 30
BLOCK = np.random.default_rng(0).standard_normal(4 * MIB, np.float32)


def layer(name: str, *shape: int, dim: int | None = 0) -> Shapes:
    """The shapes of a weight-normalized layer."""
    g = tuple(size if axis == dim else 1 for axis, size in enumerate(shape))
    return {f"{name}.weight_g": g, f"{name}.weight_v": shape}


def weight(name: str, *shape: int) -> Shapes:
    """The shape of a weight that its class computes."""
    return {f"{name}.weight": shape}


def spectral(name: str, *shape: int) -> Shapes:
    """The shapes of a layer with spectral norm."""
    columns = math.prod(shape[1:])
    return {f"{name}.weight_orig": shape, f"{name}.weight_u": shape[:1], f"{name}.weight_v": (columns,)}


def normed(name: str, *shape: int) -> Shapes:
    """The shapes of a convolution and of the batch norm behind it."""
    tensors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.weight": shape} | {f"{name}.norm.{each}": shape[:1] for each in tensors}


def norms_recipe(shapes: Shapes) -> Recipe:
    """The recipe that folds the batch norms of ``normed`` layers."""
    names = [name.removesuffix(".norm.weight") for name in shapes if name.endswith(".norm.weight")]
    return Recipe(
        tuple(RecipeFold("norm behind", f"{name}.weight", f"{name}.norm", eps=1e-5) for name in names)
    )


def pruned(name: str, *shape: int) -> Shapes:
    """The shapes of a pruned layer: a mask as large as the weight."""
    return {f"{name}.weight_orig": shape, f"{name}.weight_mask": shape}


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


def even_layers(size: int, count: int, kind: Callable[..., Shapes] = layer) -> Shapes:
    """``count`` layers of one kind and shape, of ``size`` bytes in all; masks count."""
    shapes: Shapes = {}
    for number in range(count):
        width = size // count // (4 * 1024 * 512) // (2 if kind is pruned else 1)
        shapes |= kind(f"blocks.{number}.conv", 1024, 512, width)
    return shapes


#: The weights that are layers in ``many_layers``, as globs.
LAYERS = ("*.conv.weight", "*.up.weight", "*.small.weight", "*.out.weight")


def plain(size: int) -> Shapes:
    """``many_layers`` folded."""
    shapes = many_layers(size)
    return {name.removesuffix("_v"): shape for name, shape in shapes.items() if not name.endswith("weight_g")}


def nbytes(shapes: Shapes, dtype: str = "F32") -> int:
    return sum(_DTYPES[dtype].itemsize * math.prod(shape) for shape in shapes.values())


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
        write_sparse(path, part)
    index = {"metadata": {"total_size": most}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")


def write(path: Path, shapes: Shapes, dtype: str = "F32") -> None:
    """Write a state dict of one dtype, as safetensors or, by the path's suffix, as torch does."""
    plain = path.with_suffix(".safetensors")
    with plain.open("wb") as file:
        file.write(_header(shapes, dtype))
        for piece in _pieces(nbytes(shapes, dtype), dtype):
            file.write(piece)
        for at, numbers in _numbers(shapes, dtype):
            file.seek(at - nbytes(shapes, dtype), os.SEEK_END)
            file.write(numbers.tobytes())
    if path != plain:
        torch.save({"generator": load_file(plain)}, path)
        plain.unlink()


def write_sparse(path: Path, shapes: Shapes) -> None:
    """Write a safetensors file of zeros, which takes no disk."""
    text = _header(shapes)
    path.write_bytes(text)
    os.truncate(path, len(text) + nbytes(shapes))


@contextlib.contextmanager
def written(folder: Path, name: str, shapes: Shapes, dtype: str = "F32") -> Iterator[tuple[Path, Path]]:
    """An input, removed afterwards, and the path for its output."""
    source = folder / name
    write(source, shapes, dtype)
    try:
        yield source, folder / f"out{source.suffix}"
    finally:
        source.unlink()


def _header(shapes: Shapes, dtype: str = "F32") -> bytes:
    """The first bytes of a safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        start, at = at, at + nbytes({name: shape}, dtype)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, at]}
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


def _numbers(shapes: Shapes, dtype: str) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """What is not random, and its place: each g is near the norms of its v, half of a mask is 0."""
    at = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        if name.endswith("weight_g"):
            norm = math.sqrt(math.prod(shapes[f"{name[:-1]}v"]) / count)
            yield at, (norm * np.linspace(0.9, 1.1, count)).astype(_DTYPES[dtype])
        elif name.endswith("running_var"):
            yield at, np.linspace(0.1, 2, count).astype(_DTYPES[dtype])
        elif name.endswith("weight_mask"):
            yield at, np.resize(BLOCK < 0, count).astype(_DTYPES[dtype])
        at += nbytes({name: shape}, dtype)


def _pieces(size: int, dtype: str) -> Iterator[memoryview]:
    data = BLOCK.astype(_DTYPES[dtype]).tobytes()
    for at in range(0, size, len(data)):
        yield memoryview(data)[: min(len(data), size - at)]
