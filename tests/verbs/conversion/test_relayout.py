"""Files taken to another framework's layout: what it computes of them, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.helpers.golden import FIXTURES
from wnconvert import WnconvertError, fold_file, inspect_file, migrate_file, split_file
from wnconvert.storage.checkpoint import open_checkpoint

FRAMEWORKS = FIXTURES / "frameworks"
State = dict[str, Tensor]


def written(folder: Path, shapes: Mapping[str, Sequence[int]], name: str = "in.npz") -> Path:
    """A file of tensors of these shapes, each with numbers of its own."""
    arrays: dict[str, Any] = {
        key: np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape) + at
        for at, (key, shape) in enumerate(shapes.items())
    }
    np.savez(folder / name, **arrays)
    return folder / name


def loaded(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:
        return dict(arrays)


def in_torch(source: Path, folder: Path, **options: Any) -> State:
    """A file as torch has it."""
    out = folder / f"{source.stem}.torch.pt"
    migrate_file(source, out, to="torch", force=True, **options)
    state: State = torch.load(out, weights_only=True)
    return state


def expected(name: str) -> tuple[Tensor, Tensor]:
    """The input and the output of a framework's model, with channels behind the batch as torch has them."""
    arrays = loaded(FRAMEWORKS / f"{name}.expected.npz")
    given, output = (torch.from_numpy(arrays[key]) for key in ("input", "output"))
    return given.transpose(1, 2), output.transpose(1, 2)


def weight(state: State, module: str) -> Tensor:
    """The weight of a module, computed as torch does where it is a pair."""
    if f"{module}.weight" in state:
        return state[f"{module}.weight"]
    g, v = (state[f"{module}.parametrizations.weight.original{at}"] for at in (0, 1))
    axes = [axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1]
    made: Tensor = v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True))
    return made


def test_torch_computes_what_flax_computed(tmp_path: Path) -> None:
    last, folded = tmp_path / "last.npz", tmp_path / "folded.npz"
    fold_file(FRAMEWORKS / "flax_linen.msgpack", last, layers=["Dense_1/*"], eps=1e-3)  # as its model says
    fold_file(last, folded)
    state = in_torch(folded, tmp_path, verify=True)
    x, y = expected("flax_linen")
    at = "Decoder_0"
    x = functional.conv1d(x, state[f"{at}.Conv_0.weight"], state[f"{at}.Conv_0.bias"], padding=1, groups=2)
    name = f"{at}.ConvTranspose_0"
    x = functional.conv_transpose1d(
        functional.leaky_relu(x), state[f"{name}.weight"], state[f"{name}.bias"], 2, padding=1
    )
    name = f"{at}.ConvTranspose_1"
    x = functional.conv_transpose1d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
    x = functional.layer_norm(
        x.transpose(1, 2), (6,), state["LayerNorm_0.weight"], state["LayerNorm_0.bias"], 1e-6
    )
    for name in ("Dense_0", "Dense_1"):
        x = functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
    torch.testing.assert_close(x.transpose(1, 2), y, rtol=1e-5, atol=1e-5)


def test_torch_computes_what_nnx_computed(tmp_path: Path) -> None:
    for name in ("flax_nnx.msgpack", "flax_nnx.safetensors", "flax_nnx_dots.safetensors"):
        state = in_torch(FRAMEWORKS / name, tmp_path, layout=["conv.*=convolution"])
        assert [*state] == [
            "conv.bias",
            "conv.parametrizations.weight.original0",
            "conv.parametrizations.weight.original1",
            "linear.bias",
            "linear.parametrizations.weight.original0",
            "linear.parametrizations.weight.original1",
        ]
    folded = tmp_path / "folded.npz"  # rows are so short that the eps shows
    fold_file(FRAMEWORKS / "flax_nnx.msgpack", folded)
    state = in_torch(folded, tmp_path, framework="nnx", layout=["conv.*=convolution"])
    x, y = expected("flax_nnx")
    x = functional.leaky_relu(functional.conv1d(x, state["conv.weight"], state["conv.bias"], padding=1))
    made = functional.linear(x.transpose(1, 2), state["linear.weight"], state["linear.bias"])
    torch.testing.assert_close(made.transpose(1, 2), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_folded", [False, True])
def test_torch_computes_what_mlx_computed(is_folded: bool, tmp_path: Path) -> None:
    source, kinds = FRAMEWORKS / "mlx.npz", ["ups.*=transposed", "conv*=convolution"]
    if is_folded:
        fold_file(source, tmp_path / "folded.npz")
        source = tmp_path / "folded.npz"
    state = in_torch(source, tmp_path, framework="mlx", layout=kinds)
    x, y = expected("mlx")
    x = functional.leaky_relu(
        functional.conv1d(x, weight(state, "conv_pre"), state["conv_pre.bias"], padding=1)
    )
    x = functional.conv_transpose1d(x, weight(state, "ups.0"), state["ups.0.bias"], 2)
    made = functional.linear(x.transpose(1, 2), weight(state, "linear"), state["linear.bias"])
    torch.testing.assert_close(made.transpose(1, 2), y, rtol=1e-5, atol=1e-5)


MODEL = {
    "pre.weight": (8, 4, 3),
    "pre.bias": (8,),
    "ups.0.weight": (8, 6, 4),
    "ups.0.bias": (6,),
    "planes.weight": (5, 2, 3, 7),
    "planes.bias": (5,),
    "lin.weight": (5, 9),
    "lin.bias": (5,),
    "norm.weight": (6,),
    "norm.bias": (6,),
    "norm.running_mean": (6,),
    "norm.running_var": (6,),
    "tokens.weight": (11, 3),
    "alpha": (6,),
}
KINDS = ["tokens.*=embedding", "pre.*=convolution"]
IN_FLAX = {
    "params/pre/kernel": (2, 1, 0),
    "params/ups/0/kernel": (2, 0, 1),  # and its first axis backwards
    "params/planes/kernel": (2, 3, 1, 0),
    "params/lin/kernel": (1, 0),
    "params/tokens/embedding": (0, 1),
}
IN_MLX = {
    "pre.weight": (0, 2, 1),
    "ups.0.weight": (1, 2, 0),
    "planes.weight": (0, 2, 3, 1),
    "lin.weight": (0, 1),
    "tokens.weight": (0, 1),
}


@pytest.mark.parametrize(("to", "axes"), [("flax", IN_FLAX), ("nnx", IN_FLAX), ("mlx", IN_MLX)])
def test_there_and_back_gives_the_same_arrays(to: Any, axes: Mapping[str, Any], tmp_path: Path) -> None:
    source, out = written(tmp_path, MODEL), tmp_path / "out.npz"
    migrate_file(source, out, to=to, framework="torch", layout=KINDS)
    first, made = loaded(source), loaded(out)
    kernels = dict(zip(axes, (key for key in first if first[key].ndim > 1), strict=True))
    for key, name in kernels.items():
        array = first[name].transpose(axes[key])
        assert np.array_equal(made[key], array[::-1] if "ups/0" in key else array), key
    kinds = ["ups*=transposed", "pre*=convolution", "planes*=convolution", *KINDS]
    migrate_file(out, tmp_path / "back.npz", to="torch", framework=to, layout=kinds)
    back = loaded(tmp_path / "back.npz")
    assert back.keys() == first.keys()
    assert all(np.array_equal(back[key], first[key]) for key in first)


def test_names_are_those_of_flax(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    migrate_file(written(tmp_path, MODEL), out, to="flax", framework="torch", layout=KINDS)
    assert {*loaded(out)} - IN_FLAX.keys() == {
        *(f"params/{name}/bias" for name in ("pre", "ups/0", "planes", "lin", "norm")),
        "params/norm/scale",
        "batch_stats/norm/mean",
        "batch_stats/norm/var",
        "params/alpha",
    }


@pytest.mark.parametrize("form", ["legacy", "parametrize"])
@pytest.mark.parametrize("to", ["nnx", "mlx"])
def test_pairs_go_there_and_back(form: Any, to: Any, tmp_path: Path) -> None:
    plain = {name: shape for name, shape in MODEL.items() if name.split(".")[0] in ("pre", "lin")}
    source, split, out = written(tmp_path, plain), tmp_path / "split.pt", tmp_path / "out.safetensors"
    split_file(source, split, layers=["*.weight"], dim=0, to=form)
    result = migrate_file(split, out, to=to, layout=KINDS)
    assert [(row.form, row.to) for row in result.plan.layers] == [
        (form, {"nnx": "nnx", "mlx": "legacy"}[to])
    ] * 2
    opened = inspect_file(out)
    assert len(opened.layers) == 2
    assert open_checkpoint(out).tree.metadata == {"format": {"nnx": "flax", "mlx": "mlx"}[to]}
    back = in_torch(out, tmp_path, layout=["pre*=convolution"])
    migrate_file(split, tmp_path / "new.pt", to="parametrize", copy=True)
    first = torch.load(tmp_path / "new.pt", weights_only=True)
    assert {*back} == {*first}
    assert all(torch.equal(back[key], first[key]) for key in first)


#: Shapes beside a bias, with what they are in torch, and what is said of those that nothing tells.
TOLD: dict[str, tuple[Sequence[int], Sequence[int] | None, str]] = {
    "a convolution": ((8, 5, 3), (8,), ""),
    "a convolution, or a transposed one in groups": ((8, 2, 3), (8,), "its bias fits both"),
    "layers that are stacked": ((3, 8, 4), (3, 8), "its bias has 2 axes"),
    "a transposed one": ((4, 8, 3), (8,), ""),
    "a square one": ((8, 8, 3), (8,), "its bias fits both"),
    "a depthwise one": ((8, 1, 3), (8,), "its bias fits both"),
    "a transposed one in groups": ((8, 3, 3), (6,), "a transposed convolution in groups"),
    "one without a bias": ((8, 4, 3), None, "it has no bias"),
    "a linear layer": ((8, 4), (8,), ""),
    "one without its bias": ((8, 4), None, "or an embedding"),
    "a bilinear-like matrix": ((8, 4), (3,), "or an embedding"),
}


@pytest.mark.parametrize("case", TOLD)
def test_what_nothing_tells_is_refused(case: str, tmp_path: Path) -> None:
    shape, bias, says = TOLD[case]
    source = written(tmp_path, {"a.weight": shape, **({} if bias is None else {"a.bias": bias})})
    if not says:
        assert migrate_file(source, tmp_path / "out.npz", to="flax", framework="torch").plan.renamed
        return
    with pytest.raises(WnconvertError, match=re.escape(says)):
        migrate_file(source, tmp_path / "out.npz", to="flax", framework="torch")
    assert not (tmp_path / "out.npz").exists()


def test_what_is_said_must_fit_the_bias(tmp_path: Path) -> None:
    source = written(tmp_path, {"ups.0.weight": (8, 6, 4), "ups.0.bias": (6,)})
    with pytest.raises(
        WnconvertError, match="a convolution layer of 8 outputs, and its bias has 6"
    ) as caught:
        migrate_file(source, tmp_path / "out.npz", to="mlx", framework="torch", layout=["*=convolution"])
    assert "'*=convolution'" in caught.value.fix


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"up/kernel": (3, 4, 8), "up/bias": (8,)}, "nothing tells what it is"),
        ({"ConvTranspose_0/kernel": (3, 8, 8), "ConvTranspose_0/bias": (8,)}, "transpose_kernel"),
        ({"ConvTranspose_0/kernel": (3, 4, 8)}, "transpose_kernel"),
        ({"query/kernel": (16, 4, 4), "query/bias": (4, 4)}, "its bias has 2 axes"),  # heads of attention
        ({"0/kernel": (3, 4, 8), "0/bias": (8,)}, "nothing tells what it is"),
        ({"ScanBlock_0/Conv_0/kernel": (3, 5, 4, 8)}, "layers may be stacked"),
        ({"a/kernel": (3, 4), "pos": (1, 7, 16)}, "pos is no name of a kernel"),
    ],
)
def test_kernels_of_flax_that_no_name_tells_are_refused(
    shapes: Mapping[str, Sequence[int]], says: str, tmp_path: Path
) -> None:
    with pytest.raises(WnconvertError, match=says):
        migrate_file(written(tmp_path, shapes), tmp_path / "out.pt", to="torch")


def test_what_is_said_counts_and_the_first_that_fits(tmp_path: Path) -> None:
    shapes = {"a.weight": (8, 8, 3), "b.weight": (8, 8, 3), "c.weight": (8, 8), "pos": (2, 3)}
    said = ["b*=transposed", "*=convolution", "c.weight=linear", "pos=as-is"]
    migrate_file(written(tmp_path, shapes), tmp_path / "o.npz", to="mlx", framework="torch", layout=said)
    first, made = loaded(tmp_path / "in.npz"), loaded(tmp_path / "o.npz")
    for key, axes in (
        ("a.weight", (0, 2, 1)),
        ("b.weight", (1, 2, 0)),
        ("c.weight", (0, 1)),
        ("pos", (0, 1)),
    ):
        assert np.array_equal(made[key], first[key].transpose(axes))


@pytest.mark.parametrize(
    ("options", "out", "says"),
    [
        ({"to": "flax"}, "out.npz", "nothing in it tells which framework"),
        ({"to": "mlx", "framework": "mlx"}, "out.npz", "the layout of mlx already"),
        ({"to": "mlx", "framework": "torch"}, "out.pt", "mlx does not read torch files"),
        ({"to": "mlx", "framework": "torch", "layers": ["a*"]}, "out.npz", "takes the whole file"),
        ({"to": "legacy", "framework": "mlx"}, "out.npz", "legacy is a form"),
        ({"to": "torch", "layout": ["a=conv"]}, "out.npz", "is not GLOB=KIND"),
        ({"to": "tensorflow"}, "out.npz", "there is no form 'tensorflow'"),
        ({"to": "mlx", "framework": "keras"}, "out.npz", "the layout of 'keras' is not known"),
        ({"to": "mlx", "framework": "torch", "as_folder": True}, "out/", "this is a folder"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], out: str, says: str, tmp_path: Path) -> None:
    source = written(tmp_path, {"a.weight": (8, 4), "a.bias": (8,)})
    with pytest.raises(WnconvertError, match=re.escape(says)):
        migrate_file(source, f"{tmp_path}/{out}", **options)


def test_weight_norm_of_linen_has_no_names_to_be_given(tmp_path: Path) -> None:
    with pytest.raises(WnconvertError, match="numbers its WeightNorm scopes") as caught:
        migrate_file(FRAMEWORKS / "mlx.npz", tmp_path / "out.npz", to="flax", framework="mlx")
    assert "nnx" in caught.value.fix


def test_counts_of_batches_and_the_rest_of_a_torch_file_are_left_out(tmp_path: Path) -> None:
    state = {"bn.weight": torch.ones(3), "bn.bias": torch.ones(3), "bn.num_batches_tracked": torch.tensor(4)}
    torch.save({"net": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "in.pt")
    result = migrate_file(tmp_path / "in.pt", tmp_path / "out.npz", to="flax")
    assert {*loaded(tmp_path / "out.npz")} == {"bn/scale", "bn/bias"}
    assert "num_batches_tracked is left out: flax does not count batches" in result.plan.notes
    assert any("optimizer" in note and "epoch" in note for note in result.plan.notes)


def saved(folder: Path, state: State, name: str = "in.pt") -> Path:
    """A torch file of a state dict."""
    torch.save(state, folder / name)
    return folder / name


def test_a_module_called_as_flax_calls_tensors_is_torchs(tmp_path: Path) -> None:
    state = {
        "embedding.weight": torch.randn(7, 8),
        "kernel.weight": torch.randn(8, 8),
        "kernel.bias": torch.zeros(8),
    }
    source, out = saved(tmp_path, state), tmp_path / "out.npz"
    migrate_file(source, out, to="flax", layout=["embedding.*=embedding"])
    assert np.array_equal(loaded(out)["kernel/kernel"], state["kernel.weight"].T)
    with pytest.raises(WnconvertError, match="nothing in it tells which framework"):
        migrate_file(saved(tmp_path, {"fc.kernel": torch.randn(3, 4)}), tmp_path / "no.npz", to="flax")
    with pytest.raises(WnconvertError, match="kernel is no name of a kernel"):
        migrate_file(tmp_path / "in.pt", tmp_path / "no.npz", to="flax", framework="torch")


def test_what_is_no_plain_tensor_is_said(tmp_path: Path) -> None:
    linear = {"0.weight": torch.randn(4, 3), "0.bias": torch.zeros(4)}
    sparse = {**linear, "fc.weight": torch.randn(4, 3).to_sparse()}
    result = migrate_file(saved(tmp_path, sparse), tmp_path / "out.npz", to="flax")
    assert "left out: fc.weight: no plain tensor" in result.notes
    both = {"generator": linear, "disc": linear, "step": 3}
    torch.save(both, tmp_path / "two.pt")
    result = migrate_file(tmp_path / "two.pt", tmp_path / "two.npz", to="flax", only="generator")
    assert any("disc" in note and "step" in note for note in result.notes)
    assert not any(note.startswith("left out:") for note in result.notes)


def test_g_of_mlx_on_the_first_axis_tells_nothing(tmp_path: Path) -> None:
    pair = {"up.weight_g": (5, 1, 1), "up.weight_v": (5, 3, 6), "up.bias": (5,)}
    source = written(tmp_path, pair)
    with pytest.raises(WnconvertError, match="MLX has the outputs first in both"):
        migrate_file(source, tmp_path / "out.pt", to="torch", framework="mlx")
    state = in_torch(source, tmp_path, framework="mlx", layout=["*=transposed"])
    assert state["up.parametrizations.weight.original1"].shape == (6, 5, 3)


def test_what_shapes_alone_tell_is_named(tmp_path: Path) -> None:
    shapes = {
        "bi.weight": (4, 5, 6),
        "bi.bias": (4,),
        "act.weight": (8,),
        "c.weight": (8, 8),
        "c.bias": (8,),
        "d.weight": (8, 5),
        "d.bias": (8,),
    }
    result = migrate_file(written(tmp_path, shapes), tmp_path / "o.npz", to="flax", framework="torch")
    (note,) = (note for note in result.notes if note.startswith("by their shapes alone"))
    assert "convolution: bi; linear: c (" in note
    assert any("slopes of PReLU look alike: act" in each for each in result.notes)
    assert not any(
        note.startswith("by their shapes alone")
        for note in migrate_file(
            written(tmp_path, {"Dense_0/kernel": (3, 4)}), tmp_path / "o.pt", to="torch"
        ).notes
    )


def test_only_batch_stats_are_statistics(tmp_path: Path) -> None:
    shapes = {"params/head/mean": (3,), "batch_stats/bn/mean": (3,), "params/bn/scale": (3,)}
    state = in_torch(written(tmp_path, shapes), tmp_path, framework="flax")
    assert {*state} == {"head.mean", "bn.running_mean", "bn.weight"}


def test_a_module_called_params_comes_back(tmp_path: Path) -> None:
    state = {"params.fc.weight": torch.randn(4, 3), "params.fc.bias": torch.zeros(4)}
    migrate_file(saved(tmp_path, state), tmp_path / "out.npz", to="flax")
    assert {*loaded(tmp_path / "out.npz")} == {"params/params/fc/kernel", "params/params/fc/bias"}
    assert {*in_torch(tmp_path / "out.npz", tmp_path)} == {*state}


def test_nnx_is_told_of_its_axes_and_of_negative_magnitudes(tmp_path: Path) -> None:
    pair = {"fc.weight_g": torch.tensor(-2.0), "fc.weight_v": torch.randn(4, 3)}
    notes = migrate_file(saved(tmp_path, pair), tmp_path / "out.npz", to="nnx").notes
    assert any("feature_axes" in note and note.endswith(" None") for note in notes)
    assert any("a negative g" in note for note in notes)


@pytest.mark.parametrize("name", ["keras3.npz", "tfa.npz", "equinox.npz", "paddle.pdparams"])
def test_layouts_of_other_frameworks_are_not_guessed(name: str, tmp_path: Path) -> None:
    with pytest.raises(WnconvertError, match="nothing in it tells which framework") as caught:
        migrate_file(FRAMEWORKS / name, tmp_path / "out.pt", to="torch")
    assert "Keras" in caught.value.fix
