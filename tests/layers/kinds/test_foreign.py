"""Weight norm in wrappers of other frameworks is known by names and shapes; what looks like it is not."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.helpers.infos import Shape, infos
from wnconvert.layers.conventions import CONVENTIONS
from wnconvert.layers.evidence import notes_on_passed
from wnconvert.layers.find import FoundPairs, find_pairs
from wnconvert.layers.kinds.table import find_kinds
from wnconvert.layers.rules import Norm, Rule
from wnconvert.layers.schemes import Selection
from wnconvert.tensors.tree import Dim

Tensors = dict[str, Shape]


def found(tensors: Mapping[str, Shape], selection: Selection = Selection()) -> FoundPairs:  # noqa: B008 - frozen
    return find_pairs(infos(*tensors.items()), selection)


#: As the frameworks name and shape them, joined in the ways that are met: form, dim, name of g and of v.
SPELLED: dict[str, tuple[str, Dim, str, str, Tensors]] = {
    "flax": (
        "flax",
        1,
        "params/WeightNorm_0/Dense_1/kernel/scale",
        "params/Dense_1/kernel",
        {
            "params/Dense_1/kernel": (3, 4),
            "params/Dense_1/bias": (4,),
            "params/WeightNorm_0/Dense_1/kernel/scale": (4,),
        },
    ),
    "flax, deeper": (
        "flax",
        1,
        "WeightNorm_1.Bar_0/Baz_0/Dense_0/kernel/scale",
        "Bar_0.Baz_0.Dense_0.kernel",
        {"Bar_0.Baz_0.Dense_0.kernel": (5, 2), "WeightNorm_1.Bar_0/Baz_0/Dense_0/kernel/scale": (2,)},
    ),
    "flax, a scope of another name": (
        "flax",
        2,
        "params.dec.wn.Conv_0/kernel/scale",
        "params.dec.Conv_0.kernel",
        {"params.dec.Conv_0.kernel": (3, 2, 6), "params.dec.wn.Conv_0/kernel/scale": (6,)},
    ),
    "flax, another axis": (
        "flax",
        0,
        "WeightNorm_0/Dense_0/kernel/scale",
        "Dense_0/kernel",
        {"WeightNorm_0/Dense_0/kernel/scale": (3,), "Dense_0/kernel": (3, 4)},
    ),
    "flax, all axes": (
        "flax",
        None,
        "WeightNorm_0/Dense_0/kernel/scale",
        "Dense_0/kernel",
        {"WeightNorm_0/Dense_0/kernel/scale": (), "Dense_0/kernel": (3, 4)},
    ),
    "flax, an embedding": (
        "flax",
        1,
        "WeightNorm_0/Embed_0/embedding/scale",
        "Embed_0/embedding",
        {"WeightNorm_0/Embed_0/embedding/scale": (4,), "Embed_0/embedding": (9, 4)},
    ),
    "nnx": (
        "nnx",
        2,
        "conv/scales/('kernel',)",
        "conv/layer_instance/kernel",
        {"conv/scales/('kernel',)": (6,), "conv/layer_instance/kernel": (3, 4, 6)},
    ),
    "nnx, deeper": (
        "nnx",
        1,
        "scales.('attention', 'out', 'kernel')",
        "layer_instance.attention.out.kernel",
        {"scales.('attention', 'out', 'kernel')": (6,), "layer_instance.attention.out.kernel": (4, 6)},
    ),
    "equinox": (
        "equinox",
        0,
        "layers.0.g",
        "layers.0.layer.weight",
        {"layers.0.layer.weight": (4, 3), "layers.0.layer.bias": (4,), "layers.0.g": (4, 1)},
    ),
    "equinox, a convolution at the root": (
        "equinox",
        0,
        "g",
        "layer.weight",
        {"layer.weight": (4, 3, 5), "g": (4, 1, 1)},
    ),
    "equinox, transposed": ("equinox", 1, "g", "layer.weight", {"layer.weight": (4, 3, 5), "g": (1, 3, 1)}),
    "keras, as TensorFlow names it": (
        "keras",
        1,
        "weight_normalization/g:0",
        "weight_normalization/kernel:0",
        {
            "weight_normalization/kernel:0": (3, 4),
            "weight_normalization/g:0": (4,),
            "weight_normalization/b:0": (4,),
        },
    ),
    "keras, the layer's own scope": (
        "keras",
        3,
        "weight_norm/g",
        "weight_norm/conv2d/kernel",
        {"weight_norm/conv2d/kernel": (3, 3, 2, 4), "weight_norm/g": (4,)},
    ),
    "keras, a transposed convolution": (
        "keras",
        2,
        "g",
        "kernel",
        {"kernel": (4, 4, 4, 6), "g": (4,)},
    ),
    "paddle": ("paddle", 0, "fc.weight_g", "fc.weight_v", {"fc.weight_g": (4,), "fc.weight_v": (4, 3)}),
    "paddle, its linear layer": (
        "paddle",
        1,
        "fc.weight_g",
        "fc.weight_v",
        {"fc.weight_g": (3,), "fc.weight_v": (4, 3)},
    ),
}


@pytest.mark.parametrize(("form", "dim", "g", "v", "tensors"), SPELLED.values(), ids=SPELLED)
def test_each_spelling_is_a_layer_of_its_framework(
    form: str, dim: Dim, g: str, v: str, tensors: Tensors
) -> None:
    there = found(tensors)
    (layer,) = there.layers
    assert (layer.form, layer.dim, layer.g.name, layer.v.name) == (form, dim, g, v)
    assert layer.name == (v.removesuffix("_v") if form == "paddle" else v)
    guard = CONVENTIONS[form].guard if CONVENTIONS[form].is_sure else None
    assert layer.rule == Rule((Norm(dim, guard),))
    assert (there.refused, there.passed, there.halves) == ((), (), ())
    assert find_kinds(infos(*tensors.items())) == ()


@pytest.mark.parametrize("form", ["flax", "nnx", "keras"])
def test_a_note_says_which_eps_is_taken_unless_one_is_given(form: str) -> None:
    tensors = next(row[-1] for row in SPELLED.values() if row[0] == form)
    (layer,) = found(tensors).layers
    assert "eps 1e-12 is taken" in layer.note
    assert "--eps E" in layer.note
    (layer,) = found(tensors, Selection(eps=1e-3)).layers
    assert layer.note == ""
    assert layer.guard is not None
    assert layer.guard.eps == 1e-3
    (layer,) = found(tensors, Selection(eps=0.0)).layers
    assert layer.guard is None


#: Kernels of which several axes fit g: the axis that each framework takes.
SQUARE: dict[str, tuple[Tensors, Dim]] = {
    "flax": ({"WeightNorm_0/Dense_0/kernel/scale": (4,), "Dense_0/kernel": (4, 4)}, 1),
    "nnx": ({"scales/('kernel',)": (4,), "layer_instance/kernel": (4, 4)}, 1),
    "keras": ({"a/g": (4,), "a/kernel": (3, 4, 4)}, 2),
    "paddle": ({"a.weight_g": (4,), "a.weight_v": (4, 4)}, 0),
}


@pytest.mark.parametrize(("tensors", "dim"), SQUARE.values(), ids=SQUARE)
def test_where_several_axes_fit_the_frameworks_own_is_taken_and_said(tensors: Tensors, dim: int) -> None:
    (layer,) = found(tensors).layers
    assert layer.dim == dim
    assert f"fits several axes of v {layer.v.shape}; axis {dim} is taken (else: fold --dim" in layer.note
    (layer,) = found(tensors, Selection(dim=1)).layers
    assert layer.dim == 1
    assert "several" not in layer.note


#: What looks like a layer, and what is said of it.
DECOYS: dict[str, tuple[Tensors, str]] = {
    "a layer norm": ({"LayerNorm_0/scale": (4,), "LayerNorm_0/bias": (4,), "Dense_0/kernel": (3, 4)}, ""),
    "a scale of the kernel's own": ({"Dense_0/kernel": (3, 4), "Dense_0/kernel/scale": (4,)}, ""),
    "a scale of another parameter": ({"a.b.c.w.scale": (4,), "b.c.w": (3, 4)}, ""),
    "a quantized kernel": ({"q/scales/0": (4,), "q/layer_instance/kernel": (3, 4)}, ""),
    "WeightFactLinear": ({"fc.g": (8, 1), "fc.v": (8, 3)}, ""),
    "a gain": ({"fc.g": (8, 1), "fc.weight": (8, 3)}, ""),
    "a gain beside the layer behind a norm": (
        {"attn/g": (8,), "attn/to_qkv/kernel": (8, 8)},
        "attn/g may be the gain of a norm: no part of its name says weight norm",
    ),
    "the gain and the bias of a norm": (
        {"block.g": (1, 8, 1, 1), "block.b": (1, 8, 1, 1), "block.layer.weight": (5, 8, 3, 3)},
        "it looks like one of a family, with b",
    ),
    "a gain of all, beside a layer": (
        {"a.g": (1, 1), "a.layer.weight": (4, 3)},
        "a.g is one number, and may be a gain; --layers 'a.layer.weight' takes them",
    ),
    "another axis": ({"a.g": (3, 1), "a.layer.weight": (4, 3)}, "g (3, 1) does not fit v (4, 3)"),
    "a whole matrix": ({"a.g": (4, 3), "a.layer.weight": (4, 3)}, "g (4, 3) does not fit v (4, 3)"),
    "a gated unit": ({"a.g": (4,), "a.layer.weight": (4, 3)}, "g (4,) has not as many axes as v (4, 3)"),
    "gates": (
        {"cell/i": (4,), "cell/f": (4,), "cell/g": (4,), "cell/kernel": (3, 4)},
        "it looks like one of a family, with i, f; --layers 'cell/kernel' takes them",
    ),
    "an RNN": (
        {"gru/g": (12,), "gru/kernel": (3, 12), "gru/recurrent_kernel": (4, 12)},
        "it may belong to the recurrent_kernel beside it",
    ),
    "several kernels below": ({"a/g": (4,), "a/q/kernel": (3, 4), "a/k/kernel": (3, 4)}, ""),
    "moments": (
        {"opt_state/0/mu/WeightNorm_0/a/kernel/scale": (4,), "opt_state/0/mu/a/kernel": (3, 4)},
        "they are the state of an optimizer",
    ),
    "elsewhere": ({"emb/g": (4,), "dense/kernel": (3, 4)}, ""),
    "a vector": ({"g": (4,), "kernel": (4,)}, "v (4,) is no kernel"),
    "a number": ({"a/g": (1,), "a/kernel": (3, 4)}, "a/g is one number"),
}


@pytest.mark.parametrize(("tensors", "says"), DECOYS.values(), ids=DECOYS)
def test_what_looks_like_one_is_left_alone_and_said_where_its_names_are_those(
    tensors: Tensors, says: str
) -> None:
    there = found(tensors)
    assert (there.layers, there.refused, there.halves) == ((), (), ())
    notes = list(notes_on_passed(there.passed))
    assert len(notes) == bool(says)
    assert all(says in note for note in notes)


@pytest.mark.parametrize("decoy", ["gates", "an RNN", "a gain of all, beside a layer"])
def test_who_names_one_in_full_has_it_taken(decoy: str) -> None:
    tensors, _ = DECOYS[decoy]
    name = next(name for name in tensors if name.endswith(("/kernel", "layer.weight")))
    assert [layer.name for layer in found(tensors, Selection(layers=(name,))).layers] == [name]


def test_a_number_is_a_magnitude_beside_other_layers_of_its_framework() -> None:
    tensors = {"0.g": (1, 1), "0.layer.weight": (4, 3), "1.g": (5, 1), "1.layer.weight": (5, 4)}
    assert {layer.name: layer.dim for layer in found(tensors).layers} == {
        "0.layer.weight": None,
        "1.layer.weight": 0,
    }


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (
            {"WeightNorm_0/Dense_0/kernel/scale": (5,), "Dense_0/kernel": (3, 4)},
            "g (5,) does not fit v (3, 4)",
        ),
        ({"WeightNorm_0/Dense_0/kernel/scale": (3, 4), "Dense_0/kernel": (3, 4)}, "belongs to several axes"),
        ({"scales/('kernel',)": (5,), "layer_instance/kernel": (3, 4)}, "g (5,) does not fit v (3, 4)"),
        ({"WeightNorm_0/a/kernel/scale": (0,), "a/kernel": (3, 0)}, "saved from one rank"),
        ({"WeightNorm_0/a/kernel/scale": (3,), "a/kernel": (3, 3, 4)}, "fits several axes of v (3, 3, 4)"),
    ],
)
def test_a_scope_of_weight_norm_that_does_not_fit_is_refused(tensors: Tensors, says: str) -> None:
    there = found(tensors)
    assert there.layers == ()
    (refused,) = there.refused
    assert says in refused.reason
    assert refused.fix


def test_two_scales_of_one_kernel_are_refused() -> None:
    tensors = {f"WeightNorm_{at}/a/kernel/scale": (4,) for at in range(2)} | {"a/kernel": (3, 4)}
    (refused,) = found(tensors).refused
    assert "both claim it" in refused.reason


def test_a_scale_whose_kernel_is_not_there_is_half_a_pair() -> None:
    there = found({"WeightNorm_0/Dense_0/kernel/scale": (4,)})
    assert there.halves == ("WeightNorm_0/Dense_0/kernel/scale",)


def test_integers_are_left_alone() -> None:
    names = ("WeightNorm_0/a/kernel/scale", "a/kernel")
    there = find_pairs(infos((names[0], (4,), "float32"), (names[1], (3, 4), "int8")))
    assert there.layers == ()
    (note,) = notes_on_passed(there.passed)
    assert "a/kernel is int8" in note
    assert "--layers" not in note


def test_what_is_not_wanted_is_left() -> None:
    _, _, _, v, tensors = SPELLED["flax"]
    assert found(tensors, Selection(exclude=("*",))).unwanted == (v,)
