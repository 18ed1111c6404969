"""Names of weights, from the names of the tensors that they are computed of."""

from __future__ import annotations

import re

from wnconvert.layers.rules import Rule, Standardize, Unit

__all__ = ["CODES_SUFFIX", "has_name_of", "name_by_tensor", "weight_name"]


#: What each kind appends to the name of its original, where hooks compute the weight.
_HOOKED = {"weight": "_v", "spectral": "_orig", "prune": "_orig", "unit": ""}
#: What onnxruntime's quantizer appends to the name of a tensor that it stores as codes.
CODES_SUFFIX = "_quantized"
#: What hooks append to the name of a weight for any tensor that it is computed of.
_PARTS = ("_v", "_g", "_orig", "_mask")
#: Names that an exporter gives to values without one.
_NUMBERED = re.compile(r"(?:.*::)?(?:\w+_)?\d+")
_PARAMETRIZED = re.compile(r"(?s:(?P<owner>(?:.*\.)?))parametrizations\.(?P<param>[^.]+)\.(?P<part>[^.]+)")


def weight_name(original: str, rule: Rule) -> str:
    """The name of a weight, from the name of its original if that follows a known convention.

    >>> from wnconvert.layers.rules import Mask, Norm, Spectral
    >>> weight_name("dec.conv.weight_v", Rule((Norm(0),))), weight_name("kernel", Rule((Norm(0),)))
    ('dec.conv.weight', 'kernel.folded')
    >>> weight_name("dec.weight_orig_orig", Rule((Mask(), Spectral(0))))
    'dec.weight'
    >>> weight_name("conv.weight_v_quantized", Rule((Norm(0),)))
    'conv.weight'
    >>> weight_name("dec.parametrizations.weight.original1_orig", Rule((Mask(), Norm(0))))
    'dec.weight'
    """
    original = original.removesuffix(CODES_SUFFIX)
    return _named(original, rule) or f"{original}.folded"


def has_name_of(original: str, rule: Rule) -> bool:
    """Whether a tensor has the name of an original by a rule.

    >>> from wnconvert.layers.rules import Mask
    >>> has_name_of("weight_orig", Rule((Mask(),))), has_name_of("weight_mask", Rule((Mask(),)))
    (True, False)
    """
    return bool(_named(original.removesuffix(CODES_SUFFIX), rule))


def _named(original: str, rule: Rule) -> str:
    """The name of the weight; empty if the original is named in another way."""
    if rule.kinds in ((Standardize.kind,), (Unit.kind,)):
        return original
    part = f"original{'1' * ('weight' in rule.kinds)}{'_orig' * ('prune' in rule.kinds)}"
    if (match := _PARAMETRIZED.fullmatch(original)) and match["part"] == part:
        return match["owner"] + match["param"]
    weight = original.removesuffix("".join(_HOOKED[kind] for kind in reversed(rule.kinds)))
    return "" if weight == original or weight.endswith(".") else weight


def name_by_tensor(tensor: str) -> str:
    """The name of a weight that is computed in any way, from that of its largest tensor; empty for a number.

    >>> name_by_tensor("dec.conv.weight_v"), name_by_tensor("dec.parametrizations.weight.original1")
    ('dec.conv.weight', 'dec.weight')
    >>> name_by_tensor("kernel"), name_by_tensor("onnx::Mul_12")
    ('kernel', '')
    """
    if match := _PARAMETRIZED.fullmatch(tensor):
        return f"{match['owner']}{match['param']}"
    part = next((part for part in _PARTS if tensor.endswith(part) and tensor != part), "")
    name = tensor.removesuffix(part)
    return "" if not name or name.endswith(".") or _NUMBERED.fullmatch(name) else name
