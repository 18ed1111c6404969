#!/bin/sh
# pnnx 20261020, ncnn 1.0.20261020, torch 2.13.0 (Python 3.11 or newer): a convolution with torch.nn.utils.weight_norm
# along an axis other than the first, or over the whole weight (dim=None), becomes another one, and nothing is said.
#
# pnnx folds g and v into the weight by a pass of its own for the names weight_g and weight_v, which takes
# every axis for the first. wav2vec2 and its relatives have such a layer (dim=2, the positional convolution).
# The same layer in the form of torch.nn.utils.parametrizations is converted rightly, since it is traced.
#
# Seen: dim 0 off by 2e-4 of the largest output (half precision), dim 1 by 1.0, None by 3, dim 2 NaN; the other
# form by 2e-4 with each dim.
#
# Ends with 0 while that is so; with 1 once each dim is right.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/env/bin/pip" install --quiet pnnx==20261020 ncnn==1.0.20261020
cd "$folder"
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import sys

import ncnn
import numpy as np
import pnnx
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm


class Net(nn.Module):
    def __init__(self, norm, dim):
        super().__init__()
        torch.manual_seed(0)
        self.conv = norm(nn.Conv1d(8, 16, 3, padding=1), dim=dim)
        with torch.no_grad():
            for name, value in self.named_parameters():
                if name.endswith(("weight_g", "original0")):
                    value.mul_(torch.rand_like(value) + 0.5)

    def forward(self, x):
        return self.conv(x)


def off(norm, dim):
    model, x = Net(norm, dim).eval(), torch.randn(1, 8, 20)
    should = model(x)[0].detach().numpy()
    pnnx.export(model, "m.pt", x)
    net = ncnn.Net()
    net.load_param("m.ncnn.param")
    net.load_model("m.ncnn.bin")
    run = net.create_extractor()
    run.input("in0", ncnn.Mat(x[0].numpy()).clone())
    found = np.array(run.extract("out0")[1])
    return float(np.abs(found - should).max() / np.abs(should).max())


def is_wrong(norm, dim):
    value = off(norm, dim)
    print("\n>>>", norm.__module__, "dim", dim, "off by", value)
    return not value < 0.01


dims = (0, 1, 2, None)
legacy = [is_wrong(weight_norm, dim) for dim in dims]
new = [is_wrong(parametrizations.weight_norm, dim) for dim in dims]
sys.exit(0 if legacy == [False, True, True, True] and not any(new) else 1)
PYTHON
