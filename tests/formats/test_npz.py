"""NumPy's .npz files: what numpy writes is read, what is written numpy reads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from tests.helpers.states import output_of
from wnconvert import compare_files, fold_file, inspect_file, migrate_file, split_file
from wnconvert.errors import FormatError, OutputError
from wnconvert.formats import npz
from wnconvert.formats.npz import open_npz
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.files import open_file
from wnconvert.tensors.dtypes import DTYPES

DTYPES_OF_NUMPY = (
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8", "bool", "complex64", "complex128"),
)


def loaded(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def test_the_same_weights_are_written_as_to_safetensors(tmp_path: Path) -> None:
    made = fold_file(FIXTURES / "g_02500000", tmp_path / "x.npz", verify=True)
    assert made.verified == "numpy.load(allow_pickle=False)"
    assert made.to_dict()["container"] == "numpy"
    fold_file(FIXTURES / "g_02500000", tmp_path / "x.safetensors")
    assert compare_files(tmp_path / "x.npz", tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "name", ["sharded", "waveglow_module.pt", "scripted.pt", "legacy_nonzip.pth", "lightning.ckpt", "tied.pt"]
)
def test_a_source_of_any_kind_is_folded_into_one(tmp_path: Path, name: str) -> None:
    made = fold_file(FIXTURES / name, tmp_path / "x.npz", verify=True)
    assert made.verified
    assert compare_files(FIXTURES / name, output_of(made))


def test_threads_that_verify_an_archive_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 and 3.13 open a record where another thread left the file: numpy reads other bytes then."""
    reading, most = 0, 0
    read = np.lib.npyio.NpzFile.__getitem__

    def watched(archive: Any, name: str) -> Any:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        time.sleep(0.002)
        array = read(archive, name)
        reading -= 1
        return array

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", watched)
    fold_file(FIXTURES / "g_02500000", tmp_path / "x.npz", verify=True, threads=4)
    assert most == 1


@pytest.mark.parametrize("name", DTYPES_OF_NUMPY)
def test_every_dtype_of_numpy_is_written_and_read_as_it_is(tmp_path: Path, name: str) -> None:
    values = torch.tensor([0, 1, 1, 0, 1, 1], dtype=getattr(torch, name)).reshape(2, 3)
    torch.save({"a": values, "b": values[0, 0], "t": values.T, "none": values[:0]}, tmp_path / "x.pt")
    fold_file(tmp_path / "x.pt", tmp_path / "x.npz", verify=True)
    found = loaded(tmp_path / "x.npz")
    assert [*found] == ["a", "b", "t", "none"]
    assert {str(array.dtype) for array in found.values()} == {name}
    assert [array.shape for array in found.values()] == [(2, 3), (), (3, 2), (0, 3)]
    assert found["t"].tolist() == values.T.tolist()
    np.savez(tmp_path / "again.npz", **found)
    assert compare_files(tmp_path / "x.npz", tmp_path / "again.npz")


def test_the_table_has_every_dtype_that_numpy_has() -> None:
    assert sorted(npz._DESCRIPTIONS) == sorted(DTYPES_OF_NUMPY)
    for name, description in npz._DESCRIPTIONS.items():
        assert np.dtype(description).name == name
        assert np.dtype(description).str == description
        assert np.dtype(description).itemsize * 8 == DTYPES[name].bits


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_a_dtype_that_numpy_does_not_have_is_refused_in_words(
    tmp_path: Path, run: Runner, dtype: str
) -> None:
    save_file({"a.weight": torch.ones(2, 3).to(getattr(torch, dtype))}, tmp_path / "x.safetensors")
    for verb, fix in (("fold", "--dtype float32, or -o OUT.safetensors"), ("migrate", "-o OUT.safetensors")):
        ended = run(verb, tmp_path / "x.safetensors", "-o", tmp_path / "x.npz")
        assert ended.returncode == 2
        assert f"a.weight is {dtype}, which numpy does not have" in ended.stderr
        assert f"fix: {fix}, which can hold it" in ended.stderr
    assert not (tmp_path / "x.npz").exists()


def test_bfloat16_is_written_as_float32_where_that_is_asked_for(tmp_path: Path) -> None:
    out = output_of(
        fold_file(FIXTURES / "codec_bf16.safetensors", tmp_path / "x.npz", dtype="float32", verify=True)
    )
    assert {str(array.dtype) for array in loaded(out).values()} == {"float32", "int64"}


def test_several_state_dicts_and_what_is_not_a_tensor_are_answered_as_for_safetensors(
    tmp_path: Path, run: Runner
) -> None:
    ended = run("fold", FIXTURES / "gan.pt", "-o", tmp_path / "x.npz")
    assert "an .npz file holds one state dict, and there are 3" in ended.stderr
    assert "--only generator" in ended.stderr
    ended = run("fold", FIXTURES / "gan.pt", "-o", tmp_path / "x.npz", "--only", "generator")
    assert ended.returncode == 0
    assert "pre.weight" in loaded(tmp_path / "x.npz")
    ended = run("fold", FIXTURES / "tied.pt", "-o", tmp_path / "t.npz")
    assert "share memory; an .npz file holds a copy of each" in ended.stderr


def test_what_has_no_place_is_said_and_split_asks_for_the_layers(tmp_path: Path, run: Runner) -> None:
    source, folded = FIXTURES / "hifigan.safetensors", tmp_path / "x.npz"
    ended = run("fold", source, "-o", folded)
    assert (
        "left out: the record of changes: an .npz file holds only tensors, so `split` needs --like"
        in ended.stdout
    )
    assert "metadata" not in ended.stdout  # format: pt is safetensors' own
    assert run("split", folded).returncode == 2
    assert output_of(split_file(folded, like=source)) == tmp_path / "x.split.npz"
    assert compare_files(tmp_path / "x.split.npz", folded)
    assert (
        "left out" not in run("fold", FIXTURES / "tied.pt", "--exclude", "*", "-o", tmp_path / "y.npz").stdout
    )
    save_file({"a": torch.ones(2)}, tmp_path / "m.safetensors", metadata={"format": "pt", "epoch": "3"})
    ended = run("fold", tmp_path / "m.safetensors", "-o", tmp_path / "m.npz")
    assert "left out: metadata: an .npz file holds only tensors" in ended.stdout


def test_migrated_and_folded_it_is_the_same_as_folded_at_once(tmp_path: Path) -> None:
    migrate_file(FIXTURES / "arrays.npz", tmp_path / "new.npz")
    one = output_of(fold_file(tmp_path / "new.npz", tmp_path / "one.npz"))
    two = output_of(fold_file(FIXTURES / "arrays.npz", tmp_path / "two.npz", verify=True))
    assert loaded(one).keys() == loaded(two).keys()
    assert all(array.tobytes() == loaded(two)[name].tobytes() for name, array in loaded(one).items())
    as_torch = output_of(fold_file(FIXTURES / "arrays.npz", tmp_path / "x.pt", verify=True))
    assert compare_files(as_torch, two)
    assert torch.load(as_torch)["step"] == 7


def test_a_compressed_archive_is_refused_and_says_how_to_write_it(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(100))
    with pytest.raises(FormatError, match=r"a\.npy is compressed") as caught:
        inspect_file(tmp_path / "x.npz")
    assert "numpy.savez," in caught.value.fix


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_header_is_read(tmp_path: Path, version: tuple[int, int]) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("a.npy", "w") as member:
        np.lib.format.write_array(member, np.ones((2, 3), np.float32), version=version)
    (state,) = open_npz(open_file(tmp_path / "x.npz")).state_dicts
    assert state.tensors["a"].info.shape == (2, 3)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000])
def test_a_name_that_the_archive_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    torch.save({name: torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(OutputError, match="file cannot name an array"):
        fold_file(tmp_path / "x.pt", tmp_path / "x.npz")


def test_an_array_that_would_be_unpacked_outside_of_the_archive_is_neither_written_nor_read(
    tmp_path: Path,
) -> None:
    torch.save({"../b": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(OutputError, match=r"cannot name an array '\.\./b'"):
        fold_file(tmp_path / "x.pt", tmp_path / "x.npz")
    slashed: dict[str, Any] = {"/b": np.zeros(2)}
    np.savez(tmp_path / "y.npz", **slashed)
    with pytest.raises(FormatError, match=r"record /b\.npy would be unpacked outside"):
        inspect_file(tmp_path / "y.npz")


def test_a_name_that_is_not_utf_8_is_the_one_that_numpy_reads(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", aa=np.zeros(2))
    content = (tmp_path / "x.npz").read_bytes().replace(b"aa.npy", b"\xff\xe9.npy")
    (tmp_path / "x.npz").write_bytes(content)
    assert [*loaded(tmp_path / "x.npz")] == ["\xa0Θ"]
    (state,) = open_checkpoint(tmp_path / "x.npz").tree.state_dicts
    assert [entry.name for entry in state.entries] == ["\xa0Θ"]


def test_a_name_that_numpy_would_take_for_another_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "a.npy": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(OutputError, match="cannot name an array 'a'"):
        fold_file(tmp_path / "x.pt", tmp_path / "x.npz")
    torch.save({"": torch.ones(2), "a/b/ü": torch.zeros(2), "c.npy": torch.ones(1)}, tmp_path / "x.pt")
    assert [*loaded(output_of(fold_file(tmp_path / "x.pt", tmp_path / "x.npz", verify=True)))] == [
        "",
        "a/b/ü",
        "c.npy",
    ]
