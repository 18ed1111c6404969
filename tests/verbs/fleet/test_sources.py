"""Names, patterns and folders become sources; two sources that would write one output are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.golden import FIXTURES
from wnconvert.errors import ArgumentError, InputError, OutputError, WnconvertError
from wnconvert.verbs.fleet.files import fold_files
from wnconvert.verbs.fleet.jobs import jobs_of
from wnconvert.verbs.fleet.sources import natural, sources_of

CHECKPOINT = FIXTURES / "sovits.pth"


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKPOINT, folder / name)


def found(*names: Path | str, recursive: bool = False) -> list[str]:
    return [source.path.name for source in sources_of(names, recursive=recursive)]


# -- names


def test_names_are_sorted_as_people_count() -> None:
    assert sorted(["s_10.pt", "s_9.pt", "s_09b.pt", "10", "a"], key=natural)[:1] == ["10"]
    assert sorted(["s_10000", "s_2000", "s_300"], key=natural) == ["s_300", "s_2000", "s_10000"]


def test_a_pattern_stands_for_files_at_any_depth_and_hidden_ones_are_left(tmp_path: Path) -> None:
    put(tmp_path, "a.pt", "x/b.pt", "x/y/c.pt", ".git/d.pt", "x/e.pth", "x/.f.pt")
    assert found(tmp_path / "*.pt") == ["a.pt"]
    assert found(tmp_path / "**" / "*.pt") == ["a.pt", "b.pt", "c.pt"]
    assert found(tmp_path / "*" / "b.p[t]") == ["b.pt"]
    assert found(tmp_path / "x" / ".f*") == [".f.pt"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    put(tmp_path, "a[1].pt", "a1.pt")
    assert found(tmp_path / "a[1].pt") == ["a[1].pt"]
    (tmp_path / "a[1].pt").unlink()
    assert found(tmp_path / "a[1].pt") == ["a1.pt"]


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file has such a name"):
        found(tmp_path / "*.pt")
    with pytest.raises(ArgumentError, match="stdin"):
        found("-", tmp_path)


def test_a_source_that_is_named_twice_is_one(tmp_path: Path) -> None:
    put(tmp_path, "a.pt")
    assert found(tmp_path / "a.pt", tmp_path / "*.pt", tmp_path / "." / "a.pt") == ["a.pt"]


# -- folders


def test_a_folder_means_the_checkpoints_in_it_and_other_files_are_none(tmp_path: Path) -> None:
    put(tmp_path, "run/g_100", "run/deep/x.pt")
    (tmp_path / "run" / "train.log").write_text("loss 1")
    (tmp_path / "run" / "README").write_text("a name without a suffix, and no checkpoint")
    (tmp_path / "run" / "cut.pt").write_bytes(b"")  # one by its name: its error is told
    assert found(tmp_path, recursive=True) == ["cut.pt", "x.pt", "g_100"]


def test_a_folder_that_is_a_checkpoint_is_one_source(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "sharded", tmp_path / "hub")
    shutil.copytree(FIXTURES / "distributed", tmp_path / "steps" / "1")
    put(tmp_path, "plain/a.pt", "plain/b.pt")
    assert found(tmp_path, recursive=True) == ["hub", "a.pt", "b.pt", "1"]


def test_a_folder_without_checkpoints_is_an_error_and_links_do_not_lead_round(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    with pytest.raises(InputError, match="no checkpoint in it"):
        found(tmp_path, recursive=True)
    put(tmp_path, "a/x.pt")
    assert found(tmp_path, recursive=True) == ["x.pt"]


def test_what_lies_in_the_output_is_not_found(tmp_path: Path) -> None:
    put(tmp_path, "a.pt", "out/b.pt")
    (source,) = sources_of([tmp_path], recursive=True, out=tmp_path / "out")
    assert source.path.name == "a.pt"
    assert found(tmp_path / "out" / "b.pt") == ["b.pt"]


# -- outputs


def outputs(folder: Path, *names: str | Path, out: Path | None = None, **options: bool) -> list[str]:
    recursive = options.pop("recursive", False)
    sources = sources_of([folder / name for name in names], recursive=recursive, out=out)
    jobs, _ = jobs_of("fold", sources, out, options)
    return [str(Path(job.output or "in place").relative_to(folder)) for job in jobs if job.output]


def test_outputs_keep_the_tree_below_the_common_root(tmp_path: Path) -> None:
    put(tmp_path, "runs/a/x.pt", "runs/b/x.pt", "runs/b/deep/y.pt")
    out = tmp_path / "out"
    assert outputs(tmp_path, "runs", out=out, recursive=True) == [
        "out/a/x.folded.pt", "out/b/deep/y.folded.pt", "out/b/x.folded.pt",
    ]  # fmt: skip
    assert outputs(tmp_path, "runs/**/x.pt", out=out) == ["out/a/x.folded.pt", "out/b/x.folded.pt"]
    both = ["runs/a/x.pt", "runs/b/x.pt"]
    assert outputs(tmp_path, *both, out=out) == ["out/a/x.folded.pt", "out/b/x.folded.pt"]
    assert outputs(tmp_path, "runs/a/x.pt", out=out) == ["out/x.folded.pt"]
    assert outputs(tmp_path, "runs/a/x.pt", "runs/b/x.pt") == ["runs/a/x.folded.pt", "runs/b/x.folded.pt"]


def test_the_place_of_an_output_does_not_depend_on_what_else_matches(tmp_path: Path) -> None:
    put(tmp_path, "runs/a/x.pt")
    alone = outputs(tmp_path, "runs/**/*.pt", out=tmp_path / "out")
    put(tmp_path, "runs/b/y.pt")
    assert alone == ["out/a/x.folded.pt"]
    assert outputs(tmp_path, "runs/**/*.pt", out=tmp_path / "out")[:1] == alone


def test_two_sources_that_would_write_one_output_are_refused_before_anything_starts(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "program.pt2", tmp_path / "x.pt2")
    put(tmp_path, "x.pt", "other.pt")
    with pytest.raises(OutputError, match=r"x\.folded\.pt: of .*x\.pt, .*x\.pt2") as caught:
        fold_files([tmp_path], recursive=True, jobs=1)
    assert caught.value.fix
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.pt", "x.pt", "x.pt2"]
    assert len(outputs(tmp_path, "x.pt", "other.pt")) == 2


def test_an_output_of_an_earlier_run_is_no_source(tmp_path: Path) -> None:
    put(tmp_path, "a.pt", "a.folded.pt", "b.folded.pt")
    jobs, notes = jobs_of("fold", sources_of([tmp_path / "*.pt"]), None, {})
    assert [Path(job.source).name for job in jobs] == ["a.pt", "b.folded.pt"]
    assert len(notes) == 1
    assert "a.folded.pt" in notes[0]
    assert len(jobs_of("inspect", sources_of([tmp_path / "*.pt"]), None, {})[0]) == 3


@pytest.mark.parametrize(
    ("out", "options", "says"),
    [
        ("out.safetensors", {}, "is one file, and there are many"),
        ("a.pt", {}, "is one file, and there are many"),
        ("out", {"in_place": True}, "--in-place writes over the sources"),
        (None, {"in_place": True, "skip_existing": True}, "--skip-existing keeps"),
        (None, {"jobs": 0}, "jobs cannot work"),
        (None, {"dtypes": "fp16"}, "fold_files has no option dtypes"),
        (None, {"cluster": "tcp://x", "jobs": 2}, "the scheduler knows"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(
    out: str | None, options: dict[str, object], says: str, tmp_path: Path
) -> None:
    put(tmp_path, "a.pt", "b.pt")
    with pytest.raises(WnconvertError, match=says):
        fold_files([tmp_path / "*.pt"], None if out is None else tmp_path / out, **options)  # type: ignore[arg-type]
    assert len([*tmp_path.iterdir()]) == 2
