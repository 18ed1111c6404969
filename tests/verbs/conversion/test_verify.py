"""Whatever is spoilt on its way to the disk is found, with torch and without, and nothing is kept."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.golden import FIXTURES
from tests.helpers.spoilt import spoil
from tests.storage.test_sources import stored
from tests.verbs.conversion.test_convert import FOLDABLE
from wnconvert.errors import VerifyError
from wnconvert.numerics.norms import norm_blocks
from wnconvert.plan.layout import CopyBytes, Directions, FoldLayer, Gather, Norms, Work
from wnconvert.plan.split import plan as split_plan
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.layouts import layout_of
from wnconvert.verbs.conversion import executor
from wnconvert.verbs.conversion.convert import Result
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.conversion.files.split import split_file
from wnconvert.verbs.conversion.verify import pieces, readers, uncached

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["torch", "no torch", "all is large"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether torch is there to read outputs back, and whether tensors are read past the page cache."""
    if request.param == "no torch":
        monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    if request.param == "all is large":
        monkeypatch.setattr(readers, "_LARGE", 1)
        monkeypatch.setattr(uncached, "_WINDOW_BYTES", 2000)
    return str(request.param)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One tensor of each kind: folded, cast, copied; the folded one along dim 0, 1 and None."""
    torch.manual_seed(0)
    state = {"count": torch.arange(50), "other.weight": torch.randn(30, 40)}
    for name, g in {"rows": (60, 1, 1), "inner": (1, 5, 1), "whole": (1, 1, 1)}.items():
        state |= {f"{name}.weight_g": torch.rand(g) + 0.5, f"{name}.weight_v": torch.randn(60, 5, 7)}
    save_file(state, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


def fold(source: Path, out: Path, dtype: str | None) -> Result:
    return fold_file(source, out, dtype=dtype, verify=True, zero_rows="zero")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "name", [*(name for name in FOLDABLE if not name.endswith(".onnx")), "zero_row.safetensors"]
)
def test_every_fixture_is_read_back_and_right(tmp_path: Path, reader: str, name: str, suffix: str) -> None:
    only = {"gan.pt": "generator", "do_02500000": "msd"}.get(name) if suffix == ".safetensors" else None
    out = tmp_path / f"out{suffix}"
    result = fold_file(FIXTURES / name, out, only=only, verify=True, zero_rows="zero", copy=True)
    skipped = [note for note in result.notes if "not read back with torch" in note]
    by_torch = reader != "no torch" and name not in {"lightning.ckpt", "sovits.pth", "waveglow_module.pt"}
    if suffix == ".safetensors":
        more = ", large tensors past the page cache" if reader == "all is large" else ""
        assert result.verified == f"the safetensors library{more}"
    else:
        assert ("torch.load" in result.verified) == by_torch
    assert bool(skipped) == (suffix == ".pt" and not by_torch)


def test_what_was_not_read_with_torch_is_said_with_its_reason(tmp_path: Path) -> None:
    for name, reason in {"waveglow_module.pt": "GLOBAL glow.WaveGlow", "sovits.pth": "mark"}.items():
        notes = fold_file(FIXTURES / name, tmp_path / name, verify=True).notes
        (note,) = [note for note in notes if "not read back with torch" in note]
        assert reason in note
        assert note.isprintable()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (FoldLayer, None),
        (FoldLayer, "float16"),
        (FoldLayer, "bfloat16"),
        (CopyBytes, None),
        (Gather, "float16"),
        (Gather, "bfloat16"),
    ],
)
@pytest.mark.usefixtures("reader")
def test_one_flipped_bit_is_found(
    source: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Work], dtype: str | None, suffix: str
) -> None:
    out = source.with_name(f"out{suffix}")
    plan = fold_file(source, out, dtype=dtype, dry_run=True)
    blobs = [blob for blob in layout_of(open_checkpoint(source), plan).blobs if isinstance(blob.work, kind)]
    places = [at for blob in blobs for at in (blob.start, blob.start + blob.size - 2)]
    assert places, "a check of nothing"
    for at in places:
        with monkeypatch.context() as patch:
            spoil(patch, at, 0x10)
            with pytest.raises(VerifyError, match="nothing is kept"):
                fold(source, out, dtype)
    assert [path.name for path in source.parent.iterdir()] == [source.name]
    assert fold(source, out, dtype).verified


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Weights of all four dtypes, one with a zero row, beside what stays."""
    torch.manual_seed(0)
    state = {f"{str(dtype)[6:]}.weight": torch.randn(60, 5, 7).to(dtype) for dtype in FLOATS}
    state["float32.weight"][3] = 0
    state["float16.weight"][:, 2] = 0
    save_file({**state, "count": torch.arange(50)}, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", [Norms, Directions])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.usefixtures("reader")
def test_one_spoilt_element_of_g_or_v_is_found(
    plain: Path, monkeypatch: pytest.MonkeyPatch, dim: int | None, kind: type[Work], suffix: str
) -> None:
    out = plain.with_name(f"out{suffix}")
    plan = split_file(plain, out, layers="*.weight", dim=dim, dry_run=True)
    blobs = [blob for blob in layout_of(open_checkpoint(plain), plan).blobs if isinstance(blob.work, kind)]
    assert len(blobs) == 4
    for blob in blobs:
        assert isinstance(blob.work, Norms | Directions)
        size = blob.work.w.info.dtype.itemsize
        # The lowest bit, first and last; extended precision cannot tell that of a float64 norm.
        low = 0x10 if kind is Norms and size == 8 else 0x01
        for at in (blob.start, blob.start + blob.size - size):
            with monkeypatch.context() as patch:
                spoil(patch, at, low)
                with pytest.raises(VerifyError, match="nothing is kept"):
                    split_file(plain, out, layers="*.weight", dim=dim, verify=True)
        assert [path.name for path in plain.parent.iterdir()] == [plain.name]
    result = split_file(plain, out, layers="*.weight", dim=dim, verify=True)
    assert result.verified


@pytest.mark.usefixtures("reader")
def test_a_spoilt_direction_of_a_zero_row_is_found(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = plain.with_name("out.safetensors")
    plan = split_file(plain, out, layers="float32.weight", dim=0, dry_run=True)
    blobs = layout_of(open_checkpoint(plain), plan).blobs
    (start,) = (blob.start for blob in blobs if isinstance(blob.work, Directions))
    row = start + 3 * 5 * 7 * 4
    for at, flip in ((row, 0x10), (row + 3, 0x80), (row + 3, 0x40)):  # too long, of the other sign, tiny
        with monkeypatch.context() as patch:
            spoil(patch, at, flip)
            with pytest.raises(VerifyError, match="v is not w"):
                split_file(plain, out, layers="float32.weight", dim=0, verify=True)
    assert split_file(plain, out, layers="float32.weight", dim=0, verify=True).verified


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.usefixtures("reader")
def test_what_is_split_is_read_back_whatever_the_shape_of_g(
    tmp_path: Path, dim: int | None, suffix: str
) -> None:
    torch.manual_seed(0)
    g = torch.ones([size if axis == dim else 1 for axis, size in enumerate((6, 5, 7))])
    state = {"a_g": g, "a_v": torch.randn(6, 5, 7), "b_g": g.flatten(), "b_v": torch.randn(6, 5, 7)}
    state |= {"c_g": g.double(), "c_v": torch.randn(6, 5, 7).bfloat16(), "d": torch.ones(3)}
    torch.save(state, tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / f"folded{suffix}")
    result = split_file(tmp_path / f"folded{suffix}", tmp_path / f"out{suffix}", verify=True)
    assert result.verified
    assert len(result.plan.layers) == 3


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_spoilt_header_is_found_without_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path, suffix: str
) -> None:
    size = layout_of(open_checkpoint(source), fold_file(source, f"x{suffix}", dry_run=True)).size
    spoil(monkeypatch, size - 20 if suffix == ".pt" else 3, 0xFF)
    with pytest.raises(VerifyError, match="cannot be read back"):
        fold_file(source, tmp_path / f"out{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_the_command_ends_with_1(tmp_path: Path, source: Path) -> None:
    script = """
import sys
import pytest
from tests.helpers.spoilt import spoil
from wnconvert.cli import main
spoil(pytest.MonkeyPatch(), int(sys.argv.pop(1)), 0x10)
main()
"""
    out = tmp_path / "out.safetensors"
    blob = layout_of(open_checkpoint(source), fold_file(source, out, dry_run=True)).blobs[0]
    command = [sys.executable, "-c", script, str(blob.start), "fold", str(source), "-o", str(out)]
    done = subprocess.run([*command, "--verify"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert not out.exists()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert out.exists(), "nobody looked"


@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (3, 0, 2), (1, 1000), (1000, 1), (5, 30, 20), (2, 3, 1, 400)]
)
def test_pieces_cover_a_tensor_once_and_in_order(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 800)
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.int64).reshape(shape)
    save = tensor.reshape(shape or (1,))
    seen: list[int] = []
    for block, piece in pieces.pieces_of(stored(tensor)):
        found = save[piece].flatten().tolist()
        assert found == list(range(block.start, block.stop))
        assert 0 < len(found) <= 100
        seen += found
    assert seen == list(range(tensor.numel()))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_g_that_is_the_number_beside_the_norm_is_found(
    plain: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    def beside(*arguments: Any, **more: Any) -> Any:
        g, report = norm_blocks(*arguments, **more)
        return (g.view(f"u{g.itemsize}") + 1).view(g.dtype), report

    out = plain.with_name(f"out{suffix}")
    monkeypatch.setattr(executor, "norm_blocks", beside)
    with pytest.raises(VerifyError, match="g is not ‖w‖"):
        split_file(plain, out, layers="*", dim=0, verify=True)
    assert not out.exists()


def test_a_plan_that_loses_a_key_or_half_a_layer_is_found(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = split_plan._split

    def losing(at: int) -> Any:
        def split(*arguments: Any) -> Any:
            planned = made(*arguments)
            return replace(planned, steps=planned.steps[:at] + planned.steps[at + 1 :])

        return split

    count = len(split_file(plain, layers="*", dim=0, dry_run=True).state_dicts[0].steps)
    assert count > 2
    for at in range(count):
        monkeypatch.setattr(split_plan, "_split", losing(at))
        with pytest.raises(VerifyError, match="has other names than planned"):
            split_file(plain, plain.with_name("out.pt"), layers="*", dim=0, verify=True)
    assert not plain.with_name("out.pt").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("verb", ["fold", "split"])
def test_the_bar_ends_where_it_should(plain: Path, verb: str, suffix: str) -> None:
    ticks: list[tuple[int, int]] = []

    def tick(done: int, total: int) -> None:
        ticks.append((done, total))

    out = plain.with_name(f"out{suffix}")
    if verb == "split":
        split_file(plain, out, layers="*.weight", dim=0, verify=True, progress=tick)
    else:
        fold_file(FIXTURES / "hifigan.safetensors", out, verify=True, progress=tick)
    assert [done for done, _ in ticks] == sorted(done for done, _ in ticks)
    assert len({total for _, total in ticks}) == 1
    assert ticks[-1][0] == ticks[-1][1]
