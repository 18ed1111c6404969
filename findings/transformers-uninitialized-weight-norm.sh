#!/bin/sh
# transformers 5.24.0 with torch 2.13.0: a weight-normalized layer that is missing from a checkpoint is reported
# as "newly initialized", and is uninitialized memory.
#
# Wav2Vec2Model builds the convolution that embeds positions with torch's parametrized weight norm. Its
# _init_weights() sets that layer through `conv.weight`. With weight norm on, `weight` is computed, and what is
# set is lost; the parameters original0 and original1 keep what the allocator had there. A checkpoint whose
# weight norm was folded (as many published ones are) loads with two MISSING keys, and this:
#
#   MISSING: those params were newly initialized because missing from the checkpoint.
#   original0: nan ..., or values such as 1e+09 and 3.7e+37, other ones in every process
#
# The outputs are then NaN, or of any size, from the first step of a fine-tuning on. One would expect small
# random numbers, as torch's own constructor gives. So "newly initialized" of a weight-normalized layer has
# always to be repaired (split the folded weight into g and v again), never to be trained away.
#
# Ends with 0 while that is so; with 1 once the values are sane.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 safetensors==0.8.0 numpy
"$folder/env/bin/python" - "$folder/model" <<'PYTHON'
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2Model

folder, weights = sys.argv[1], sys.argv[1] + "/model.safetensors"
config = Wav2Vec2Config(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8),
    conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=128,
    num_conv_pos_embedding_groups=2, vocab_size=12,
)
model = Wav2Vec2Model(config)
model.save_pretrained(folder)

# The same weights, with weight norm folded into one plain tensor.
state = {name: value for name, value in load_file(weights).items() if "original" not in name}
state["encoder.pos_conv_embed.conv.weight"] = model.encoder.pos_conv_embed.conv.weight.detach().clone()
save_file(state, weights, metadata={"format": "pt"})

wild = 0
for _ in range(10):
    used = [torch.full((4096,), 1e9) for _ in range(2000)]  # what a program does before: memory is used, and freed
    del used
    loaded, report = Wav2Vec2Model.from_pretrained(folder, output_loading_info=True)
    assert len(report["missing_keys"]) == 2, report
    pair = loaded.encoder.pos_conv_embed.conv.parametrizations.weight
    for name in ("original0", "original1"):
        values = getattr(pair, name).detach()
        print(name, "least and greatest:", values.min().item(), values.max().item())
        wild += not bool((values.abs() < 100).all())  # NaN is wild, too
print(wild, "of 20 tensors are not small random numbers")
sys.exit(0 if wild else 1)
PYTHON
