#!/bin/sh
# executorch 1.5.1, torch 2.13.0 (Python 3.11 or newer): a Linear with torch.nn.utils.weight_norm that is lowered to
# XNNPACK computes with v in place of g·v/‖v‖, and nothing is said.
#
# The partitioner takes the layer for a plain one whose weight is the stored tensor weight_v. Right after
# weight_norm() g is ‖v‖ and nothing differs; once trained, everything does. Without the partitioner, or in the
# form of torch.nn.utils.parametrizations, the norm is computed at every run, and the outputs are right.
#
# Seen: off by 0.2 of the largest output; the other form, and without XNNPACK, 1e-7.
#
# Ends with 0 while that is so; with 1 once the outputs are right.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/env/bin/pip" install --quiet executorch==1.5.1 --no-deps
"$folder/env/bin/pip" install --quiet flatbuffers ruamel.yaml pyyaml tabulate packaging pandas expecttest hydra-core omegaconf mpmath sympy psutil torchao==0.18.0 --no-build-isolation
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn
from torch.nn.utils import parametrizations, weight_norm


def off(norm, partitioners):
    torch.manual_seed(0)
    model, x = nn.Sequential(norm(nn.Linear(16, 8))).eval(), torch.randn(4, 16)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("weight_g", "original0")):
                value.mul_(torch.rand_like(value) + 0.5)
        should = model(x)
    program = to_edge_transform_and_lower(torch.export.export(model, (x,)), partitioner=partitioners)
    buffer = program.to_executorch().buffer
    found = Runtime.get().load_program(buffer).load_method("forward").execute((x,))[0]
    return float((found - should).abs().max() / should.abs().max())


found = {
    "legacy, XNNPACK": off(weight_norm, [XnnpackPartitioner()]),
    "legacy": off(weight_norm, []),
    "parametrize, XNNPACK": off(parametrizations.weight_norm, [XnnpackPartitioner()]),
}
print(found)
wrong = {name for name, value in found.items() if not value < 1e-5}
sys.exit(0 if wrong == {"legacy, XNNPACK"} else 1)
PYTHON
