"""The usual script, which wnconvert is held against: read all, let torch fold each layer, write all."""

import sys

import torch
from safetensors.torch import load_file, save_file


def main(source: str, target: str) -> None:
    safe = source.endswith(".safetensors")
    checkpoint = {} if safe else torch.load(source, map_location="cpu", weights_only=True)
    state = load_file(source) if safe else checkpoint["generator"]
    for name in [key.removesuffix("_g") for key in state if key.endswith("weight_g")]:
        g, v = state.pop(f"{name}_g"), state.pop(f"{name}_v")
        dim = next((axis for axis, size in enumerate(g.shape) if size > 1), 0 if v.shape[0] == 1 else -1)
        state[name] = torch._weight_norm(v, g, dim)
    if safe:
        save_file(state, target, metadata={"format": "pt"})
    else:
        torch.save(checkpoint, target)


main(*sys.argv[1:])
