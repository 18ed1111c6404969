#!/bin/sh
# kokoro 0.9.4 with torch 2.13.0: KModel loads a checkpoint whose decoder has no weight norm, and says nothing,
# though all weight-normalized layers of the decoder keep the random numbers they were built with.
#
# KModel builds its decoder with torch's legacy weight norm (weight_g, weight_v) and calls load_state_dict().
# Where that raises (it has loaded by then what has the right name), KModel tells so at debug level, cuts the
# first seven characters off each name (as if each were "module.") and loads again with strict=False, which
# finds nothing more. The same holds for a decoder in the names that torch's parametrizations give
# (parametrizations.weight.original0). What is spoken afterwards is noise.
#
# Seen: of the decoder's 304 tensors the untouched checkpoint leaves none as it was built, the folded one the g
# and v of all 46 layers: 92 tensors, with exit 0 and nothing on stdout.
#
# Ends with 0 while that is so; with 1 once the folded file is refused, or loaded.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 loguru==0.7.3 attrs numpy
"$folder/env/bin/pip" install --quiet --no-deps kokoro==0.9.4
"$folder/env/bin/python" -W ignore - "$folder" <<'PYTHON'
import importlib.machinery
import importlib.util
import sys
import types

import torch
from torch import nn

# The package's __init__ also imports its text processing, which is not needed here.
spec = importlib.machinery.PathFinder.find_spec("kokoro")
package = types.ModuleType("kokoro")
package.__path__ = list(spec.submodule_search_locations)
sys.modules["kokoro"] = package
from kokoro.model import KModel  # noqa: E402

folder = sys.argv[1]
config = {
    "vocab": {"a": 1}, "n_token": 4, "hidden_dim": 512, "style_dim": 8, "n_layer": 1, "max_dur": 4,
    "dropout": 0.0, "text_encoder_kernel_size": 5, "n_mels": 4,
    "plbert": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1,
               "max_position_embeddings": 16},
    "istftnet": {"resblock_kernel_sizes": [3], "upsample_rates": [10, 6], "upsample_initial_channel": 512,
                 "resblock_dilation_sizes": [[1, 3, 5]], "upsample_kernel_sizes": [20, 12],
                 "gen_istft_n_fft": 20, "gen_istft_hop_size": 5},
}  # fmt: skip


def load(path):
    torch.manual_seed(1)  # the numbers that the model is built with
    return KModel(repo_id="none", config=config, model=path, disable_complex=True)


torch.save({}, f"{folder}/nothing.pt")
built = load(f"{folder}/nothing.pt")
torch.manual_seed(2)
trained = {name: torch.randn_like(value) if value.is_floating_point() else value
           for name, value in built.decoder.state_dict().items()}
torch.save({"decoder": trained}, f"{folder}/trained.pt")

folded = dict(trained)
for name in trained:
    if name.endswith("weight_v"):
        g, v = folded.pop(name[:-1] + "g"), folded.pop(name)
        folded[name[:-2]] = torch._weight_norm(v, g, 0)
torch.save({"decoder": folded}, f"{folder}/folded.pt")


def as_built(model):
    pairs = zip(model.decoder.state_dict().values(), built.decoder.state_dict().values(), strict=True)
    return sum(torch.equal(value, random) for value, random in pairs)


total = len(trained)
whole, silent = as_built(load(f"{folder}/trained.pt")), as_built(load(f"{folder}/folded.pt"))
print(f"tensors of the decoder that are still as built: {whole} of {total} untouched, {silent} of {total} folded")
halves = sum(name.endswith(("weight_g", "weight_v")) for name in trained)
sys.exit(0 if whole == 0 and silent == halves > 0 else 1)
PYTHON
