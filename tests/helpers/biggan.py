"""The generator of pytorch-pretrained-biggan, which builds 126 layers with torch's older spectral norm."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import nn

__all__ = ["generator"]


def generator(width: int) -> tuple[nn.Module, tuple[Any, ...]]:
    """The generator (128 wide as published) in eval mode, with u and v of some forwards; and its inputs.

    Raises ``ImportError`` where the package is not installed.
    """
    missing = [name for name in ("boto3", "botocore", "botocore.exceptions") if name not in sys.modules]
    for name in missing:
        stand_in: Any = ModuleType(name)  # it downloads by them, which no test here does
        stand_in.ClientError = OSError
        sys.modules[name] = stand_in
    try:
        from pytorch_pretrained_biggan.config import BigGANConfig  # type: ignore[import-not-found]
        from pytorch_pretrained_biggan.model import BigGAN  # type: ignore[import-not-found]
    finally:
        for name in missing:  # other packages look whether these are there
            del sys.modules[name]

    torch.manual_seed(11)
    made: Any = BigGAN(BigGANConfig(channel_width=width)).generator
    nn.init.ones_(made.bn.weight)
    nn.init.zeros_(made.bn.bias)
    x = torch.randn(1, 256)
    with torch.no_grad():
        for _ in range(3):
            made(x, 0.4)
        made.eval()(x, 0.4)
    return made, (x, 0.4)
