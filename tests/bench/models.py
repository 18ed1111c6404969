"""A model of real size: the HiFi-GAN of transformers, 78 layers, 12.7 million weights, random numbers."""

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

#: What is fed: frames of 80 mel channels, of any number within the range.
INPUT = "spectrogram=float32[1,T,80]"
RANGE = "T=16..200"


def hifigan() -> torch.nn.Module:
    """The model with weight norm, each g off its ‖v‖."""
    torch.manual_seed(0)
    model: Any = SpeechT5HifiGan(SpeechT5HifiGanConfig())
    model.apply_weight_norm()
    for name, value in model.named_parameters():
        if name.endswith("original0"):
            value.data.mul_(torch.empty_like(value).uniform_(0.9, 1.1))
    found: torch.nn.Module = model.eval()
    return found


def export(path: Path, *, dynamo: bool) -> None:
    """Export it as torch does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = {"dynamic_shapes": ({1: torch.export.Dim("T", min=16, max=200)},)}
        axes = {"dynamic_axes": {"spectrogram": {1: "T"}}}
        torch.onnx.export(
            hifigan(),
            (torch.randn(1, 108, 80),),
            path,
            dynamo=dynamo,
            input_names=["spectrogram"],
            external_data=False,
            verbose=False,
            **(shapes if dynamo else axes),
        )
