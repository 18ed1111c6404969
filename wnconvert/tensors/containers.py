"""The formats of files that hold tensors: one list, which readers, plans and writers share."""

from __future__ import annotations

from enum import Enum

__all__ = ["Container"]


class Container(str, Enum):
    """The format of a file, which is also how people read it; a string, so that JSON has it as it is.

    ``family`` is what a plan says: what torch reads is ``torch``, whichever of its formats is read, and
    only ``TORCH_ZIP`` of them is written.

    >>> print(Container.TORCH_LEGACY, Container.TORCH_LEGACY.family)
    torch legacy torch
    """

    SAFETENSORS = "safetensors"
    TORCH_ZIP = "torch zip"
    TORCH_LEGACY = "torch legacy"
    TORCHSCRIPT = "TorchScript"
    EXPORTED = "exported program"
    DISTRIBUTED = "torch.distributed.checkpoint"
    ONNX = "ONNX"

    @property
    def family(self) -> str:
        """The library that the format belongs to: ``torch``, ``safetensors`` or ``onnx``."""
        return {Container.SAFETENSORS: "safetensors", Container.ONNX: "onnx"}.get(self, "torch")

    def __str__(self) -> str:
        return self.value
