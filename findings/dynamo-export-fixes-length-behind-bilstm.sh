#!/bin/sh
# torch 2.13.0, onnxscript 0.7.2, onnxruntime 1.31.1 (Python 3.11 or newer): torch's newer exporter (dynamo=True) bakes the example's
# length into a model in which a Linear follows a bidirectional LSTM, though the length was declared dynamic.
#
# The exported file declares the dynamic length, at its input and at its output, and onnx.checker is content.
# At the length of the example it computes what the module does. At every other length onnxruntime stops:
#
#   Reshape ... The input tensor cannot be reshaped to the requested shape. Input shape:{1,50,10}, requested
#   shape:{72,10}
#
# The product of the Linear is written as a Reshape to constant sizes. The older exporter (dynamo=False) writes
# a model that runs at every length. Taggers, prosody predictors and text encoders of speech synthesis are
# built like this, and an export that is tried at the length of its example alone looks right.
#
# Ends with 0 while that is so; with 1 once the newer exporter's model runs at another length.
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

folder = sys.argv[1]


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 5, batch_first=True, bidirectional=True)
        self.out = nn.Linear(10, 3)

    def forward(self, mel):
        return self.out(self.rnn(mel)[0])


torch.manual_seed(0)
model, example = Tagger().eval(), torch.randn(1, 72, 4)
length = torch.export.Dim("T", min=2, max=400)
torch.onnx.export(model, (example,), f"{folder}/newer.onnx", dynamo=True, dynamic_shapes={"mel": {1: length}})
torch.onnx.export(
    model, (example,), f"{folder}/older.onnx", dynamo=False, input_names=["mel"], output_names=["tags"],
    dynamic_axes={"mel": {1: "T"}, "tags": {1: "T"}},
)


def runs(name, size):
    onnx.checker.check_model(f"{folder}/{name}.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(f"{folder}/{name}.onnx", options)
    mel = torch.randn(1, size, 4)
    try:
        (found,) = session.run(None, {session.get_inputs()[0].name: mel.numpy()})
    except Exception as error:
        print(name, size, str(error).splitlines()[0][-160:])
        return False
    with torch.no_grad():
        return bool(np.allclose(found, model(mel).numpy(), atol=1e-4))


declared = onnx.load(f"{folder}/newer.onnx").graph.input[0].type.tensor_type.shape.dim[1]
print("declared length of the newer exporter's model:", declared.dim_param or declared.dim_value)
found = {(name, size): runs(name, size) for name in ("newer", "older") for size in (72, 50, 90)}
print(found)
expected = {("newer", 72): True, ("newer", 50): False, ("newer", 90): False}
expected |= {("older", size): True for size in (72, 50, 90)}
sys.exit(0 if found == expected and declared.dim_param else 1)
PYTHON
