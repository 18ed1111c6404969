#!/bin/sh
# flax 0.12.8, jax 0.10.2 (Python 3.11 or newer): nnx.WeightNorm with a negative scale gives outputs whose sign
# changes at every call, and its scale is no parameter: it is neither saved nor trained with the others.
#
# The wrapper writes the effective weight g·v/‖v‖ over v (`param.set_value`). Where g is positive the next call
# computes the same of it; where it is negative the direction is turned round each time. torch's g may become
# negative in training, so a vocoder that is ported with its weights meets that. The scale lies in a plain dict
# of arrays: `nnx.state(model, nnx.Param)`, which people save and give to an optimizer, has it not.
#
# Seen: the second unit is 0.9, -0.9, 0.9; the parameters are the kernel and the bias alone.
#
# Ends with 0 while that is so; with 1 once outputs stay the same, or the scale is among the parameters.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet jax==0.10.2 flax==0.12.8
"$folder/env/bin/python" - <<'PYTHON'
import sys

import jax.numpy as jnp
from flax import nnx

model = nnx.WeightNorm(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
model.scales[("kernel",)] = jnp.array([1.0, -1.0])
x = jnp.ones((1, 3))
outputs = [model(x)[0].tolist() for _ in range(3)]
parameters = [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
print(outputs, parameters)
flips = outputs[0][1] == -outputs[1][1] == outputs[2][1] != 0
stays = outputs[0][0] == outputs[1][0] == outputs[2][0]
sys.exit(0 if flips and stays and not any("scales" in path for path in parameters) else 1)
PYTHON
