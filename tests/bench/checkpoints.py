"""The figures of each verb, against a synced copy, the usual torch script and the tools of others."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench import inputs
from tests.bench.builds import NOW, cached_copy, usual, usual_fusion
from tests.bench.inputs import GIB, MIB, written
from tests.bench.measure import Command, bytes_read, in_turns, run
from tests.bench.rows import Row, verdict
from wnconvert.formats.recipes import recipe_text
from wnconvert.layers.recipes import Recipe, RecipeFold


def start(_folder: Path, rounds: int) -> Iterator[Row]:
    """Start-up alone."""
    ours, bare = in_turns(4 * rounds, NOW.command("--help"), [sys.executable, "-c", "pass"])
    yield Row("`wnconvert --help`", ours, "`python -c pass`", bare, most=6)


def small(folder: Path, rounds: int) -> Iterator[Row]:
    """A generator of HiFi-GAN V1."""
    for suffix, most in ((".safetensors", 0.2), (".pt", 0.25)):
        with written(folder, f"hifigan{suffix}", inputs.hifigan()) as (source, target):
            ours, script = in_turns(
                2 * rounds, NOW.fold(source, target), usual(source, target), target=target
            )
            yield Row(f"HiFi-GAN V1, 78 layers, {suffix}", ours, "torch script", script, most)


def large(folder: Path, rounds: int) -> Iterator[Row]:
    """Files of gigabytes: time, and memory that does not grow with them."""
    for suffix in (".safetensors", ".pt"):
        with written(folder, f"large{suffix}", inputs.many_layers(2 * GIB)) as (source, target):
            commands = [NOW.fold(source, target), cached_copy(source, target), usual(source, target)]
            ours, copy, script = in_turns(rounds, *commands, target=target, memory=True)
            yield Row(f"2 GiB, {suffix}", ours, "`dd conv=fsync`", copy, 1.5, 64 * MIB)
            yield Row(f"2 GiB, {suffix}", ours, "torch script", script)
        with written(folder, f"larger{suffix}", inputs.many_layers(4 * GIB)) as (source, target):
            ours = run(NOW.fold(source, target), target=target, memory=True)
            yield Row(f"4 GiB, {suffix}", ours, most_anonymous=64 * MIB)


def whole(folder: Path, rounds: int) -> Iterator[Row]:
    """One layer that is the whole file; over an inner axis or all of it there are two passes."""
    layers = {
        "dim 0": inputs.layer("conv", 8192, 256, 256),
        "dim 2": inputs.layer("conv", 1024, 1024, 512, dim=2),
        "the whole tensor": inputs.layer("conv", 1024, 1024, 512, dim=None),
    }
    for dim, shapes in layers.items():
        with written(folder, "whole.safetensors", shapes) as (source, target):
            commands = [NOW.fold(source, target), cached_copy(source, target)]
            ours, copy = in_turns(rounds, *commands, target=target, memory=True)
            yield Row(f"one layer of 2 GiB, {dim}", ours, "`dd conv=fsync`", copy, 0, 64 * MIB)


def split(folder: Path, rounds: int) -> Iterator[Row]:
    """Plain weights into g and v: along dim 0, and along an axis that takes two passes for v too."""
    with written(folder, "plain.safetensors", inputs.plain(2 * GIB)) as (source, target):
        for dim in (0, 1):
            globs = [option for glob in inputs.LAYERS for option in ("--layers", glob)]
            ours: Command = NOW.command("split", source, "-o", target, *globs, "--dim", str(dim))
            runs, copy = in_turns(rounds, ours, cached_copy(source, target), target=target, memory=True)
            yield Row(f"`split`, 2 GiB, dim {dim}", runs, "`dd conv=fsync`", copy, 0, 64 * MIB)


def migrate(folder: Path, rounds: int) -> Iterator[Row]:
    """Names alone change: a copy, in both containers."""
    for suffix in (".safetensors", ".pt"):
        with written(folder, f"large{suffix}", inputs.many_layers(2 * GIB)) as (source, target):
            ours: Command = NOW.command("migrate", source, "-o", target)
            runs, copy = in_turns(rounds, ours, cached_copy(source, target), target=target, memory=True)
            yield Row(f"`migrate`, 2 GiB `{suffix}`", runs, "`dd conv=fsync`", copy, 1.5, 64 * MIB)


def inspect(folder: Path, rounds: int) -> Iterator[Row]:
    """Only names and magnitudes are read."""
    with written(folder, "large.safetensors", inputs.many_layers(2 * GIB)) as (source, _):
        commands: list[Command] = [NOW.command("inspect", source), [sys.executable, "-c", "import torch"]]
        ours, other = in_turns(2 * rounds, *commands, memory=True)
        yield Row("`inspect`, 2 GiB", ours, "`import torch`", other, 0.4, 40 * MIB)


def compare(folder: Path, rounds: int) -> Iterator[Row]:
    """In one form, across forms, and with every tensor an ulp off, so that each block is computed."""
    shapes = inputs.many_layers(2 * GIB)
    with (
        written(folder, "a.safetensors", shapes) as (a, out),
        written(folder, "b.safetensors", shapes) as (b, _),
    ):
        ours: Command = NOW.command("compare", a, b)
        fold: Command = [*NOW.fold(a, out), "--force"]
        runs, cmp = in_turns(rounds, ours, ["cmp", a, b], memory=True)
        yield Row("`compare`, 2 GiB, one form", runs, "`cmp`", cmp, 2, 64 * MIB)
        run([*NOW.fold(a, b), "--force"])
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
    commands: list[Command] = [NOW.fold(source, target), ["sh", "-c", loop, "sh", source, target]]
    ours, copy = in_turns(rounds, *commands, target=target, memory=True)
    yield Row("a folder of 4 GiB in 8 files", ours, "`dd conv=fsync` of each", copy, 1.5, 64 * MIB)
    (small := folder / "small").mkdir()
    inputs.write(small / "model.safetensors", inputs.layer("conv", 8, 8, 3))
    look: list[Command] = [NOW.command("inspect", of) for of in (source, small)]
    ours, other = in_turns(rounds, look[0], [sys.executable, "-c", "import torch"], memory=True)
    magnitudes = sum(4 * shape[0] for name, shape in shapes.items() if name.endswith("_g"))
    read = bytes_read(look[0]) - bytes_read(look[1]) - magnitudes
    what = f"`inspect` of it, {read / 1024:.0f} KiB read beside g ({verdict(read / MIB, 1)} MiB)"
    yield Row(what, ours, "`import torch`", other, most_anonymous=64 * MIB)
    shutil.rmtree(source)
    shutil.rmtree(small)


def onnx(folder: Path, rounds: int) -> Iterator[Row]:
    """A HiFi-GAN of 50 MB as torch's exporters leave it, against the tools that simplify any graph."""
    from tests.bench import models

    for exporter, dynamo in (("torchscript", False), ("dynamo", True)):
        source, target = folder / "hifigan.onnx", folder / "out.onnx"
        models.export(source, dynamo=dynamo)
        tools = {
            name: shutil.which(name, path=str(Path(sys.executable).parent))
            for name in ("onnxsim", "onnxslim")
        }
        others: dict[str, Command] = {name: [path, source, target] for name, path in tools.items() if path}
        ours, *runs = in_turns(rounds, NOW.fold(source, target), *others.values(), target=target, memory=True)
        for name, run_of in zip(others, runs, strict=True):
            what = f"HiFi-GAN, 50 MB, `.onnx` ({exporter})"
            yield Row(what, ours, f"`{name}`", run_of, 0.5, 135 * MIB)
        source.unlink()


def export(folder: Path, rounds: int) -> Iterator[Row]:
    """From a factory to a proven file, against torch's exporter and one run of onnxruntime."""
    from tests.bench import models

    target = folder / "out.onnx"
    factory = f"{models.__file__}:hifigan"
    options = ("--input", models.INPUT, "--range", models.RANGE, "--silent")
    ours = NOW.command("export", factory, "-o", target, *options)
    usual: Command = [sys.executable, "-m", "tests.bench.usual_export", target]
    runs, others = in_turns(rounds, ours, usual, target=target)
    yield Row("`export`, HiFi-GAN, 78 layers", runs, "torch's exporter, one run", others, 0.7)


def resnet(folder: Path, rounds: int) -> Iterator[Row]:
    """The batch norms of a ResNet-50 of 100 MB, against a script that builds the model."""
    import torch
    from safetensors.torch import save_file

    from tests.bench import nets

    model, recipe = nets.resnet50(), folder / "resnet50.toml"
    folds = (
        RecipeFold("norm behind", f"{conv}.weight", norm, eps=1e-5) for conv, norm in nets.pairs_of(model)
    )
    recipe.write_text(recipe_text(Recipe(tuple(folds))))
    for suffix, save in ((".safetensors", save_file), (".pt", torch.save)):
        source, target = folder / f"resnet50{suffix}", folder / f"out{suffix}"
        save(model.state_dict(), source)
        ours, script = in_turns(
            rounds,
            NOW.fold(source, target, "--recipe", recipe, "--silent"),
            usual_fusion(source, target),
            target=target,
            memory=True,
        )
        yield Row(
            f"`fold --recipe`, ResNet-50, 100 MB `{suffix}`", ours, "torch script", script, 0.35, 64 * MIB
        )
        source.unlink()
    recipe.unlink()


BENCHES = (start, small, large, whole, split, migrate, inspect, compare, sharded, onnx, export, resnet)
