"""What a fold may cost: little anonymous memory whatever the size of the file, and no torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.bench import inputs
from tests.bench.inputs import GIB, MIB
from tests.bench.measure import Command, bytes_read, run
from tests.helpers.golden import FIXTURES
from tests.helpers.marks import some

WNCONVERT = Path(sys.executable).with_name("wnconvert")

#: What a fold of any size may use in all, with two threads; the interpreter and its packages take 24 MiB.
MOST = 48 * MIB

SHAPES = {
    "dim 0": inputs.layer("conv", 8192, 64, 128),
    "dim 2": inputs.layer("conv", 1024, 256, 256, dim=2),
    "the whole tensor": inputs.layer("conv", 1024, 256, 256, dim=None),
    "one row": inputs.layer("conv", 1, 256, 256 * 1024),
    "many layers": inputs.many_layers(256 * MIB),
}

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon stands in /proc"),
]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "in"
    for path in tmp_path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def anonymous(source: Path, *options: str, verb: str = "fold") -> int:
    """The most anonymous memory of a fold, or of another verb."""
    out = source.with_name(f"out{source.suffix}")
    command: Command = [WNCONVERT, verb, source, "-o", out, "--threads", "2", *options]
    return run(command, target=out, memory=True).anonymous


@some("suffix", {suffix: suffix for suffix in (".safetensors", ".pt")}, [".pt"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_256_mib_are_folded_in_little_memory(source: Path, shapes: str, suffix: str) -> None:
    inputs.write(source.with_suffix(suffix), SHAPES[shapes])
    assert 8 * MIB < anonymous(source.with_suffix(suffix)) < MOST


def test_a_cast_needs_no_more(source: Path) -> None:
    inputs.write(source.with_suffix(".pt"), SHAPES["many layers"])
    assert anonymous(source.with_suffix(".pt"), "--dtype", "bfloat16") < MOST


@some("suffix", {suffix: suffix for suffix in (".safetensors", ".pt")}, [".safetensors"])
@some("dim", {dim: dim for dim in ("0", "2", "none")}, ["0", "2"])
def test_256_mib_are_split_in_little_memory(source: Path, suffix: str, dim: str) -> None:
    inputs.write(source.with_suffix(suffix), {"conv.weight": (1024, 256, 256), "conv.bias": (1024,)})
    options = ["--layers", "conv.weight", "--dim", dim]
    assert 8 * MIB < anonymous(source.with_suffix(suffix), *options, verb="split") < MOST


@some("dim", {"0": "0", "none": "none"}, ["none"])
def test_many_layers_and_a_huge_row_are_split_in_little_memory(source: Path, dim: str) -> None:
    shapes = inputs.plain(224 * MIB) | {"row.conv.weight": (1, 32, 256 * 1024)}
    inputs.write(source.with_suffix(".safetensors"), shapes)
    globs = [option for glob in inputs.LAYERS for option in ("--layers", glob)]
    most = anonymous(source.with_suffix(".safetensors"), *globs, "--dim", dim, "--verify", verb="split")
    assert 8 * MIB < most < MOST + 24 * MIB


def test_zero_rows_are_split_in_little_memory(source: Path) -> None:
    state = {"conv.weight": torch.zeros(256, 256, 1024)}
    torch.save(state, source.with_suffix(".pt"))
    options = ["--layers", "conv.weight", "--dim", "1"]
    assert anonymous(source.with_suffix(".pt"), *options, verb="split") < MOST


def test_a_folder_of_256_mib_is_folded_and_verified_in_little_memory(source: Path) -> None:
    inputs.write_folder(source, SHAPES["many layers"], 4)
    for options in ((), ("--max-shard-size", "20MB", "--verify")):
        out = source.with_name("out.folder")
        command: Command = [WNCONVERT, "fold", source, "-o", out, "--threads", "2", *options]
        assert 8 * MIB < run(command, target=out, memory=True).anonymous < MOST + (24 * MIB if options else 0)


def test_inspection_of_a_folder_of_gigabytes_reads_less_than_a_mib_beside_the_magnitudes(
    source: Path,
) -> None:
    shapes = inputs.many_layers(4 * GIB)
    inputs.write_folder(source, shapes, 8, sparse=True)
    small = source.with_name("small")
    inputs.write_folder(small, inputs.layer("conv", 8, 8, 3), 1)
    g = sum(4 * shape[0] for name, shape in shapes.items() if name.endswith("_g"))
    few, many = (bytes_read([WNCONVERT, "inspect", folder]) for folder in (small, source))
    assert g < many - few < g + MIB


def test_a_transposed_layer_is_folded_in_little_memory(source: Path) -> None:
    state = {"conv.weight_g": torch.ones(8192, 1), "conv.weight_v": torch.randn(4096, 8192).t()}
    torch.save(state, source.with_suffix(".pt"))
    assert anonymous(source.with_suffix(".pt")) < MOST + 8 * MIB


def test_the_measure_sees_memory_that_is_used(tmp_path: Path) -> None:
    code = f"held = bytes(range(256)) * {256 * 1024}; import time; time.sleep(0.05)"
    assert run([sys.executable, "-c", code], memory=True).anonymous > 64 * MIB
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [["--help"], ["fold", "--help"], ["fold", "IN"], ["fold", "IN", "--dry-run"]]
)
@pytest.mark.parametrize("name", ["hifigan.safetensors", "g_02500000", "waveglow_module.pt"])
def test_no_command_on_files_imports_torch(tmp_path: Path, name: str, options: list[str]) -> None:
    code = """
import sys
from wnconvert.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
assert "torch" not in sys.modules
"""
    given = [str(FIXTURES / name) if option == "IN" else option for option in options]
    given += ["-o", str(tmp_path / "out.pt")] if "IN" in options else []
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
