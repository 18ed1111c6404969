"""Results as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.infos import new_pair, pair, state_at
from wnconvert import Plan, fold_file
from wnconvert.plan.fold import plan_fold
from wnconvert.reports.tables import bytes_text
from wnconvert.reports.text.conversions import plan_text, result_text
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import Sibling, StateDict, Tree

BIAS = ("bias", (8,), "float32")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_999, "1.0 MB"),
        (1_234_567, "1.2 MB"),
        (999_999_999, "1.0 GB"),
        (2 << 30, "2.1 GB"),
        (5 * 10**12, "5.0 TB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_bytes_are_told_in_decimal_units(count: int, text: str) -> None:
    assert bytes_text(count) == text


def planned(*states: StateDict, container: Container = Container.TORCH_ZIP, dtype: str = "") -> Plan:
    tree = Tree(tuple(states), optimizers=("optim",), siblings=(Sibling("epoch", "int"),))
    return plan_fold(tree, container, dtype=dtype_named(dtype) if dtype else None)


def test_a_plan_is_a_table_of_layers_and_what_would_be_written() -> None:
    flat = [("b.weight_g", (), "float32"), ("b.weight_v", (6,), "float16")]
    assert plan_text(planned(state_at("", *pair("a.weight"), *flat, BIAS)), "out.pt") == (
        "layer     form      dim  shape    dtype      rows\n"
        "--------  ------  -----  -------  -------  ------\n"
        "a.weight  legacy      0  8×4×3    float32       8\n"
        "b.weight  legacy   none  6        float16       1\n"
        "left out: optim: optimizer state is by position, and folding changes the positions;"
        " --keep-optimizer keeps it\n"
        "would write out.pt: 2 layers folded, 1 tensor kept"
    )


def test_the_state_dict_has_a_column_where_there_are_several_with_layers() -> None:
    text = plan_text(planned(state_at("gen", *pair("w")), state_at("disc", *new_pair("v"))), "o")
    assert [line.split()[:3] for line in text.splitlines()[:4:2]] == [
        ["state", "dict", "layer"],
        ["gen", "w", "legacy"],
    ]
    one = plan_text(planned(state_at("gen", *pair("w")), state_at("ema", BIAS)), "o")
    assert one.startswith("layer ")


def test_no_layers_give_no_table() -> None:
    assert plan_text(planned(state_at("", BIAS)), "o") == "would write o: 0 layers folded, 1 tensor kept"


def test_casts_are_counted_beside_what_is_kept() -> None:
    ints = ("n", (2,), "int64")
    for tensors, says in (
        ([*pair("w"), BIAS, ints], "1 layer folded, 1 tensor cast, 1 tensor kept"),
        ([*pair("w"), BIAS], "1 layer folded, 1 tensor cast"),
        ([*pair("w"), ints], "1 layer folded, 1 tensor kept"),
        (pair("w"), "1 layer folded, 0 tensors kept"),
    ):
        assert says in plan_text(planned(state_at("", *tensors), dtype="float16"), "o").splitlines()[-1]


def test_what_is_left_out_is_grouped_by_its_reason() -> None:
    text = plan_text(
        planned(state_at("gen", *pair("w")), state_at("ema", BIAS), container=Container.SAFETENSORS), "o"
    )
    assert text.splitlines()[-2] == "left out: ema, optim, epoch: only gen is kept"


def test_the_root_state_dict_has_a_name_too() -> None:
    inner, root = state_at("model", *pair("w")), state_at("", BIAS)
    text = plan_text(planned(root, inner, container=Container.SAFETENSORS), "o")
    assert text.splitlines()[-2] == "left out: optim, epoch, bias: only model is kept"


def test_of_many_layers_the_first_are_shown_and_the_others_counted() -> None:
    """A line is not left out where it would say no more than the layer itself."""

    def lines(layers: int, most: int | None) -> list[str]:
        pairs = [half for at in range(layers) for half in pair(f"{at}.weight")]
        return plan_text(planned(state_at("", *pairs)), "o", most).splitlines()

    short = lines(78, 5)
    assert [line.split()[0] for line in short[2:7]] == [f"{at}.weight" for at in range(5)]
    assert short[7] == "… 73 more (--list)"
    assert short[-1] == "would write o: 78 layers folded, 0 tensors kept"
    assert "more (--list)" not in "".join([*lines(78, None), *lines(5, 5), *lines(6, 5)])
    assert "… 2 more (--list)" in lines(7, 5)


def test_control_characters_of_names_are_spelled_out() -> None:
    text = plan_text(planned(state_at("a\x1b[2J", *pair("w\r\n\x07"))), "o")
    assert "w\\r\\n\\x07" in text
    assert not any(char < " " and char != "\n" for char in text)


def test_a_result_tells_counts_bytes_and_time(tmp_path: Path) -> None:
    source, out = FIXTURES / "hifigan.safetensors", tmp_path / "out.safetensors"
    result = fold_file(source, out, verify=True)
    sizes = f"{bytes_text(source.stat().st_size)} in, {bytes_text(out.stat().st_size)} out"
    *table, verified, counts = result_text(result).splitlines()
    assert len(table) == 2 + 78
    assert counts.startswith(f"{out}: 78 layers folded, 78 tensors kept; {sizes}, in ")
    assert verified == "read back and recomputed by the safetensors library"
    assert (result.bytes_in, result.bytes_out) == (source.stat().st_size, out.stat().st_size)
