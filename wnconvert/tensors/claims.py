"""Tensors that claim far more than their file holds: a view may repeat an element as often as it says.

To read one takes time and memory, and to write it disk, by what it claims. Small ones are as good as any.
"""

from __future__ import annotations

from collections.abc import Iterable

from wnconvert.errors import InputError
from wnconvert.messages import counted
from wnconvert.tensors.tree import StoredTensor

__all__ = ["refuse_unfounded"]


#: No tensor that was trained, nor any mask or table beside it, repeats its elements more often.
_TIMES = 1024
#: Elements that such tensors may have together.
_MOST = 1 << 24


def refuse_unfounded(tensors: Iterable[tuple[str, StoredTensor]], otherwise: str) -> None:
    """Raise ``InputError`` if tensors that are to be read repeat what they have too often.

    Each comes with the name by which users know it. ``otherwise`` says what to do where that is not meant.
    """
    found = {
        tensor.view: (name, tensor) for name, tensor in tensors if _held(tensor) * _TIMES < tensor.info.numel
    }
    if sum(tensor.info.numel for _, tensor in found.values()) <= _MOST:
        return
    fix = f"if that is meant, save it with .contiguous(); else {otherwise}"
    claims = [_claim(name, tensor) for name, tensor in found.values()]
    if len(claims) == 1:
        raise InputError(claims[0], fix=fix)
    raise InputError(f"{len(claims)} tensors are expanded", items=[(claim, "") for claim in claims], fix=fix)


def _held(tensor: StoredTensor) -> int:
    """The elements of the storage that a tensor is a view of."""
    return tensor.storage.size * 8 // tensor.info.dtype.bits


def _claim(name: str, tensor: StoredTensor) -> str:
    numel, held = tensor.info.numel, counted(_held(tensor), "element")
    return f"{name} has {numel:,} elements by its shape, {held} in the file: it is expanded"
