"""Ratios within one run, as a Markdown table: wnconvert against a synced copy and the usual torch script.

``python -m tests.bench [names…] [--rounds N] [--folder DIR]``; the folder needs 16 GiB for all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench import inputs
from tests.bench.inputs import GIB, MIB, Shapes
from tests.bench.measure import Command, Runs, bytes_read, in_turns, machine, run

WNCONVERT = Path(sys.executable).with_name("wnconvert")
USUAL = Path(__file__).with_name("usual.py")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``most``: the ratio or the bytes that are to be met, 0 for none."""

    what: str
    ours: Runs
    other: str = ""
    others: Runs | None = None
    most: float = 0
    most_anonymous: int = 0

    def cells(self) -> list[str]:
        seconds = ratio = ""
        if self.others:
            quotient = self.ours.median / self.others.median
            seconds = f"{self.others.median:.3g} s"
            ratio = f"**{quotient:.2f}**" + (f" ({_verdict(quotient, self.most)})" if self.most else "")
        memory = _mib(self.ours.anonymous)
        if self.most_anonymous:
            memory += f" ({_verdict(self.ours.anonymous / MIB, self.most_anonymous / MIB)})"
        if self.others and self.others.anonymous:
            seconds += f", {_mib(self.others.anonymous)}"
        return [self.what, f"{self.ours.median:.3g} s", memory, self.other, seconds, ratio]


HEAD = ["", "wnconvert", "its memory", "against", "takes", "ratio"]


def _verdict(found: float, most: float) -> str:
    return f"at most {most:g}" if found <= most else f"MISSED: at most {most:g}"


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB" if size else ""


def _fold(source: Path, target: Path) -> Command:
    return [WNCONVERT, "fold", source, "-o", target]


def _usual(source: Path, target: Path) -> Command:
    return [sys.executable, USUAL, source, target]


def _copy(source: Path, target: Path) -> Command:
    return ["dd", f"if={source}", f"of={target}", "bs=4M", "conv=fsync", "status=none"]


def start(_folder: Path, rounds: int) -> Iterator[Row]:
    """Start-up alone."""
    ours, bare = in_turns(4 * rounds, [WNCONVERT, "--help"], [sys.executable, "-c", "pass"])
    yield Row("`wnconvert --help`", ours, "`python -c pass`", bare, most=6)


def small(folder: Path, rounds: int) -> Iterator[Row]:
    """A generator of HiFi-GAN V1."""
    for suffix, most in ((".safetensors", 0.2), (".pt", 0.25)):
        with _file(folder, f"hifigan{suffix}", inputs.hifigan()) as (source, target):
            ours, usual = in_turns(2 * rounds, _fold(source, target), _usual(source, target), target=target)
            yield Row(f"HiFi-GAN V1, 78 layers, {suffix}", ours, "torch script", usual, most)


def large(folder: Path, rounds: int) -> Iterator[Row]:
    """Files of gigabytes: time, and memory that does not grow with them."""
    for suffix in (".safetensors", ".pt"):
        with _file(folder, f"large{suffix}", inputs.many_layers(2 * GIB)) as (source, target):
            commands = [_fold(source, target), _copy(source, target), _usual(source, target)]
            ours, copy, usual = in_turns(rounds, *commands, target=target, memory=True)
            yield Row(f"2 GiB, {suffix}", ours, "`dd conv=fsync`", copy, 1.5, 64 * MIB)
            yield Row(f"2 GiB, {suffix}", ours, "torch script", usual)
        with _file(folder, f"larger{suffix}", inputs.many_layers(4 * GIB)) as (source, target):
            ours = run(_fold(source, target), target=target, memory=True)
            yield Row(f"4 GiB, {suffix}", ours, most_anonymous=64 * MIB)


def whole(folder: Path, rounds: int) -> Iterator[Row]:
    """One layer that is the whole file; over an inner axis or all of it there are two passes."""
    layers = {
        "dim 0": inputs.layer("conv", 8192, 256, 256),
        "dim 2": inputs.layer("conv", 1024, 1024, 512, dim=2),
        "the whole tensor": inputs.layer("conv", 1024, 1024, 512, dim=None),
    }
    for dim, shapes in layers.items():
        with _file(folder, "whole.safetensors", shapes) as (source, target):
            commands = [_fold(source, target), _copy(source, target)]
            ours, copy = in_turns(rounds, *commands, target=target, memory=True)
            yield Row(f"one layer of 2 GiB, {dim}", ours, "`dd conv=fsync`", copy, 0, 64 * MIB)


def split(folder: Path, rounds: int) -> Iterator[Row]:
    """Plain weights into g and v: along dim 0, and along an axis that takes two passes for v too."""
    with _file(folder, "plain.safetensors", inputs.plain(2 * GIB)) as (source, target):
        for dim in (0, 1):
            globs = [option for glob in inputs.LAYERS for option in ("--layers", glob)]
            ours: Command = [WNCONVERT, "split", source, "-o", target, *globs, "--dim", str(dim)]
            runs, copy = in_turns(rounds, ours, _copy(source, target), target=target, memory=True)
            yield Row(f"`split`, 2 GiB, dim {dim}", runs, "`dd conv=fsync`", copy, 0, 64 * MIB)


def migrate(folder: Path, rounds: int) -> Iterator[Row]:
    """Names alone change: a copy, in both containers."""
    for suffix in (".safetensors", ".pt"):
        with _file(folder, f"large{suffix}", inputs.many_layers(2 * GIB)) as (source, target):
            ours: Command = [WNCONVERT, "migrate", source, "-o", target]
            runs, copy = in_turns(rounds, ours, _copy(source, target), target=target, memory=True)
            yield Row(f"`migrate`, 2 GiB `{suffix}`", runs, "`dd conv=fsync`", copy, 1.5, 64 * MIB)


def inspect(folder: Path, rounds: int) -> Iterator[Row]:
    """Only names and magnitudes are read."""
    with _file(folder, "large.safetensors", inputs.many_layers(2 * GIB)) as (source, _):
        commands: list[Command] = [[WNCONVERT, "inspect", source], [sys.executable, "-c", "import torch"]]
        ours, other = in_turns(2 * rounds, *commands, memory=True)
        yield Row("`inspect`, 2 GiB", ours, "`import torch`", other, 0.4, 40 * MIB)


def compare(folder: Path, rounds: int) -> Iterator[Row]:
    """In one form, across forms, and with every tensor an ulp off, so that each block is computed."""
    shapes = inputs.many_layers(2 * GIB)
    with _file(folder, "a.safetensors", shapes) as (a, out), _file(folder, "b.safetensors", shapes) as (b, _):
        ours: Command = [WNCONVERT, "compare", a, b]
        fold: Command = [*_fold(a, out), "--force"]
        runs, cmp = in_turns(rounds, ours, ["cmp", a, b], memory=True)
        yield Row("`compare`, 2 GiB, one form", runs, "`cmp`", cmp, 2, 64 * MIB)
        run([*_fold(a, b), "--force"])
        for change in ("", ", all an ulp off"):
            if change:
                inputs.shift(b)
            runs, other = in_turns(rounds, ours, fold, memory=True)
            yield Row(
                f"`compare`, 2 GiB, across forms{change}", runs, "`wnconvert fold`", other, 1.5, 64 * MIB
            )
        out.unlink()


def sharded(folder: Path, rounds: int) -> Iterator[Row]:
    """A folder of 4 GiB in eight files: folded, verified, looked at."""
    source, target, shapes = folder / "model", folder / "out", inputs.many_layers(4 * GIB)
    inputs.write_folder(source, shapes, 8)
    copy_one = 'dd if="$f" of="$2/${f##*/}" bs=4M conv=fsync status=none || exit'
    loop = f'mkdir "$2" && for f in "$1"/*; do {copy_one}; done'
    fold = _fold(source, target)
    commands: list[Command] = [fold, [*fold, "--verify"], ["sh", "-c", loop, "sh", source, target]]
    ours, verified, copy = in_turns(rounds, *commands, target=target, memory=True)
    yield Row("a folder of 4 GiB in 8 files", ours, "`dd conv=fsync` of each", copy, 1.5, 64 * MIB)
    yield Row("the same, `--verify`", verified, "the fold itself", ours, 2, 64 * MIB)
    (small := folder / "small").mkdir()
    inputs.write(small / "model.safetensors", inputs.layer("conv", 8, 8, 3))
    look: list[Command] = [[WNCONVERT, "inspect", of] for of in (source, small)]
    ours, other = in_turns(rounds, look[0], [sys.executable, "-c", "import torch"], memory=True)
    magnitudes = sum(4 * shape[0] for name, shape in shapes.items() if name.endswith("_g"))
    read = bytes_read(look[0]) - bytes_read(look[1]) - magnitudes
    what = f"`inspect` of it, {read / 1024:.0f} KiB read beside g ({_verdict(read / MIB, 1)} MiB)"
    yield Row(what, ours, "`import torch`", other, most_anonymous=64 * MIB)
    shutil.rmtree(source)
    shutil.rmtree(small)


def onnx(folder: Path, rounds: int) -> Iterator[Row]:
    """A HiFi-GAN of 50 MB as torch's exporters leave it, against the tools that simplify any graph."""
    from tests.bench import models

    for exporter, dynamo in (("torchscript", False), ("dynamo", True)):
        source, target = folder / "hifigan.onnx", folder / "out.onnx"
        models.export(source, dynamo=dynamo)
        tools = {name: shutil.which(name, path=str(WNCONVERT.parent)) for name in ("onnxsim", "onnxslim")}
        others: dict[str, Command] = {name: [path, source, target] for name, path in tools.items() if path}
        ours, *runs = in_turns(rounds, _fold(source, target), *others.values(), target=target, memory=True)
        for name, run_of in zip(others, runs, strict=True):
            bound = 0.5 if name == "onnxsim" else 0  # it is that of one of them
            yield Row(f"HiFi-GAN, 50 MB, `.onnx` ({exporter})", ours, f"`{name}`", run_of, bound)
        source.unlink()


def export(folder: Path, rounds: int) -> Iterator[Row]:
    """From a factory to a proven file, against torch's exporter and one run of onnxruntime."""
    from tests.bench import models

    target = folder / "out.onnx"
    ours: Command = [
        *(WNCONVERT, "export", f"{models.__file__}:hifigan", "-o", target),
        *("--input", models.INPUT, "--range", models.RANGE, "--silent"),
    ]
    usual: Command = [sys.executable, "-m", "tests.bench.usual_export", target]
    runs, others = in_turns(rounds, ours, usual, target=target)
    yield Row("`export`, HiFi-GAN, 78 layers", runs, "torch's exporter, one run", others, 1.2)


@contextlib.contextmanager
def _file(folder: Path, name: str, shapes: Shapes) -> Iterator[tuple[Path, Path]]:
    """An input, removed afterwards, and the path for its output."""
    source = folder / name
    inputs.write(source, shapes)
    try:
        yield source, folder / f"out{source.suffix}"
    finally:
        source.unlink()


BENCHES: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    bench.__name__: bench
    for bench in (start, small, large, whole, split, migrate, inspect, compare, sharded, onnx, export)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHES)}; all of them without a name")
    parser.add_argument("--rounds", type=int, default=5, help="more give steadier medians")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="a folder on the disk to be used")
    options = parser.parse_args()
    if wrong := set(options.names) - set(BENCHES):
        parser.error(f"no bench is called {', '.join(sorted(wrong))}")
    options.folder.mkdir(parents=True, exist_ok=True)
    print(machine())
    print("Medians of whole processes in turns; input in the page cache; memory is the largest `RssAnon`.")
    print("wnconvert and dd end when the output is on the disk; the torch script does not wait for that.\n")
    print(_line(HEAD), _line(["---"] * len(HEAD)), sep="\n", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-") as folder:
        for name in options.names or BENCHES:
            for row in BENCHES[name](Path(folder), options.rounds):
                print(_line(row.cells()), flush=True)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
