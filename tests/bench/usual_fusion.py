"""The usual script for batch norm: build the model, load, let torch fuse each pair, save."""

import sys
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tests.bench.nets import ResNet50, pairs_of


def main(source: str, target: str) -> None:
    model = ResNet50()
    safe = source.endswith(".safetensors")
    state = load_file(source) if safe else torch.load(source, map_location="cpu", weights_only=True)
    model.load_state_dict(state)
    model.eval()
    for conv, norm in pairs_of(model):
        fused = fuse_conv_bn_eval(cast(Any, model.get_submodule(conv)), cast(Any, model.get_submodule(norm)))
        model.set_submodule(conv, fused)
        model.set_submodule(norm, torch.nn.Identity())
    if safe:
        save_file(model.state_dict(), target, metadata={"format": "pt"})
    else:
        torch.save(model.state_dict(), target)


main(*sys.argv[1:])
