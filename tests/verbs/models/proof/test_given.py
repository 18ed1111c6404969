"""Values that the user gives: fixed, tied, ranges, files; and samples of the user's beside drawn ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wnconvert.errors import ArgumentError, InputError, WnconvertError
from wnconvert.tensors.blocks import Array
from wnconvert.verbs.models.proof.inputs.texts import parse_input
from wnconvert.verbs.models.proof.proof import prove
from wnconvert.verbs.models.proof.samples import arrays, export_arrays, samples_of
from wnconvert.verbs.models.proof.signatures import signature_of

MEL = "mel=float32[1,4,T]"


def drawn(*inputs: str, ranges: tuple[str, ...] = ()) -> list[dict[str, Array]]:
    signature = signature_of(inputs, ranges)
    return [arrays(signature, sample) for sample in samples_of(signature)]


def test_fixed_values_are_the_same_in_each_sample_and_in_the_export() -> None:
    signature = signature_of(["scales=float32[3]=0,1,0.5", "x=float32[2]"])
    for feeds in (*(arrays(signature, each) for each in samples_of(signature)), export_arrays(signature)):
        assert feeds["scales"].dtype == np.float32
        assert feeds["scales"].tolist() == [0, 1, 0.5]
    others = [arrays(signature, each)["x"].tolist() for each in samples_of(signature)]
    assert len({tuple(each) for each in others}) == 4  # what is not fixed is drawn
    assert any("scales" in note and "proven for that alone" in note for note in signature.notes)


def test_one_value_fills_an_input_of_any_size() -> None:
    for feeds in drawn("mask=float32[1,T]=1", "x=float32[1,T]", ranges=("T=2..9",)):
        assert feeds["mask"].shape == feeds["x"].shape
        assert (feeds["mask"] == 1).all()


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32"])
def test_a_letter_ties_an_input_to_a_size(dtype: str) -> None:
    lengths = [
        feeds["lengths"] for feeds in drawn(f"lengths={dtype}[1]=L", "x=float32[1,L]", ranges=("L=3..9",))
    ]
    assert [int(each[0]) for each in lengths][:2] == [3, 9]
    assert {each.dtype.name for each in lengths} == {dtype}


def test_a_range_of_floats_is_kept_and_one_of_integers_has_both_ends() -> None:
    feeds = drawn("x=float32[100]=0.25..0.5", "n=int64[100]=-1..1", "z=float32[100]")
    for each in feeds:
        assert 0.25 <= each["x"].min() < each["x"].max() <= 0.5
        assert set(each["n"].tolist()) == {-1, 0, 1}
        assert each["z"].min() < -0.25  # without a range: standard normal
    assert feeds[0]["x"].tolist() != feeds[1]["x"].tolist()


@pytest.mark.parametrize(
    "text", ["s=float32[3]=0.0,1.0,0.5", "n=int64[1]=L", "x=float32[L]=0.0..1.0", "b=bool[]=1"]
)
def test_a_text_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_input(text)) == text
    assert str(parse_input(str(parse_input(text)))) == text


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (["s=float31[3]=0,1,0"], "no dtype is called float31"),
        (["s=float32[3]=0,1"], "2 values do not fit the shape [3]"),
        (["s=float32[1,L]=0,1", "x=float32[L]"], "2 values do not fit the shape [1,L]"),
        (["s=int64[1]=L", "x=float32[T]"], "no input has the size L"),
        (["s=int8[1]=L", "x=float32[L]"], None),
        (["s=int64[1]=0.5"], "'0.5' is not a number of int64"),
        (["s=int8[1]=200"], "'200' is not a number of int8"),
        (["s=float16[1]=70000"], "'70000' is not a number of float16"),
        (["s=bool[1]=2"], "'2' is not a number of bool"),
        (["s=float32[1]=1..0"], "1..0 is not a range"),
        (["s=float32[1]="], "an input is written"),
        (["s=int64[1]<3=1"], "a bound and values are given"),
        (["s=@"], "the file of an example is written"),
        (["s=int64[1]"], "integers need a bound"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(inputs: list[str], says: str | None) -> None:
    if says is None:  # a decoy: the default range ends at 128, past int8; up to 127 it fits
        with pytest.raises(ArgumentError, match="ends at 127"):
            signature_of(inputs)
        assert signature_of(inputs, ["L=1..127"]).names == ("s", "x")
        return
    with pytest.raises(ArgumentError) as caught:
        signature_of(inputs)
    assert says in caught.value.what
    assert caught.value.fix


# -- examples and data


def test_an_example_is_a_sample_beside_the_drawn_ones() -> None:
    mel = torch.randn(1, 4, 7)
    signature = signature_of({"mel": mel}, ["T=5..20"], dynamic={"mel": {2: "T"}})
    samples = samples_of(signature)
    assert [sample.source for sample in samples] == ["", "", "", "", "the example"]
    assert arrays(signature, samples[-1])["mel"].tolist() == mel.numpy().tolist()
    assert arrays(signature, samples[0])["mel"].shape == (1, 4, 5)


@pytest.mark.parametrize("text", ["mel=@{}", "mel=float32[1,4,T]=@{}", "mel:x=@{}"])
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_a_file_gives_an_example(text: str, suffix: str, tmp_path: Path) -> None:
    mel, path = np.ones((1, 4, 7), np.float32), tmp_path / f"real.{suffix}"
    np.savez(path, mel=mel) if suffix == "npz" else np.save(path, mel)
    signature = signature_of([text.format(path)])
    assert export_arrays(signature)["mel"].tolist() == mel.tolist()
    assert arrays(signature, samples_of(signature)[-1])["mel"].tolist() == mel.tolist()
    assert signature.inputs[0].shape == ((1, 4, "T") if "T" in text else (1, 4, 7))


def test_data_are_samples_behind_the_drawn_ones(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, mel=np.full((1, 4, 9), 2, np.float32))
    own = {"mel": torch.full((1, 4, 11), 3.0)}
    signature = signature_of([MEL, "lengths=int64[1]=T"], ["T=5..20"], data=[path, own])
    *before, first, second = samples_of(signature)
    assert [sample.source for sample in before] == [""] * 4
    assert (first.source, second.source) == (str(path), "data 2")
    feeds = arrays(signature, first)
    assert (feeds["mel"].shape, feeds["mel"].max(), feeds["lengths"].tolist()) == ((1, 4, 9), 2, [9])
    assert arrays(signature, second)["lengths"].tolist() == [11]


def test_what_is_wrong_on_the_users_data_alone_is_found_and_named(tmp_path: Path) -> None:
    np.save(tmp_path / "loud.npy", np.full((1, 4, 9), 50, np.float32))
    signature = signature_of([MEL], ["T=5..20"], data=[tmp_path / "loud.npy"])

    def clipped(feeds: Any) -> dict[str, Array]:
        return {"y": np.minimum(feeds["mel"], 20)}

    proof = prove(lambda feeds: {"y": feeds["mel"]}, clipped, signature, samples=samples_of(signature))
    assert not proof
    worst = proof.outputs[0].worst
    assert worst is not None
    assert worst.source == str(tmp_path / "loud.npy")
    alone = signature_of([MEL], ["T=5..20"])
    assert prove(lambda feeds: {"y": feeds["mel"]}, clipped, alone, samples=samples_of(alone))


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def test_files_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = np.zeros((1, 4, 9), np.float32)
    files = {
        "other": ({"mels": right}, "no input is called mels"),
        "more": ({"mel": right, "ids": right}, "no input is called ids"),
        "empty": ({}, "the input mel is lacking"),
        "objects": ({"mel": np.array([_Evil()], object)}, "Python objects are not unpickled"),
        "double": (
            {"mel": right.astype(np.float64)},
            "mel is float64[1,4,9], and the input is",
        ),
        "rank": ({"mel": right[0]}, "mel is float32[4,9]"),
        "channels": ({"mel": right[:, :3]}, "mel is float32[1,3,9]"),
        "long": ({"mel": np.zeros((1, 4, 900), np.float32)}, "T is 900, and the range is 5..20"),
    }
    for name, (held, says) in files.items():
        path = tmp_path / f"{name}.npz"
        np.savez(path, **held)
        with pytest.raises(WnconvertError) as caught:
            signature_of([MEL], ["T=5..20"], data=[path])
        assert says in str(caught.value), name
        assert caught.value.fix
    assert "unpickled" not in capsys.readouterr().out
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "long.npz").read_bytes()[:200])
    for name in ("text.npz", "cut.npz", "absent.npz"):
        with pytest.raises(InputError) as told:
            signature_of([MEL], ["T=5..20"], data=[tmp_path / name])
        assert name in str(told.value)
    with pytest.raises(ArgumentError, match="no input is called mels"):
        signature_of([MEL], ["T=5..20"], data=[{"mels": right}])
    np.save(tmp_path / "one.npy", right)
    with pytest.raises(InputError, match="one array"):
        signature_of([MEL, "x=float32[1]"], ["T=5..20"], data=[tmp_path / "one.npy"])
