"""Nodes and weight norm in graphs of models of real size, as a Markdown table: torch's exporters, and ours.

``python -m tests.bench.graphs [--folder DIR]``; it takes some minutes and 8 GiB of memory.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers

from wnconvert import WnconvertError, export_onnx, inspect_file
from wnconvert.verbs.models.proof.samples import export_arrays
from wnconvert.verbs.models.proof.signatures import signature_of


@dataclass(frozen=True, slots=True)
class Model:
    """A model with weight norm, and what is fed to it."""

    name: str
    build: Callable[[], Any]
    input: str
    range: str


def _hifigan() -> Any:
    model: Any = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig())
    model.apply_weight_norm()
    return model


def _vits() -> Any:
    model: Any = transformers.VitsModel(transformers.VitsConfig()).decoder
    model.apply_weight_norm()
    return model


def _dac() -> Any:
    model: Any = transformers.DacModel(transformers.DacConfig())
    model.apply_weight_norm()
    return model.decoder


MODELS = (
    Model("HiFi-GAN (`SpeechT5HifiGan`)", _hifigan, "spectrogram=float32[1,T,80]", "T=16..100"),
    Model("VITS, decoder", _vits, "spectrogram=float32[1,192,T]", "T=16..100"),
    Model(
        "EnCodec, decoder",
        lambda: transformers.EncodecModel(transformers.EncodecConfig()).decoder,
        "hidden_states=float32[1,128,T]",
        "T=16..100",
    ),
    Model("DAC, decoder", _dac, "hidden_state=float32[1,1024,T]", "T=16..60"),
    Model(
        "wav2vec2",
        lambda: transformers.Wav2Vec2Model(transformers.Wav2Vec2Config()),
        "input_values=float32[1,T]",
        "T=4000..20000",
    ),
)
HEAD = ["", "layers", "exporter", "nodes", "weight norm left", "`wnconvert export`: nodes", "left"]


def rows(model: Model, folder: Path) -> Iterator[list[str]]:
    """A row for each exporter: the graph as torch leaves it, and as we do."""
    torch.manual_seed(0)
    module = model.build().eval()
    layers = sum("original0" in name or name.endswith("_g") for name, _ in module.named_parameters())
    for exporter in ("dynamo", "torchscript"):
        raw, ours = folder / "raw.onnx", folder / "ours.onnx"
        try:
            _as_torch_does(module, model, exporter, raw)
            report = export_onnx(
                module,
                ours,
                inputs=[model.input],
                ranges=[model.range],
                exporter=exporter,
                rtol=1e-2,
                atol=1e-3,
                force=True,
            )
        except (WnconvertError, RuntimeError) as error:
            yield [model.name, str(layers), exporter, f"refused ({type(error).__name__})", "", "", ""]
            continue
        yield [
            model.name,
            str(layers),
            exporter,
            *_graph(raw),
            *(_graph(ours) if report else ("not equal", "")),
        ]


def _graph(path: Path) -> tuple[str, str]:
    left = sum(layer.form == "onnx" for layer in inspect_file(path).layers)
    return str(len(onnx.load(path, load_external_data=False).graph.node)), str(left)


def _as_torch_does(module: torch.nn.Module, model: Model, exporter: str, path: Path) -> None:
    signature = signature_of([model.input], [model.range])
    ((name, value),) = export_arrays(signature).items()
    axis = signature.inputs[0].shape.index("T")
    span = signature.ranges["T"]
    shapes = {"dynamic_shapes": ({axis: torch.export.Dim("T", min=span.low, max=span.high)},)}
    axes = {"dynamic_axes": {name: {axis: "T"}}}
    torch.onnx.export(
        module,
        (torch.from_numpy(value),),
        path,
        dynamo=exporter == "dynamo",
        input_names=[name],
        external_data=False,
        verbose=False,
        **(shapes if exporter == "dynamo" else axes),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for cells in (HEAD, ["---"] * len(HEAD)):
        print(f"| {' | '.join(cells)} |")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-") as folder:
        for model in MODELS:
            for cells in rows(model, Path(folder)):
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
