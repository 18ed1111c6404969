#!/bin/sh
# torch 2.13.0 (Python 3.11 or newer): torch.jit.freeze, torch.fx's fuse and torch.ao's fuse_fx fold a
# BatchNorm1d behind a Linear though it normalizes positions, not the Linear's features. The outputs are other ones.
#
# For an input (batch, positions, features) a Linear works on the last axis and a BatchNorm1d on the second.
# Such a norm cannot be folded. All three fold it where there are as many positions as features, and look at
# the number of features alone, never at the input. torch.jit.optimize_for_inference freezes, and does the same.
# Where the numbers differ, fuse and fuse_fx stop with an AssertionError ("To fuse, linear.out_features ==
# bn.num_features ...") on this valid model; freeze leaves it as it is, which is right.
#
# Models of time series and mixers over patches have norms over positions; where both sizes happen to be the same
# number, a model that was tried at another size comes out wrong.
#
# Seen: 5 positions, 5 features: off by 1.7 in all three, outputs up to 2.6. With (batch, features) all three are right.
#
# Ends with 0 while that is so; with 1 once one of them no longer folds such a norm.
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
TOOLS = {
    "jit.freeze": lambda model, x: torch.jit.freeze(torch.jit.script(model)),
    "fx fuse": lambda model, x: fuse(model),
    "fuse_fx": lambda model, x: fuse_fx(model),
}


def case(features, normed, *shape):
    norm = nn.BatchNorm1d(normed)
    for tensor in (norm.weight, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    for tensor in (norm.bias, norm.running_mean):
        nn.init.uniform_(tensor, -1, 1)
    return nn.Sequential(nn.Linear(6, features), norm).eval(), torch.randn(shape)


def seen(tool, model, x):
    try:
        off = float((tool(model, x)(x) - model(x)).abs().max())
    except AssertionError as error:
        print("  ", str(error)[:110])
        return "stops"
    print("   off by", off)
    return "wrong" if off > 0.1 else "right"


with torch.no_grad():
    CASES = {
        "5 positions, 5 features": case(5, 5, 3, 5, 6),
        "5 positions, 7 features": case(7, 5, 3, 5, 6),
        "no positions": case(5, 5, 3, 6),
    }
    found = {}
    for name, (model, x) in CASES.items():
        print(name, "outputs up to", float(model(x).abs().max()))
        found[name] = [seen(tool, model, x) for tool in TOOLS.values()]
print(found)
expected = {
    "5 positions, 5 features": ["wrong", "wrong", "wrong"],
    "5 positions, 7 features": ["right", "stops", "stops"],
    "no positions": ["right", "right", "right"],
}
sys.exit(0 if found == expected else 1)
PYTHON
