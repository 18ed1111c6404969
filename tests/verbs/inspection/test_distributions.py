"""The rows of a layer in short: counts held against numpy's, rows against a plain loop."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.golden import FIXTURES
from wnconvert.verbs.inspection.distributions import distribution_of, row_places
from wnconvert.verbs.inspection.inspect import inspect_file, inspect_state_dict


@given(st.lists(st.floats(0, 1.7e308), min_size=1, max_size=200))
def test_every_value_is_in_one_step_or_among_the_zeros(values: list[float]) -> None:
    found = distribution_of(np.sort(np.array(values)))
    positive = [value for value in values if value > 0]
    if found is None:
        assert not positive
        return
    assert (found.least, found.greatest) == (min(positive), max(positive))
    assert sum(found.counts) == len(positive)
    assert found.zeros == len(values) - len(positive)


def test_the_counts_are_those_of_numpy_on_the_logarithms() -> None:
    values = np.exp(np.random.default_rng(5).standard_normal(5000))
    found = distribution_of(np.sort(values))
    assert found is not None
    counts, _ = np.histogram(np.log(values), 24, (math.log(found.least), math.log(found.greatest)))
    assert list(found.counts) == counts.tolist()


def test_equal_values_are_one_step_and_zeros_alone_none() -> None:
    found = distribution_of(np.full(7, 2.5))
    assert found is not None
    assert found.counts == (7,)
    assert distribution_of(np.zeros(3)) is None
    assert distribution_of(np.zeros(0)) is None


@given(st.lists(st.booleans(), max_size=600), st.integers(1, 50))
def test_ranges_hold_the_rows_that_are_true_whatever_the_windows(mask: list[bool], window: int) -> None:
    parts = [(at, np.array(mask[at : at + window], bool)) for at in range(0, len(mask), window)]
    found = row_places(parts)
    rows = [at for at, is_true in enumerate(mask) if is_true]
    assert found.count == len(rows)
    held = [row for first, last in found.ranges for row in range(first, last + 1)]
    assert held == rows[: len(held)]
    assert found.is_whole == (held == rows)
    assert len(found.ranges) == 64 or found.is_whole


def test_more_ranges_than_are_kept_are_counted() -> None:
    found = row_places([(0, np.arange(1000) % 2 == 0)])
    assert found.count == 500
    assert len(found.ranges) == 64
    assert not found.is_whole


def test_the_details_name_rows_of_each_kind() -> None:
    g = np.ones((9, 1), np.float32)
    g[[1, 3]], g[4], g[6] = -1, 0, np.nan
    v = np.ones((9, 2), np.float32)
    v[[7, 8]] = 0
    details = inspect_state_dict({"a.weight_g": g, "a.weight_v": v}, full=True).layers[0].details
    assert details is not None
    assert details.negative.ranges == ((1, 1), (3, 3))
    assert details.zero.ranges == ((4, 4),)
    assert details.nonfinite.ranges == ((6, 6),)
    assert details.dead.ranges == ((7, 8),)


def test_a_layer_without_flags_has_no_places_and_one_that_was_not_read_no_details() -> None:
    for full in (False, True):
        for layer in inspect_file(FIXTURES / "hifigan.safetensors", full=full).layers:
            details = layer.details
            assert (details is not None) == full
            if details is not None:
                assert not any(
                    each.count for each in (details.negative, details.zero, details.dead, details.nonfinite)
                )


@pytest.mark.parametrize("name", ["g_02500000", "tcn.onnx"])
def test_the_sha256_of_a_file_is_told_when_it_is_asked_for(name: str) -> None:
    digest = hashlib.sha256((FIXTURES / name).read_bytes()).hexdigest()
    assert inspect_file(FIXTURES / name, sha256=True).sha256 == digest
    assert inspect_file(FIXTURES / name).sha256 == ""


def test_the_sha256_of_a_folder_is_that_of_the_list_of_its_files() -> None:
    folder = FIXTURES / "sharded"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
    )
    assert inspect_file(folder, sha256=True).sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_file_that_cannot_be_inspected_ends_the_hashing_with_its_own_error(tmp_path: Path) -> None:
    from wnconvert.errors import InputError
    from wnconvert.verbs.shared.digests import sha256_beside

    with pytest.raises(InputError, match="of the body"), sha256_beside(FIXTURES / "g_02500000"):
        raise InputError("of the body")
    with pytest.raises(InputError, match="no such file"):
        inspect_file(tmp_path / "none.pt", sha256=True)
