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


def refuse_unfounded(tensors: Iterable[StoredTensor], otherwise: str) -> None:
    """Raise ``InputError`` if these tensors, to be read element by element, repeat what they have too often.

    ``otherwise`` says what to do where that is not meant.
    """
    found = {tensor.view: tensor for tensor in tensors if _held(tensor) * _TIMES < tensor.info.numel}
    if sum(tensor.info.numel for tensor in found.values()) <= _MOST:
        return
    fix = f"if that is meant, save it with .contiguous(); else {otherwise}"
    claims = [_claim(tensor) for tensor in found.values()]
    if len(claims) == 1:
        raise InputError(claims[0], fix=fix)
    raise InputError(f"{len(claims)} tensors are expanded", items=[(claim, "") for claim in claims], fix=fix)


def _held(tensor: StoredTensor) -> int:
    """The elements of the storage that a tensor is a view of."""
    return tensor.storage.size * 8 // tensor.info.dtype.bits


def _claim(tensor: StoredTensor) -> str:
    name, numel, held = tensor.info.name, tensor.info.numel, counted(_held(tensor), "element")
    return f"{name} has {numel:,} elements by its shape, {held} in the file: it is expanded"
