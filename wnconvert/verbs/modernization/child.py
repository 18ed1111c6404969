"""A model of one tree, in a process of its own: built, loaded, run, trained, saved and copied.

``python -m wnconvert.verbs.modernization.child REQUEST.json`` in the root of the tree; it is the user's code.
"""

from __future__ import annotations

import copy
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from wnconvert.verbs.models.loading.model import build
from wnconvert.verbs.models.proof.functions import error_text, named_outputs, tensors_of
from wnconvert.verbs.models.proof.running import quiet_torch
from wnconvert.verbs.models.proof.samples import arrays, samples_of
from wnconvert.verbs.models.proof.signatures import signature_of

__all__ = ["STEPS", "run_request"]


#: How many steps of training the parameters are compared after.
STEPS = 5


def run_request(request: dict[str, Any]) -> dict[str, Any]:
    """What a model does: keys, outputs, parameters after training; whether it can be saved and copied.

    ``request`` has the factory, the texts of inputs and ranges, and the file of the state dict in legacy form
    to load; without one the model keeps the weights of its seed.
    """
    inputs: Sequence[str] = request["inputs"]
    signature = signature_of(inputs, request["ranges"])
    feeds = [tensors_of(arrays(signature, sample)) for sample in samples_of(signature, 2)]
    torch.manual_seed(0)
    model = build(request["factory"])
    if not isinstance(model, nn.Module):
        raise TypeError(f"{request['factory']} makes no nn.Module")
    if request["weights"]:
        model.load_state_dict(load_file(request["weights"]))
    first = _state(model)
    outputs = _outputs(model, feeds)
    copied = _copied(model, feeds[0], outputs[0])
    saved = _saved(model, feeds[0], outputs[0])
    _train(model, feeds)
    return {"state": first, "outputs": outputs, "trained": _state(model), "copied": copied, "saved": saved}


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _called(model: nn.Module, feed: dict[str, Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    own = {name: value.clone() for name, value in feed.items()}  # which a model may write to
    return [value for _, value in named_outputs(model(**own))]


def _outputs(model: nn.Module, feeds: Sequence[dict[str, Tensor]]) -> list[list[Tensor]]:
    model.eval()
    with torch.no_grad():
        return [_called(model, feed) for feed in feeds]


def _copied(model: nn.Module, feed: dict[str, Tensor], expected: list[Tensor]) -> str:
    """Why a deep copy is not the same; empty where it is."""
    try:
        found = _outputs(copy.deepcopy(model), [feed])[0]
    except Exception as error:  # noqa: BLE001 - whatever the user's classes raise
        return error_text(error)
    return "" if all(map(torch.equal, found, expected)) else "its copy computes something else"


def _saved(model: nn.Module, feed: dict[str, Tensor], expected: list[Tensor]) -> str:
    """Why a model is not the same with its own state dict, saved and loaded; empty where it is."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    try:
        model.load_state_dict(torch.load(file, weights_only=True))
    except RuntimeError as error:
        return error_text(error)
    return "" if all(map(torch.equal, _outputs(model, [feed])[0], expected)) else "it computes something else"


def _train(model: nn.Module, feeds: Sequence[dict[str, Tensor]]) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS):
        found = [value for value in _called(model, feeds[step % len(feeds)]) if value.is_floating_point()]
        loss = torch.stack([value.square().mean() for value in found]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _main(path: Path) -> None:
    """Do what a file asks for, and write what came of it beside it; an error is written in words."""
    request = json.loads(path.read_text())
    try:
        with quiet_torch():
            found = run_request(request)
    except Exception as error:  # noqa: BLE001 - it is told by the process that asked
        found = {"error": f"{type(error).__name__}: {error_text(error)}"}
    torch.save(found, request["out"])


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
