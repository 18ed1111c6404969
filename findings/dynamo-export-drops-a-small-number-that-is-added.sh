#!/bin/sh
# torch 2.13.0, onnxscript 0.7.2, onnxruntime 1.31.1 (Python 3.11 or newer): torch's newer exporter (dynamo=True) leaves out the 1e-8 of
# v / (‖v‖ + 1e-8), so that a guarded layer gives NaN.
#
# The optimizer that the exporter runs by default takes an added 1e-8 for 0, and the addition goes:
# the graph is ReduceL2, Mul, Div, Conv. A row of zeros (a pruned channel, a layer that begins at zero) is what
# the guard is there for: the module computes 0, the exported model 0/0. With 1e-7, or with optimize=False, the
# addition is there, and the model computes what the module does. onnx.checker is content with both, and on rows that are not
# zero they agree, so a comparison on a model without such a row shows nothing.
#
# Output seen:
#   1e-08 optimized: Add False, NaN 7 of 448
#   1e-08 as it is: Add True, NaN 0 of 448
#   1e-07 optimized: Add True, NaN 0 of 448
#
# Ends with 0 while that is so; with 1 once the number stays.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.31.1 numpy
"$folder/env/bin/python" -W ignore - "$folder" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

path = f"{sys.argv[1]}/model.onnx"


class Guarded(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.eps = eps
        self.v = nn.Parameter(torch.randn(64, 64, 4))
        self.g = nn.Parameter(torch.ones(64, 1, 1))
        with torch.no_grad():
            self.v[0] = 0

    def forward(self, x):
        norm = self.v.norm(dim=(1, 2), keepdim=True)
        return nn.functional.conv1d(x, self.g * self.v / (norm + self.eps))


def made(eps, optimize):
    torch.manual_seed(0)
    model, x = Guarded(eps).eval(), torch.randn(1, 64, 10)
    torch.onnx.export(model, (x,), path, dynamo=True, opset_version=18, optimize=optimize, verbose=False)
    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        wanted = model(x).numpy()
    assert np.isfinite(wanted).all() and np.allclose(found[:, 1:], wanted[:, 1:], atol=1e-4)
    has_add = any(node.op_type == "Add" for node in onnx.load(path).graph.node)
    return has_add, int(np.isnan(found).sum()), found.size


found = {}
for eps, optimize in ((1e-8, True), (1e-8, False), (1e-7, True)):
    found[eps, optimize] = has_add, nans, size = made(eps, optimize)
    print(f"{eps} {'optimized' if optimize else 'as it is'}: Add {has_add}, NaN {nans} of {size}")
sys.exit(0 if found == {(1e-8, True): (False, 7, 448), (1e-8, False): (True, 0, 448), (1e-7, True): (True, 0, 448)} else 1)
PYTHON
