"""Weight norm as other libraries spell it is known by name, and what looks like it is not."""

from __future__ import annotations

import pytest

from tests.helpers.infos import Shape, infos
from wnconvert.layers.find import find_pairs
from wnconvert.layers.kinds.foreign import find_foreign, notes_on_foreign
from wnconvert.layers.kinds.table import find_kinds

Tensors = dict[str, Shape]

#: As the libraries themselves name and shape them, joined in the ways that are met: (library, g, tensors).
SPELLED: dict[str, tuple[str, str, Tensors]] = {
    "flax": (
        "flax",
        "params/WeightNorm_0/Dense_1/kernel/scale",
        {
            "params/Dense_1/kernel": (3, 4),
            "params/Dense_1/bias": (4,),
            "params/WeightNorm_0/Dense_1/kernel/scale": (4,),
        },
    ),
    "flax, deeper": (
        "flax",
        "WeightNorm_1.Bar_0/Baz_0/Dense_0/kernel/scale",
        {"Bar_0.Baz_0.Dense_0.kernel": (5, 2), "WeightNorm_1.Bar_0/Baz_0/Dense_0/kernel/scale": (2,)},
    ),
    "flax, a convolution below another module": (
        "flax",
        "params.dec.wn.Conv_0/kernel/scale",
        {"params.dec.Conv_0.kernel": (3, 2, 6), "params.dec.wn.Conv_0/kernel/scale": (6,)},
    ),
    "Equinox": (
        "Equinox",
        "layers.0.g",
        {"layers.0.layer.weight": (4, 3), "layers.0.layer.bias": (4,), "layers.0.g": (4, 1)},
    ),
    "Equinox, a convolution": ("Equinox", "g", {"layer.weight": (4, 3, 5), "g": (4, 1, 1)}),
    "Equinox, axis=None": ("Equinox", "g", {"layer.weight": (4, 3), "g": (1, 1)}),
    "TensorFlow Addons": (
        "TensorFlow Addons",
        "weight_normalization/g:0",
        {"weight_normalization/kernel:0": (3, 4), "weight_normalization/g:0": (4,)},
    ),
    "TensorFlow Addons, a checkpoint": (
        "TensorFlow Addons",
        "net/g",
        {"net/layer/kernel": (3, 3, 2, 4), "net/g": (4,)},
    ),
}


@pytest.mark.parametrize(("library", "g", "tensors"), SPELLED.values(), ids=SPELLED)
def test_each_spelling_is_known_by_name(library: str, g: str, tensors: Tensors) -> None:
    there = infos(*tensors.items())
    (pair,) = find_foreign(there)
    assert (pair.library, pair.g) == (library, g)
    assert pair.v in tensors
    (note,) = notes_on_foreign([pair])
    assert library in note
    assert g in note
    assert [(found.kind.name, found.example) for found in find_kinds(there)] == [
        (f"weight norm ({library})", g)
    ]
    assert find_pairs(there).layers == ()


@pytest.mark.parametrize(
    "tensors",
    [
        {"LayerNorm_0/scale": (4,), "LayerNorm_0/bias": (4,), "Dense_0/kernel": (3, 4)},
        {"Dense_0/kernel": (3, 4), "Dense_0/kernel/scale": (4,)},
        {"WeightNorm_0/Dense_0/kernel/scale": (4,)},
        {"WeightNorm_0/Dense_0/kernel/scale": (3,), "Dense_0/kernel": (3, 4)},
        {"fc.g": (8, 1), "fc.v": (8, 3)},
        {"fc.g": (8, 1), "fc.weight": (8, 3)},
        {"a.g": (3, 1), "a.layer.weight": (4, 3)},
        {"a.g": (4, 3), "a.layer.weight": (4, 3)},
        {"emb/g": (4,), "dense/kernel": (3, 4)},
        {"g": (4,), "kernel": (4,)},
    ],
    ids=[
        "a layer norm",
        "a scale of the kernel's own",
        "no kernel",
        "another length",
        "WeightFactLinear",
        "a gain",
        "another axis",
        "a whole matrix",
        "elsewhere",
        "a vector",
    ],
)
def test_what_looks_like_one_is_not_called_weight_norm(tensors: Tensors) -> None:
    there = infos(*tensors.items())
    assert find_foreign(there) == ()
    assert not [found for found in find_kinds(there) if "weight norm" in found.kind.name]


def test_many_layers_of_a_library_are_one_note() -> None:
    tensors: Tensors = {}
    for at in range(5):
        tensors |= {f"{at}.layer.weight": (4, 3), f"{at}.g": (4, 1)}
    (note,) = notes_on_foreign(find_foreign(infos(*tensors.items())))
    assert note == (
        "weight norm as Equinox spells it is not read yet and left as it is: 5 layers, the first of 0.g and "
        "0.layer.weight"
    )
