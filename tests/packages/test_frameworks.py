"""What `migrate --to` writes, loaded into flax and MLX: they compute what torch computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from wnconvert import fold_file, migrate_file


class Decoder(nn.Module):
    """A convolution, a transposed one, one in groups and a linear layer, all with weight norm."""

    def __init__(self) -> None:
        super().__init__()
        norm = parametrizations.weight_norm
        self.pre = norm(nn.Conv1d(4, 8, 3, padding=1))
        self.up = norm(nn.ConvTranspose1d(8, 6, 4, 2, padding=1))
        self.group = norm(nn.Conv1d(6, 4, 3, padding=1, groups=2))
        self.linear = norm(nn.Linear(4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.group(self.up(self.pre(x))).transpose(1, 2)
        made: torch.Tensor = self.linear(x)
        return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """The model's file, an input (batch, time, channels) and its output."""
    torch.manual_seed(0)
    model, path = Decoder(), tmp_path_factory.mktemp("frameworks") / "decoder.pt"
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter)
        if name.endswith("original0"):
            parameter.data.abs_()  # nnx turns the rows of a negative g round at every call: findings/
    torch.save(model.state_dict(), path)
    x = torch.randn(2, 4, 7)
    with torch.no_grad():
        return path, x.transpose(1, 2).numpy(), model(x).numpy()


def close(made: Any, y: Any) -> None:
    np.testing.assert_allclose(np.asarray(made), y, rtol=1e-4, atol=1e-5)


def test_flax_computes_what_torch_computes(saved: tuple[Path, Any, Any], tmp_path: Path) -> None:
    import flax.linen as fnn
    from flax.traverse_util import unflatten_dict

    class Linen(fnn.Module):
        @fnn.compact
        def __call__(self, x: Any) -> Any:
            x = fnn.Conv(8, (3,), name="pre")(x)
            x = fnn.ConvTranspose(6, (4,), strides=(2,), padding=((2, 2),), name="up")(x)
            x = fnn.Conv(4, (3,), feature_group_count=2, name="group")(x)
            return fnn.Dense(5, name="linear")(x)

    path, x, y = saved
    fold_file(path, tmp_path / "folded.pt")
    asked: Any = {"framework": "torch", "layout": ["pre.*=convolution"]}  # a folded file does not tell them
    migrate_file(tmp_path / "folded.pt", tmp_path / "out.npz", to="flax", **asked)
    with np.load(tmp_path / "out.npz") as arrays:
        params = unflatten_dict(dict(arrays), sep="/")
    close(Linen().apply({"params": params}, x), y)


def test_nnx_computes_what_torch_computes(saved: tuple[Path, Any, Any], tmp_path: Path) -> None:
    import jax.numpy as jnp
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            def norm(layer: Any, **options: Any) -> Any:
                return nnx.WeightNorm(layer, rngs=rngs, **options)

            self.pre = norm(nnx.Conv(4, 8, (3,), rngs=rngs))
            up = nnx.ConvTranspose(8, 6, (4,), strides=(2,), padding=((2, 2),), rngs=rngs)
            self.up = norm(up, feature_axes=-2)
            self.group = norm(nnx.Conv(6, 4, (3,), feature_group_count=2, rngs=rngs))
            self.linear = norm(nnx.Linear(4, 5, rngs=rngs))

        def __call__(self, x: Any) -> Any:
            return self.linear(self.group(self.up(self.pre(x))))

    path, x, y = saved
    result = migrate_file(path, tmp_path / "out.npz", to="nnx", layout=["pre.*=convolution"])
    assert any("feature_axes: up/layer_instance/kernel -2" in note for note in result.plan.notes)
    model = Model(nnx.Rngs(0))
    with np.load(tmp_path / "out.npz") as arrays:
        for name, array in arrays.items():
            module, *rest = name.split("/")
            wrapper = getattr(model, module)
            if rest[0] == "scales":
                wrapper.scales[("kernel",)] = jnp.asarray(array)
            else:
                getattr(wrapper.layer_instance, rest[1])[...] = jnp.asarray(array)
    close(model(x), y)


@pytest.mark.parametrize("is_folded", [False, True])
def test_mlx_computes_what_torch_computes(
    is_folded: bool, saved: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    import mlx.core as mx

    path, x, y = saved
    if is_folded:
        fold_file(path, tmp_path / "folded.pt")
        path = tmp_path / "folded.pt"
    migrate_file(
        path, tmp_path / "out.safetensors", to="mlx", framework="torch", layout=["pre.*=convolution"]
    )
    arrays: Any = mx.load(str(tmp_path / "out.safetensors"))

    def weight(module: str) -> Any:
        if is_folded:
            return arrays[f"{module}.weight"]
        g, v = arrays[f"{module}.weight_g"], arrays[f"{module}.weight_v"]
        axes = [axis for axis in range(v.ndim) if g.shape[axis] == 1]
        return v * (g / mx.linalg.norm(v, axis=axes, keepdims=True))

    made = mx.conv1d(mx.array(x), weight("pre"), padding=1) + arrays["pre.bias"]
    made = mx.conv_transpose1d(made, weight("up"), stride=2, padding=1) + arrays["up.bias"]
    made = mx.conv1d(made, weight("group"), padding=1, groups=2) + arrays["group.bias"]
    close(made @ weight("linear").T + arrays["linear.bias"], y)
