"""Which axis a magnitude belongs to: every shape of g that is met, and those that fit nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wnconvert.errors import LayerError
from wnconvert.layers.dims import dim_of
from wnconvert.tensors.tree import rows_of

Shape = tuple[int, ...]

#: g, v and the dim that is read: each row of the shapes met in the wild.
MET: list[tuple[str, Shape, Shape, int | None]] = [
    ("conv1d", (512, 1, 1), (512, 80, 7), 0),
    ("conv2d", (32, 1, 1, 1), (32, 1, 5, 1), 0),
    ("conv3d", (8, 1, 1, 1, 1), (8, 4, 3, 3, 3), 0),
    ("linear", (30, 1), (30, 20), 0),
    ("LSTM rows", (32, 1), (32, 8), 0),
    ("ConvTranspose, in_channels first", (512, 1, 1), (512, 256, 16), 0),
    ("square", (8, 1), (8, 8), 0),
    ("wav2vec2 positional", (1, 1, 128), (1024, 64, 128), 2),
    ("fairseq ConvTBC", (1, 1, 16), (3, 8, 16), 2),
    ("dim 1", (1, 20, 1), (16, 20, 3), 1),
    ("dim None, or torch's -1", (), (30, 20), None),
    ("old gists", (1,), (30, 20), None),
    ("one element of a lower rank", (1, 1), (30, 20, 3), None),
    ("squeezed", (12,), (12, 6, 3), 0),
    ("squeezed, another axis", (6,), (12, 6, 3), 1),
    ("a 1-D weight", (12,), (12,), 0),
    ("all ones, out_channels 1", (1, 1, 1), (1, 32, 7), 0),
    ("all ones, an input channel", (1, 1, 1), (8, 1, 7), None),
    ("all ones, no axis of size 1", (1, 1), (8, 4), None),
    ("all ones twice", (1, 1, 1), (1, 1, 1), 0),
    ("scalars", (), (), None),
    ("one element", (1,), (1,), 0),
    ("no rows", (0, 1, 1), (0, 4, 3), 0),
]

MISFITS: list[tuple[str, Shape, Shape]] = [
    ("another length", (12,), (16, 8, 3)),
    ("another length, same rank", (12, 1, 1), (16, 8, 3)),
    ("the length of another axis", (8, 1, 1), (16, 8, 3)),
    ("two axes", (16, 8, 1), (16, 8, 3)),
    ("as large as v", (16, 8, 3), (16, 8, 3)),
    ("another rank", (16, 1), (16, 8, 3)),
    ("a higher rank", (16, 1, 1, 1), (16, 8, 3)),
    ("v is one number", (3,), ()),
    ("no element", (0,), (16, 8, 3)),
]


@pytest.mark.parametrize(("g", "v", "dim"), [row[1:] for row in MET], ids=[row[0] for row in MET])
def test_dim_is_read_from_the_shape_of_g(g: Shape, v: Shape, dim: int | None) -> None:
    fit = dim_of(g, v)
    assert fit.dim == dim
    assert fit.note == ""


@pytest.mark.parametrize(("g", "v"), [row[1:] for row in MISFITS], ids=[row[0] for row in MISFITS])
def test_a_g_that_fits_no_axis_is_refused_with_both_shapes(g: Shape, v: Shape) -> None:
    with pytest.raises(LayerError) as caught:
        dim_of(g, v)
    assert caught.value.lines == [f"g {g} does not fit v {v}"]
    assert caught.value.fix


def test_a_flat_g_that_fits_several_axes_but_none_of_the_usual_is_refused_and_the_option_said() -> None:
    with pytest.raises(LayerError, match=r"g \(8,\) fits several axes of v \(16, 8, 8\)") as caught:
        dim_of((8,), (16, 8, 8))
    assert caught.value.fix == "--dim N says which"
    assert dim_of((8,), (16, 8, 8), axes=(-1,)).dim == 2
    assert dim_of((8,), (8, 8, 4), axes=(-1, -2)).dim == 1


def test_a_flat_g_that_fits_several_axes_takes_the_first_and_says_so() -> None:
    fit = dim_of((16,), (16, 16, 3))
    assert fit.dim == 0
    assert "(16,)" in fit.note
    assert "(16, 16, 3)" in fit.note
    assert "--dim" in fit.note


def test_a_flat_g_with_a_given_dim_is_no_guess() -> None:
    fit = dim_of((16,), (16, 16, 3), 1)
    assert (fit.dim, fit.note) == (1, "")


@pytest.mark.parametrize(
    ("g", "v", "given_dim", "dim"),
    [
        ((16, 1, 1), (16, 8, 3), 0, 0),
        ((1, 1, 3), (16, 8, 3), 2, 2),
        ((1, 8, 1), (16, 8, 3), -2, 1),  # an ordinary axis, counted from the end
        ((16, 1, 1), (16, 8, 3), -3, 0),
        ((), (16, 8), None, None),
        ((), (16, 8), -1, None),  # torch's own reading of -1: the whole tensor
        ((1, 1), (16, 8), -1, None),
        ((1, 1, 1), (8, 1, 3), 1, 1),
        ((), (1, 8), 0, 0),
    ],
)
def test_a_given_dim_that_fits_is_taken(g: Shape, v: Shape, given_dim: int | None, dim: int | None) -> None:
    assert dim_of(g, v, given_dim).dim == dim


@pytest.mark.parametrize(
    ("g", "v", "given_dim", "says"),
    [
        ((16, 1, 1), (16, 8, 3), 1, "along --dim 1"),
        ((16, 1, 1), (16, 8, 3), -2, "along --dim -2"),
        ((16, 1, 1), (16, 8, 3), None, "over the whole tensor"),
        ((1, 1, 3), (16, 8, 3), -1, "over the whole tensor"),  # not the last axis
        ((), (16, 8), 0, "along --dim 0"),
        ((16, 1, 1), (16, 8, 3), 3, "has no axis 3"),
        ((16, 1, 1), (16, 8, 3), -4, "has no axis -4"),
        ((), (), 0, "has no axis 0"),
    ],
)
def test_a_given_dim_that_does_not_fit_is_refused(
    g: Shape, v: Shape, given_dim: int | None, says: str
) -> None:
    with pytest.raises(LayerError, match=says) as caught:
        dim_of(g, v, given_dim)
    assert "--dim" in caught.value.fix


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), st.data())
def test_the_dim_read_from_torchs_g_gives_torchs_weight(v: Shape, data: st.DataObject) -> None:
    import torch

    asked = data.draw(st.none() | st.integers(-1, len(v) - 1))
    direction = torch.from_numpy(np.random.default_rng(0).normal(size=v))
    g = torch.norm_except_dim(direction, 2, -1 if asked is None else asked)
    read = dim_of(tuple(g.shape), v).dim
    axes = [axis for axis in range(len(v)) if axis != read]
    again = np.sqrt((direction.numpy() ** 2).sum(axis=tuple(axes), keepdims=True))
    assert np.allclose(np.broadcast_to(again, v), np.broadcast_to(g.numpy(), v))


def test_a_magnitude_has_one_element_a_row() -> None:
    assert [rows_of((512, 80, 7), dim) for dim in (0, 1, 2, None)] == [512, 80, 7, 1]
    assert rows_of((), None) == 1
