#!/bin/sh
# accelerate 1.15.0, torch 2.13.0 (Python 3.11 or newer): cpu_offload of a model with torch.nn.utils.weight_norm
# computes with weights that are not there, and nothing is said.
#
# The hook of weight_norm is a forward pre-hook: it computes `weight` of g and v before accelerate's own
# wrapped forward has brought them, so that it normalizes the placeholders. What comes out differs from run to
# run, up to 1e26. torch.nn.utils.parametrizations computes in forward, and is right.
#
# Seen: the legacy form off by 0.9 to 1e27 of the largest output; the other form and a plain layer by 0.
#
# Ends with 0 while that is so; with 1 once the legacy form is right, or raises.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/env/bin/pip" install --quiet accelerate==1.15.0
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from accelerate import cpu_offload
from torch import nn
from torch.nn.utils import parametrizations, weight_norm


def off(norm):
    torch.manual_seed(0)
    model, x = nn.Sequential(norm(nn.Linear(16, 32)), nn.ReLU(), norm(nn.Linear(32, 8))).eval(), torch.randn(4, 16)
    should = model(x)
    found = cpu_offload(model, execution_device="cpu")(x)
    return float((found - should).abs().max() / should.abs().max())


with torch.no_grad():
    found = {
        "legacy": off(weight_norm),
        "parametrize": off(parametrizations.weight_norm),
        "plain": off(lambda layer: layer),
    }
print(found)
sys.exit(0 if not found["legacy"] < 0.1 and found["parametrize"] == found["plain"] == 0 else 1)
PYTHON
