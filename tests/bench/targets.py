"""The figures of this build beside those of the build before, and of the plainest copy that there is."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.bench import inputs
from tests.bench.builds import NOW, Build, cached_copy, direct_copy, kernel_copy
from tests.bench.inputs import GIB, MIB, written
from tests.bench.measure import Command, Runs, in_turns, run
from tests.bench.rows import Row
from wnconvert.formats.recipes import recipe_text

_MEMORY = 48 * MIB


def disk(folder: Path, rounds: int, before: Build) -> Iterator[Row]:
    """Fold at the speed of the disk."""
    for suffix in (".safetensors", ".pt"):
        with written(folder, f"large{suffix}", inputs.even_layers(2 * GIB, 32)) as (source, target):
            ours, old, direct, cached = in_turns(
                rounds,
                NOW.fold(source, target),
                before.fold(source, target),
                direct_copy(source, target),
                cached_copy(source, target),
                target=target,
                memory=True,
            )
            what = f"`fold`, 2 GiB `{suffix}`"
            yield Row(what, ours, "`dd oflag=direct conv=fsync`", direct, 1.25, _MEMORY)
            yield Row(what, ours, "the build before", old, 0.6)
            yield Row(f"{what}, the worst", Runs((max(ours.seconds),)), "`dd conv=fsync`", cached, 1)


def processors(folder: Path, rounds: int, before: Build) -> Iterator[Row]:
    """The time that processors spend on a GiB in the program itself."""
    for dtype, size in (("F32", 4), ("F16", 2), ("BF16", 2)):
        for what, dim, most in (("dim 0", 0, 0.6), ("dim 2", 2, 0.5), ("the whole tensor", None, 0.5)):
            shapes: inputs.Shapes = {}
            for number in range(8):
                shapes |= inputs.layer(f"convs.{number}", 1024, 512, 64 * 4 // size, dim=dim)
            bound = most if dtype == "F32" else 0.5
            with written(folder, "layers.safetensors", shapes, dtype) as (source, target):
                commands = NOW.fold(source, target), before.fold(source, target)
                ours, old = (runs.in_user() for runs in in_turns(rounds, *commands, target=target))
                yield Row(f"user CPU of `fold`, 1 GiB {dtype}, {what}", ours, "the build before", old, bound)


def kinds(folder: Path, rounds: int, _before: Build) -> Iterator[Row]:
    """Other kinds beside weight norm: the time on the clock, and in the program itself."""
    for dtype, size in (("F32", "2 GiB"), ("F16", "1 GiB")):
        with written(folder, "norm.safetensors", inputs.even_layers(2 * GIB, 32), dtype) as (norm, target):
            for kind in (inputs.spectral, inputs.pruned):
                shapes = inputs.even_layers(2 * GIB, 32, kind)
                with written(folder, "kind.safetensors", shapes, dtype) as (source, _):
                    commands = NOW.fold(source, target, "--kinds", "all", "--silent"), NOW.fold(norm, target)
                    ours, other = in_turns(rounds, *commands, target=target, memory=True)
                    what = f"`fold --kinds all`, {kind.__name__}, {size} {dtype}"
                    yield Row(what, ours, "weight norm", other, 1.3, _MEMORY)
                    yield Row(f"user CPU of {what}", ours.in_user(), "weight norm", other.in_user(), 1.3)


def standardized(folder: Path, rounds: int, _before: Build) -> Iterator[Row]:
    """Weights that their classes standardize beside weight norm: the same bytes."""
    said = "--standardize", "*.weight", "--std", "biased", "--eps-at", "var", "--eps", "1e-5"
    for dtype, size in (("F32", "2 GiB"), ("F16", "1 GiB")):
        with written(folder, "norm.safetensors", inputs.even_layers(2 * GIB, 32), dtype) as (norm, target):
            shapes = inputs.even_layers(2 * GIB, 32, inputs.weight)
            with written(folder, "plain.safetensors", shapes, dtype) as (source, _):
                commands = NOW.fold(source, target, *said, "--silent"), NOW.fold(norm, target, "--silent")
                ours, other = in_turns(rounds, *commands, target=target, memory=True)
                what = f"`fold --standardize`, {size} {dtype}"
                yield Row(what, ours, "weight norm", other, 1.3, _MEMORY)
                yield Row(f"user CPU of {what}", ours.in_user(), "weight norm", other.in_user(), 1.3)


def norms(folder: Path, rounds: int, _before: Build) -> Iterator[Row]:
    """Batch norms behind convolutions, beside weight norm: the same bytes."""
    recipe = folder / "norms.toml"
    recipe.write_text(recipe_text(inputs.norms_recipe(inputs.even_layers(2 * GIB, 32, inputs.normed))))
    for dtype, size in (("F32", "2 GiB"), ("F16", "1 GiB")):
        with written(folder, "norm.safetensors", inputs.even_layers(2 * GIB, 32), dtype) as (norm, target):
            shapes = inputs.even_layers(2 * GIB, 32, inputs.normed)
            with written(folder, "normed.safetensors", shapes, dtype) as (source, _):
                said = "--recipe", recipe, "--silent"
                commands = NOW.fold(source, target, *said), NOW.fold(norm, target, "--silent")
                ours, other = in_turns(rounds, *commands, target=target, memory=True)
                what = f"`fold --recipe` of batch norms, {size} {dtype}"
                yield Row(what, ours, "weight norm", other, 1.3, _MEMORY)
                yield Row(f"user CPU of {what}", ours.in_user(), "weight norm", other.in_user(), 1.3)
    recipe.unlink()


def copies(folder: Path, rounds: int, _before: Build) -> Iterator[Row]:
    """What no bit of changes is copied by the kernel."""
    layers, rest = inputs.even_layers(2 * GIB, 32), inputs.layer("conv", 64, 64, 3)
    rest |= {f"blocks.{number}.weight": (4096, 4096) for number in range(32)}
    for suffix in (".safetensors", ".pt"):
        for verb, shapes in (("migrate", layers), ("fold", rest)):
            with written(folder, f"large{suffix}", shapes) as (source, target):
                commands = NOW.command(verb, source, "-o", target), kernel_copy(source, target)
                ours, copy = in_turns(rounds, *commands, target=target, memory=True)
                what = f"`{verb}`, 2 GiB `{suffix}`" + (", 1 layer" if verb == "fold" else "")
                yield Row(what, ours, "`cp --reflink=never`, `sync`", copy, 1.1, _MEMORY)


def verify(folder: Path, rounds: int, _before: Build) -> Iterator[Row]:
    """An output read back and computed again."""
    source, target = folder / "model", folder / "out"
    inputs.write_folder(source, inputs.many_layers(4 * GIB), 8)
    commands = NOW.fold(source, target, "--verify"), NOW.fold(source, target)
    ours, fold = in_turns(rounds, *commands, target=target, memory=True)
    yield Row("`fold --verify`, a folder of 4 GiB", ours, "`fold`", fold, 2, 64 * MIB)
    shutil.rmtree(source)


def huge(folder: Path, _rounds: int, _before: Build) -> Iterator[Row]:
    """Memory at 30 GiB: rows of zeros, of which the source takes no disk."""
    source, target = folder / "huge.safetensors", folder / "out.safetensors"
    inputs.write_sparse(source, inputs.even_layers(30 * GIB, 32))
    ours = run(NOW.fold(source, target, "--zero-rows", "zero"), target=target, memory=True)
    yield Row("`fold`, 30 GiB `.safetensors`", ours, most_anonymous=_MEMORY)
    source.unlink()


def beginning(folder: Path, rounds: int, before: Build) -> Iterator[Row]:
    """Small files, where the start is all."""
    with written(folder, "small.safetensors", inputs.layer("conv", 8, 8, 3)) as (source, target):
        for name, most in (("inspect", 0.7), ("fold", 0.7), ("--help", 1.0)):
            commands: list[Command] = [
                build.fold(source, target)
                if name == "fold"
                else build.command(name, *[source][name == "--help" :])
                for build in (NOW, before)
            ]
            ours, old = in_turns(4 * rounds, *commands, target=target if name == "fold" else None)
            yield Row(
                f"`{name}`, a small file" if name != "--help" else "`--help`",
                ours,
                "the build before",
                old,
                most,
            )


def full(folder: Path, rounds: int, _before: Build) -> Iterator[Row]:
    """Every number of a file looked at."""
    with written(folder, "large.safetensors", inputs.even_layers(2 * GIB, 32)) as (source, _):
        commands: list[Command] = [NOW.command("inspect", source, "--full"), ["cat", source]]
        ours, cat = in_turns(rounds, *commands, memory=True)
        yield Row("`inspect --full`, 2 GiB", ours, "`cat > /dev/null`", cat, 2, _MEMORY)


def graphs(folder: Path, rounds: int, before: Build) -> Iterator[Row]:
    """ONNX models beside the build before: the time of processors, and memory of all processes."""
    from tests.bench import models

    source, target = folder / "hifigan.onnx", folder / "out.onnx"
    for exporter, dynamo in (("torchscript", False), ("dynamo", True)):
        models.export(source, dynamo=dynamo)
        commands = NOW.fold(source, target), before.fold(source, target)
        ours, old = in_turns(rounds, *commands, target=target, memory=True)
        what = f"`fold`, HiFi-GAN, 50 MB `.onnx` ({exporter})"
        yield Row(what, ours, "the build before", old, 1, 135 * MIB)
        yield Row(f"user CPU of {what}", ours.in_user(), "the build before", old.in_user(), 1)
        source.unlink()


def layers(folder: Path, rounds: int, _before: Build) -> Iterator[Row]:
    """Graphs of many layers: ten times the layers, in at most ten to the power of 1.1 times the time."""
    from tests.bench.growth import GRAPHS, write_graph

    few, many = (folder / f"{count}.onnx" for count in GRAPHS)
    for path, count in zip((few, many), GRAPHS, strict=True):
        write_graph(path, count)
    target = folder / "out.onnx"
    for proof in ("model", "layers"):
        commands = [NOW.fold(path, target, "--proof", proof, "--silent") for path in (many, few)]
        most, least = in_turns(rounds, *commands, target=target, memory=True)
        power = math.log(most.in_user().median / least.in_user().median, GRAPHS[1] / GRAPHS[0])
        what = f"user CPU of `fold --proof {proof}`, {GRAPHS[1]:,} layers in a graph, exponent {power:.2f}"
        bound = (GRAPHS[1] / GRAPHS[0]) ** 1.1
        yield Row(
            what, replace(most.in_user(), anonymous=most.anonymous), f"{GRAPHS[0]:,}", least.in_user(), bound
        )
    few.unlink()
    many.unlink()


BENCHES = (
    disk,
    processors,
    kinds,
    standardized,
    norms,
    copies,
    verify,
    huge,
    beginning,
    full,
    graphs,
    layers,
)
