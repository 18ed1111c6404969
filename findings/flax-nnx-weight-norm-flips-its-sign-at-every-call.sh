#!/bin/sh
# flax 0.12.8 (Python 3.11 or newer): nnx.WeightNorm writes the weight that it computes into the layer that it wraps, at every call.
#
# flax.linen.WeightNorm computes g·v/√(Σv² + 1e-12) and leaves v alone. nnx.WeightNorm puts that weight in the place
# of v: the next call normalizes it again. Where a g is negative, which training makes without any harm elsewhere,
# the row changes its sign at every call: equal calls give other outputs, in turns. What a checkpoint holds depends on
# how often the model was called, so the function that is loaded is one or the other. wnconvert folds what the
# next call computes.
#
# Seen: a linear layer with the kernel (3, 4) and g = -10 gives -14, 14, -14, 14; linen's gives -14 four times.
#
# Ends with 0 while that is so; with 1 once equal calls of nnx.WeightNorm give equal outputs.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet flax==0.12.8 jax==0.10.2
JAX_PLATFORMS=cpu "$folder/env/bin/python" -W ignore - <<'PYTHON'
import sys

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

x, kernel, g = jnp.ones((1, 2)), jnp.array([[3.0], [4.0]]), jnp.array([-10.0])

module = nnx.WeightNorm(nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
module.layer_instance.kernel.set_value(kernel)
for path in module.scales:
    module.scales[path] = g
of_nnx = [round(float(module(x)[0, 0]), 3) for _ in range(4)]


class Wrapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(1, use_bias=False))(x)


params = {"Dense_0": {"kernel": kernel}, "WeightNorm_0": {"Dense_0/kernel/scale": g}}
of_linen = [round(float(Wrapped().apply({"params": params}, x)[0, 0]), 3) for _ in range(4)]

print(f"nnx: {of_nnx}, linen: {of_linen}")
assert of_linen == [-14.0] * 4
sys.exit(0 if of_nnx == [-14.0, 14.0, -14.0, 14.0] else 1)
PYTHON
