#!/bin/sh
# transformers 5.24.0 with torch 2.13.0: SeamlessM4TModel.from_pretrained reports no missing key for a file that
# has no vocoder at all, and none for a file whose vocoder has weight norm. The vocoder is random in both.
#
# The class ignores missing keys that begin with "vocoder" (so that models without speech output load). It builds
# the vocoder all the same, plain. A checkpoint that was saved with apply_weight_norm() on, as for fine-tuning,
# is told by UNEXPECTED keys alone ("can be ignored"), a file that lost its vocoder by nothing. Speech is noise.
#
# Seen: missing_keys is empty in both cases, unexpected_keys has 24 names in the one and none in the other. Of
# the 24 weights and biases of the vocoder's convolutions, 12 (the biases) are loaded in the one, none in the other.
#
# Ends with 0 while that is so; with 1 once the missing vocoder is reported.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 safetensors==0.8.0 numpy
"$folder/env/bin/python" -W ignore - "$folder/model" <<'PYTHON'
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import SeamlessM4TConfig, SeamlessM4TModel

folder, weights = sys.argv[1], sys.argv[1] + "/model.safetensors"
heads = {f"{part}_attention_heads": 2 for part in ("speech_encoder", "encoder", "decoder", "t2u_encoder", "t2u_decoder")}
layers = {f"{part}_layers": 1 for part in ("speech_encoder", "encoder", "decoder", "t2u_encoder", "t2u_decoder")}
sizes = {f"{part}_ffn_dim": 16 for part in ("encoder", "decoder", "t2u_encoder", "t2u_decoder")}
config = SeamlessM4TConfig(
    vocab_size=12, hidden_size=16, feature_projection_input_dim=8, speech_encoder_intermediate_size=16,
    max_position_embeddings=32, t2u_vocab_size=12, t2u_pad_token_id=0, unit_hifi_gan_vocab_size=12,
    unit_embed_dim=4, lang_embed_dim=2, spkr_embed_dim=2, vocoder_num_langs=3, vocoder_num_spkrs=3,
    upsample_initial_channel=8, upsample_rates=(2, 2), upsample_kernel_sizes=(4, 4),
    resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3),), **heads, **layers, **sizes,
)
torch.manual_seed(0)
model = SeamlessM4TModel(config)
with torch.no_grad():
    for parameter in model.vocoder.parameters():  # as if trained: unlike what the class begins with
        parameter.add_(torch.rand_like(parameter) + 1)
plain = {name: value.clone() for name, value in model.vocoder.state_dict().items()}


def loaded():
    torch.manual_seed(1)
    made, report = SeamlessM4TModel.from_pretrained(folder, output_loading_info=True)
    pairs = ((value, made.vocoder.state_dict()[name]) for name, value in plain.items() if "hifi_gan" in name)
    same = sum(torch.equal(value, other) for value, other in pairs)
    return len(report["missing_keys"]), len(report["unexpected_keys"]), same


model.save_pretrained(folder)
whole = loaded()
model.vocoder.apply_weight_norm()
model.save_pretrained(folder)
normed = loaded()
save_file(
    {name: value for name, value in load_file(weights).items() if not name.startswith("vocoder")},
    weights,
    metadata={"format": "pt"},
)
without = loaded()
print("missing keys, unexpected keys, weights and biases of the vocoder's convolutions that were loaded:")
print("plain vocoder:", whole, " with weight norm:", normed, " without a vocoder:", without)
silent = normed[0] == without[0] == without[1] == without[2] == 0 and normed[1] == 24 and whole[2] > normed[2]
sys.exit(0 if silent and whole[:2] == (0, 0) else 1)
PYTHON
