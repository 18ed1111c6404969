#!/bin/sh
# torch 2.13.0 (Python 3.11 or newer, a C++ compiler): torch.compile with freezing on computes other numbers where
# a batch norm stands behind a transposed convolution that has as many outputs as inputs.
#
# Freezing (TORCHINDUCTOR_FREEZING=1, made for inference) folds the norm into the convolution. It multiplies the
# weight by the norm's scale along the first axis, and has as check that the sizes fit. In a transposed
# convolution the first axis is that of the inputs. Where inputs and outputs are as many,
# the check is passed, each input channel gets the scale of an output channel, and nothing is said. Such layers
# are the upsampling steps of decoders, of segmentation models and of generators.
#
# Seen: off by 1.6 for ConvTranspose2d(8, 8) and by 2.4 with groups=2 (outputs up to 5), by 0.5 for
# ConvTranspose1d (up to 2.6). Not off by more than rounding: 8 inputs and 6 outputs, a plain Conv2d, and all of them
# compiled without freezing.
#
# Ends with 0 while that is so; with 1 once freezing gives the numbers of the module.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy
TORCHINDUCTOR_CACHE_DIR="$folder/cache" "$folder/env/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torch import nn

torch.manual_seed(0)


def case(layer, norm, *shape):
    """The layer and a norm that has seen data, and an input."""
    for tensor in (norm.weight, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    for tensor in (norm.bias, norm.running_mean):
        nn.init.uniform_(tensor, -1, 1)
    return nn.Sequential(layer, norm).eval(), torch.randn(shape)


def off(model, x, freezing):
    torch.compiler.reset()
    with torch._inductor.config.patch(freezing=freezing):
        return float((torch.compile(model)(x) - model(x)).abs().max())


with torch.no_grad():
    CASES = {
        "square": case(nn.ConvTranspose2d(8, 8, 3), nn.BatchNorm2d(8), 2, 8, 7, 7),
        "square, 2 groups": case(nn.ConvTranspose2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), 2, 8, 7, 7),
        "square, 1d": case(nn.ConvTranspose1d(8, 8, 3), nn.BatchNorm1d(8), 2, 8, 7),
        "8 to 6": case(nn.ConvTranspose2d(8, 6, 3), nn.BatchNorm2d(6), 2, 8, 7, 7),
        "plain": case(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), 2, 8, 7, 7),
    }
    wrong = set()
    for name, (model, x) in CASES.items():
        frozen, compiled = off(model, x, True), off(model, x, False)
        print(f"{name}: outputs up to {float(model(x).abs().max()):.1f}, off by {frozen:.1e} frozen, {compiled:.1e} compiled")
        wrong |= {name} if frozen > 0.1 else set()
        assert compiled < 1e-4, name
sys.exit(0 if wrong == {"square", "square, 2 groups", "square, 1d"} else 1)
PYTHON
