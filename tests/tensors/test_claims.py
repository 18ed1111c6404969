"""Views that repeat what they hold: refused where they are read and large, read where they are small."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

import wnconvert
from wnconvert.errors import InputError
from wnconvert.tensors.claims import refuse_unfounded
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import ByteRange, StoredTensor, TensorInfo

torch = pytest.importorskip("torch")


def _expanded(shape: tuple[int, ...], held: int = 1) -> StoredTensor:
    info = TensorInfo("x", dtype_named("float32"), shape)
    return StoredTensor(info, ByteRange(0, 4 * held), 0, (0,) * len(shape))


def test_only_what_is_large_and_repeated_very_often_is_refused() -> None:
    for fine in (_expanded((256, 1)), _expanded((1 << 24,)), _expanded((1 << 30,), held=1 << 20)):
        refuse_unfounded([("x", fine)], "")
    with pytest.raises(InputError, match=r"x has 100,000,000 elements by its shape, 1 element in the file"):
        refuse_unfounded([("x", _expanded((10**8,)))], "")
    several = [("x", _expanded((1 << 23, size))) for size in (1, 2)]
    with pytest.raises(InputError, match="2 tensors are expanded"):
        refuse_unfounded(several, "")


@pytest.fixture(name="large")
def _large(tmp_path: Path) -> Path:
    one = torch.ones(1)
    path = tmp_path / "e.pt"
    torch.save({"a.weight_g": one.expand(10**8, 1), "a.weight_v": one.expand(10**8, 1)}, path)
    assert path.stat().st_size < 2000
    return path


@pytest.mark.parametrize("verb", ["inspect", "inspect --full", "fold", "fold -o x.safetensors", "compare"])
def test_a_file_of_a_kilobyte_takes_no_memory_by_what_it_claims(large: Path, verb: str) -> None:
    command = [
        sys.executable,
        "-m",
        "wnconvert",
        *verb.split(),
        str(large),
        *[str(large)] * (verb == "compare"),
    ]
    most = 640 << 20  # of addresses, of which the libraries alone take half
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=large.parent,
        timeout=20,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
    )
    assert ran.returncode == 2, ran.stderr
    assert "100,000,000 elements by its shape, 1 element in the file: it is expanded" in ran.stderr
    assert "fix: if that is meant, save it with .contiguous(); else --" in ran.stderr
    assert [path.name for path in large.parent.iterdir()] == ["e.pt"]


def test_what_is_not_read_may_claim_what_it_likes(tmp_path: Path) -> None:
    path = tmp_path / "e.pt"
    g, v = torch.rand(4, 1), torch.randn(4, 3)
    torch.save({"a.weight_g": g, "a.weight_v": v, "b": torch.ones(1).expand(10**5, 10**5)}, path)
    assert len(wnconvert.inspect_file(path).layers) == 1
    folded = wnconvert.fold_file(path, tmp_path / "w.pt").output  # a view stays a view
    assert torch.load(folded)["b"].shape == (10**5, 10**5)
    with pytest.raises(InputError, match="b has 10,000,000,000 elements"):
        wnconvert.inspect_file(path, full=True)
    with pytest.raises(InputError, match="b has 10,000,000,000 elements"):
        wnconvert.fold_file(path, tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_small_expanded_tensors_are_read_as_any_other(tmp_path: Path) -> None:
    g, v = torch.rand(1, 1, 1).expand(256, 1, 1), torch.randn(256, 3, 5)
    state = {"a.weight_g": g, "a.weight_v": v, "a.bias": torch.zeros(1).expand(256)}
    torch.save(state, tmp_path / "e.pt")
    torch.save({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "c.pt")
    assert wnconvert.compare_files(tmp_path / "e.pt", tmp_path / "c.pt").identical == 2
    for name in ("e", "c"):
        wnconvert.fold_file(tmp_path / f"{name}.pt", tmp_path / f"{name}.safetensors")
    assert (tmp_path / "e.safetensors").read_bytes()[-4000:] == (tmp_path / "c.safetensors").read_bytes()[
        -4000:
    ]
    expanded, plain = (wnconvert.inspect_file(tmp_path / f"{name}.pt", full=True) for name in "ec")
    assert expanded.layers == plain.layers
