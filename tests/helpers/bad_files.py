"""Small files, whole or with something wrong in them."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def pair(rows: int = 4, *more: int) -> dict[str, Tensor]:
    import torch

    shape = (rows, *(more or (3, 2)))
    return {"a.weight_g": torch.ones(rows, *[1] * (len(shape) - 1)), "a.weight_v": torch.full(shape, 0.5)}


def saved(tree: object, folder: Path, **options: Any) -> Path:
    import torch

    torch.save(tree, folder / "in.pt", **options)
    return folder / "in.pt"


def written(data: bytes, folder: Path, name: str = "in.pt") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def safetensors(header: object, body: bytes, folder: Path) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return written(struct.pack("<Q", len(text)) + text + body, folder)


def zipped(records: dict[str, bytes], folder: Path, kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(folder / "in.pt", "w", kind) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return folder / "in.pt"


def rezipped(
    source: Path, change: Callable[[dict[str, bytes]], object], kind: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(source) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    return zipped({f"x/{name}": data for name, data in records.items()}, source.parent, kind)
