#!/bin/sh
# torch 2.13.0 (Python 3.11 or newer): torch.fx's fuse folds each norm behind a convolution that is used several
# times, one on top of the other. The outputs are far off, and nothing is said.
#
# fuse() (torch.fx.experimental.optimization) asks whether the output of a call has one user, not whether the
# module has one call. It folds into the module at each pair of calls that it meets:
# - a detection head with one convolution for all levels and a norm per level (as in EfficientDet): every level
#   is computed with the product of all norms;
# - one tower of convolution and norm called on two inputs (siamese networks, two augmented views): the same
#   norm is folded twice;
# - a convolution with a norm behind one of its two calls: the other call gets the norm too.
# torch.ao's fuse_fx is right on the second alone; on the first it computes all levels with the norm of one.
#
# Seen: the head is off by 6.7 (fuse_fx: 3.3), the tower by 3.7, one of two calls by 2.6, where outputs are up to 4.
#
# Ends with 0 while that is so; with 1 once fuse leaves such layers alone.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torch import nn
from torch.ao.quantization.quantize_fx import fuse_fx
from torch.fx.experimental.optimization import fuse

torch.manual_seed(0)


def normed():
    """A norm that has seen data."""
    norm = nn.BatchNorm2d(8)
    for tensor in (norm.weight, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    for tensor in (norm.bias, norm.running_mean):
        nn.init.uniform_(tensor, -1, 1)
    return norm


class Shared(nn.Module):
    def __init__(self, norms):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList(norms)

    def forward(self, large, small):
        return self.norms[0](self.conv(large)), self.norms[1](self.conv(small))


norm = normed()
CASES = {
    "a norm per level": Shared([normed(), normed()]),
    "one norm, two inputs": Shared([norm, norm]),
    "a norm behind one call": Shared([normed(), nn.Identity()]),
}


def off(tool, model, inputs):
    return max(float((got - want).abs().max()) for got, want in zip(tool(model)(*inputs), model(*inputs)))


class Unshared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), normed()) for _ in range(2))

    def forward(self, large, small):
        return self.one(large), self.two(small)


inputs = torch.randn(1, 8, 9, 9), torch.randn(1, 8, 5, 5)
wrong = set()
with torch.no_grad():
    for name, model in {**CASES, "a convolution per level": Unshared()}.items():
        model.eval()
        size = max(float(output.abs().max()) for output in model(*inputs))
        amounts = {"fuse": off(fuse, model, inputs), "fuse_fx": off(fuse_fx, model, inputs)}
        print(f"{name}: outputs up to {size:.1f}, off by {amounts}")
        wrong |= {(name, tool) for tool, amount in amounts.items() if amount > 0.1}
print(sorted(wrong))
expected = {(name, tool) for name in CASES for tool in ("fuse", "fuse_fx")} - {("one norm, two inputs", "fuse_fx")}
sys.exit(0 if wrong == expected else 1)
PYTHON
