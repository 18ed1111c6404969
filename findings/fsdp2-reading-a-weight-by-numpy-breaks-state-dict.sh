#!/bin/sh
# torch 2.13.0: after a forward of an FSDP2 module, .numpy() on one of its parameters, which only reads, makes
# the next state_dict() fail.
#
# fully_shard(..., reshard_after_forward=False) leaves the parameters as plain tensors after a forward. Code
# that looks at weights then (a norm for a log, a check for NaN) often goes through .numpy(). It shares the
# storage with numpy, and torch marks such a storage as one that cannot be resized. The next state_dict()
# reshards, which frees that storage by resizing it:
#
#   RuntimeError: Trying to resize storage that is not resizable
#
# The same code without the .numpy() works, and so does .clone().numpy(). One would expect that a module can be
# saved after it was read.
#
# Ends with 0 while that is so; with 1 once state_dict() works after the read.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/env/bin/python" -W ignore - "$folder" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo", store=dist.FileStore(f"{sys.argv[1]}/store", 1), rank=0, world_size=1)


def says(read):
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.Conv1d(8, 1, 3))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=False)
    model(torch.randn(1, 4, 20))
    read(model[0].weight)
    try:
        model.state_dict()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "saved"


found = {
    "not read": says(lambda weight: None),
    "clone().numpy()": says(lambda weight: weight.detach().clone().numpy()),
    "numpy()": says(lambda weight: weight.detach().numpy()),
}
for how, said in found.items():
    print(f"{how:16} {said}")
dist.destroy_process_group()
expected = found["not read"] == found["clone().numpy()"] == "saved" and "not resizable" in found["numpy()"]
sys.exit(0 if expected else 1)
PYTHON
