#!/bin/sh
# torch 2.13.0 (Python 3.11 or newer): where torch.nn.utils.prune masks the stored half of a weight-normed layer
# (weight_v) or of a spectral-normed one (weight_orig), the first forward after load_state_dict computes with
# the numbers that the module had before.
#
# load_state_dict reports that all keys match. The first forward is that of the old random weights (off by
# about 1 for weight_norm, by more than 1 for spectral_norm, where outputs are about 1); the second and all
# later ones are equal to the bit to those of the module that was saved.
#
# Both are forward pre-hooks, and they run in the order in which they were added: the norm computes `weight`
# from the attribute weight_v before the mask's hook has renewed it from weight_v_orig. So a check that runs a
# loaded model once, a trace, or a script that processes one file, sees another model. A forward that is thrown
# away (or prune.remove) makes it right. With the mask on a plain layer, which has one hook, nothing is stale.
#
# Ends with 0 while that is so; with 1 once the first forward is that of the loaded weights.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

CASES = {"weight_norm": (weight_norm, "weight_v"), "spectral_norm": (spectral_norm, "weight_orig"),
         "a plain layer": (lambda layer: layer, "weight")}


def pruned(norm, half, seed):
    torch.manual_seed(seed)
    layer = norm(nn.Linear(6, 5))
    prune.random_unstructured(layer, half, 0.5)
    return layer.eval()


found = {}
with torch.no_grad():
    for name, (norm, half) in CASES.items():
        saved, loaded, x = pruned(norm, half, 0), pruned(norm, half, 1), torch.randn(3, 6)
        saved(x)
        expected = saved(x)
        told = loaded.load_state_dict(saved.state_dict(), strict=True)
        off = [float((loaded(x) - expected).abs().max()) for _ in range(3)]
        print(name, told, "off by", off)
        found[name] = [bool(value > 0.1) for value in off]
stale = [True, False, False]
sys.exit(0 if found == {"weight_norm": stale, "spectral_norm": stale, "a plain layer": [False] * 3} else 1)
PYTHON
