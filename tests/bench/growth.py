"""How work grows with the number of layers, as a Markdown table: CPU time, memory, and the exponent.

``python -m tests.bench.growth [--layers 1000 4000 …] [--folder DIR] [--suffix .onnx]``; a layer is g, v and a
bias, tiny. A graph computes each weight of g and v, and runs the layers one behind the other.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file

from tests.bench.measure import Command, machine

LAYERS = (1000, 4000, 16000, 64000)
#: Between these the exponent is told: of checkpoints, and of graphs.
EXPONENT = (4000, 64000)
GRAPHS = (1000, 10000)
SUFFIXES = (".safetensors", ".pt", ".onnx")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took: seconds of user and system time, and the most memory of its own."""

    seconds: float
    memory: int


def write(path: Path, layers: int) -> None:
    """A file of so many layers with regular names."""
    if path.suffix == ".onnx":
        write_graph(path, layers)
        return
    tensors = {
        f"model.layers.{at}.conv.{name}": torch.full(shape, 1.5)
        for at in range(layers)
        for name, shape in (("weight_g", (2, 1)), ("weight_v", (2, 3)), ("bias", (2,)))
    }
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def write_graph(path: Path, layers: int) -> None:
    """A model of so many layers, one behind the other, as torch's older exporter spells weight norm."""
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors = [numpy_helper.from_array(np.array([1]), "axes")]
    last = "x"
    for at in range(layers):
        g, v, bias = (f"model.layers.{at}.conv.{name}" for name in ("weight_g", "weight_v", "bias"))
        for name, shape in ((g, (4, 1)), (v, (4, 4)), (bias, (4,))):
            numbers = np.abs(random.standard_normal(shape, np.float32))
            tensors.append(numpy_helper.from_array(numbers, name))
        nodes += [
            helper.make_node("ReduceL2", [v, "axes"], [f"norm_{at}"], keepdims=1),
            helper.make_node("Div", [v, f"norm_{at}"], [f"unit_{at}"]),
            helper.make_node("Mul", [f"unit_{at}", g], [f"weight_{at}"]),
            helper.make_node("Gemm", [last, f"weight_{at}", bias], [f"sum_{at}"], transB=1),
            helper.make_node("Tanh", [f"sum_{at}"], [last := f"out_{at}"]),
        ]
    inputs, outputs = ([helper.make_tensor_value_info(name, 1, ["B", 4])] for name in ("x", last))
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def cost(command: Command) -> Cost:
    """Run a command that must end well."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    memory = 0
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        status = Path("/proc", str(process.pid), "status")
        while process.poll() is None:
            memory = max(memory, _anonymous(status))
            time.sleep(0.02)
        if process.returncode not in (0, 1):
            raise RuntimeError((process.stderr.read() if process.stderr else b"").decode())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, memory)


def _anonymous(status: Path) -> int:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


def verbs(folder: Path, suffix: str) -> Iterator[tuple[str, Command]]:
    """The verbs by name; each but the first may use what those before it wrote."""
    source, folded, moved = (folder / f"{name}{suffix}" for name in ("source", "folded", "moved"))
    out: Command = ["-o", folder / f"out{suffix}", "--force", "--quiet"]
    tool: Command = [sys.executable, "-m", "wnconvert"]
    yield "inspect", [*tool, "inspect", source]
    yield "fold", [*tool, "fold", source, "-o", folded, "--force", "--quiet"]
    yield "fold --dry-run", [*tool, "fold", source, "--dry-run"]
    if suffix == ".onnx":
        yield "fold --proof layers", [*tool, "fold", source, *out, "--proof", "layers"]
        return
    yield "split (record)", [*tool, "split", folded, *out]
    yield "split --like", [*tool, "split", folded, "--like", source, *out]
    yield "split --layers", [*tool, "split", folded, "--layers", "*.conv.weight", "--dim", "0", *out]
    yield "migrate", [*tool, "migrate", source, "-o", moved, "--force", "--quiet"]
    yield "migrate back", [*tool, "migrate", moved, "--to", "legacy", *out]
    yield "compare", [*tool, "compare", source, folded]


def exponent(costs: dict[int, Cost]) -> float | None:
    """The power of the number of layers with which the time grows."""
    few, many = EXPONENT if EXPONENT[1] in costs else GRAPHS
    if few not in costs or many not in costs:
        return None
    return math.log(costs[many].seconds / costs[few].seconds) / math.log(many / few)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="*", default=LAYERS)
    parser.add_argument("--suffix", choices=SUFFIXES, nargs="*", default=SUFFIXES)
    parser.add_argument("--folder", type=Path, default=Path("build"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(machine())
    print("Seconds of CPU (user and system) of whole commands, and the most anonymous memory in MiB.\n")
    print(
        _line(
            ["", *(f"{count:,} layers" for count in options.layers), "ms a layer", "KiB a tensor", "exponent"]
        )
    )
    print(_line(["---"] * (len(options.layers) + 4)), flush=True)
    for suffix in options.suffix:
        table: dict[str, dict[int, Cost]] = {}
        for count in options.layers:
            with tempfile.TemporaryDirectory(dir=options.folder, prefix="growth-") as folder:
                write(Path(folder, f"source{suffix}"), count)
                for verb, command in verbs(Path(folder), suffix):
                    table.setdefault(verb, {})[count] = cost(command)
        for verb, costs in table.items():
            print(_line([f"`{verb}`, `{suffix}`", *_cells(costs)]), flush=True)


def _cells(costs: dict[int, Cost]) -> list[str]:
    most = max(costs)
    power = exponent(costs)
    return [
        *(f"{each.seconds:.2f} s, {each.memory >> 20}" for each in costs.values()),
        f"{costs[most].seconds / most * 1000:.2f}",
        f"{costs[most].memory / most / 3 / 1024:.2f}",
        "" if power is None else f"{power:.2f}",
    ]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
