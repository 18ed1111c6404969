"""What proves an output before it is put in place, and what comes of that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from wnconvert.frozen import dataclass

if TYPE_CHECKING:
    from wnconvert.plan.plan import Plan

__all__ = ["ModelProof", "Prove"]


@dataclass(frozen=True, slots=True)
class ModelProof:
    """A proof that held: an output computes what ``reference`` does, in words.

    Its outputs are ``outputs_apart`` at most on so many ``samples``, within ``tolerance``; the weights that
    so many ``layers`` are handed are ``weights_apart`` at most, as a part of the largest in a channel.
    """

    reference: str
    samples: int
    tolerance: str
    outputs_apart: float
    layers: int
    weights_apart: float


#: Proves the file or folder at a path, which was made by a plan. Raises ``VerifyError`` where it is wrong.
Prove: TypeAlias = "Callable[[Path, Plan], ModelProof]"
