"""Results as frames of pandas: flat rows of names, numbers and texts, each column of one dtype."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING, Any

from wnconvert.errors import ArgumentError
from wnconvert.messages import to_install
from wnconvert.plan.plan import Plan
from wnconvert.shown import Shown
from wnconvert.verbs.comparison.result import Comparison, Operand
from wnconvert.verbs.conversion.convert import Result
from wnconvert.verbs.inspection.magnitudes import LayerStats, SpectralStats, Spread
from wnconvert.verbs.inspection.result import Inspection
from wnconvert.verbs.models.proof.outputs import OutputProof
from wnconvert.verbs.models.proof.report import ExportReport
from wnconvert.verbs.models.proof.samples import Sample

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["columns_of", "frame_of"]


#: The dtypes of columns: of text without pyarrow, which takes no lone surrogates of names in old pickles.
_TEXT, _COUNT, _NUMBER, _FLAG = "string[python]", "Int64", "float64", "boolean"
_SPREAD = ("min", "q1", "median", "mean", "q3", "max")
_SPREADS = tuple(f"{what}_{part}" for what in ("g", "norm", "ratio") for part in _SPREAD)


def _of(dtype: str, names: str | Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(names.split() if isinstance(names, str) else names, dtype)


_LAYER = _of(_TEXT, "state_dict name kind form")
_SIZES = _of(_COUNT, "dim") | _of(_TEXT, "shape dtype") | _of(_COUNT, "rows elements")
_PLANNED = _LAYER | _of(_TEXT, "to") | _SIZES | _of(_TEXT, "norm grade") | _of(_FLAG, "unproven")
_INSPECTED = (
    _LAYER
    | _SIZES
    | _of(_NUMBER, _SPREADS)
    | _of(_COUNT, "zero_rows")
    | _of(_NUMBER, "sigma sigma_largest sigma_ratio zeros")
    | _of(_TEXT, "flags")
)
_TENSORS = _of(_TEXT, "state_dict name dtype shape") | _of(_COUNT, "elements bytes")
_COMPARED = (
    _of(_TEXT, "state_dict name why a_form a_dtype a_shape b_form b_dtype b_shape")
    | _of(_COUNT, "different unmatched")
    | _of(_NUMBER, "max_abs max_rel")
    | _of(_COUNT, "ulps")
    | _of(_NUMBER, "cosine snr_db")
    | _of(_TEXT, "worst")
)
_PROVEN = (
    _of(_TEXT, "name dtype shape")
    | _of(_COUNT, "elements")
    | _of(_FLAG, "passed identical unproven")
    | _of(_NUMBER, "max_abs max_rel snr_db least_snr_db largest needed_atol needed_rtol")
    | _of(_COUNT, "out_of_tolerance unmatched")
    | _of(_TEXT, "worst")
    | _of(_NUMBER, "worst_reference worst_candidate")
    | _of(_TEXT, "worst_sample")
)


def frame_of(result: Shown) -> DataFrame:
    """The rows of a result; a frame without rows has all columns too.

    Raises ``ArgumentError`` if pandas is not installed.
    """
    if find_spec("pandas") is None:
        raise ArgumentError("frames need pandas", fix=to_install("pandas"))
    from pandas import DataFrame, Series

    columns, rows = columns_of(result), list(_rows(result))
    return DataFrame(
        {name: Series([row.get(name) for row in rows], dtype=dtype) for name, dtype in columns.items()}
    )


def columns_of(result: Shown) -> Mapping[str, str]:
    """The columns of a result's frame, each with its dtype."""
    if isinstance(result, Inspection):
        return _INSPECTED if result.tensors is None else _TENSORS
    return {Plan: _PLANNED, Result: _PLANNED, Comparison: _COMPARED, ExportReport: _PROVEN}[type(result)]


@singledispatch
def _rows(result: Shown) -> Iterable[Mapping[str, Any]]:
    """The rows of a result, by column; what a row lacks is missing."""
    raise TypeError(f"{type(result).__name__} has no rows")


@_rows.register(Plan)
@_rows.register(Result)
def _of_plan(result: Plan | Result) -> Iterable[Mapping[str, Any]]:
    return [row.to_dict() | _sizes(row.shape) for row in result.layers]


@_rows.register
def _of_inspection(result: Inspection) -> Iterable[Mapping[str, Any]]:
    if result.tensors is None:
        return [_of_layer(layer) for layer in result.layers]
    return [
        {"state_dict": item.state_dict, "name": item.name, "dtype": item.dtype, "bytes": item.bytes}
        | _sizes(item.shape)
        for item in result.tensors
    ]


def _of_layer(layer: LayerStats) -> dict[str, Any]:
    of = {"g": layer.g, "norm": layer.norm, "ratio": layer.ratio}
    is_known = layer.form != "refused"
    return {
        **{name: getattr(layer, name) for name in (*_LAYER, "dim", "zero_rows", "zeros")},
        **({"dtype": layer.dtype, "rows": layer.rows} | _sizes(layer.shape) if is_known else {}),
        **{f"{what}_{part}": _part(spread, part) for what, spread in of.items() for part in _SPREAD},
        **_of_sigma(layer.spectral),
        "flags": ", ".join(layer.flags),
    }


def _part(spread: Spread | None, part: str) -> float | None:
    return None if spread is None else getattr(spread, part)


def _of_sigma(found: SpectralStats | None) -> dict[str, float | None]:
    if found is None:
        return {}
    return {"sigma": found.sigma, "sigma_largest": found.largest, "sigma_ratio": found.ratio}


@_rows.register
def _of_comparison(result: Comparison) -> Iterable[Mapping[str, Any]]:
    for item in result.differing:
        of_values = item.why in ("values", "bits")
        yield {
            **{name: getattr(item, name) for name in _COMPARED if hasattr(item, name)},
            **_operand("a", item.a),
            **_operand("b", item.b),
            "worst": _index(item.worst),
            **({} if of_values else {"different": None, "unmatched": None}),
        }
    for side, names in (("A", result.only_in_a), ("B", result.only_in_b)):
        yield from ({"name": name, "why": f"only in {side}"} for name in names)


def _operand(side: str, operand: Operand) -> dict[str, str]:
    shape = _shape(operand.shape)
    return {f"{side}_form": operand.form, f"{side}_dtype": operand.dtype, f"{side}_shape": shape}


@_rows.register
def _of_report(result: ExportReport) -> Iterable[Mapping[str, Any]]:
    return map(_of_output, result.outputs)


def _of_output(output: OutputProof) -> dict[str, Any]:
    named = {name: getattr(output, name) for name in _PROVEN if hasattr(output, name)}
    row = named | _sizes(output.shape) | {"elements": output.elements, "worst": None}
    if (worst := output.worst) is None:
        return row
    return row | {
        "worst": _index(worst.index),
        "worst_reference": worst.reference,
        "worst_candidate": worst.candidate,
        "worst_sample": str(Sample(worst.seed, worst.sizes, source=worst.source)),
    }


def _sizes(shape: Sequence[int]) -> dict[str, Any]:
    return {"shape": _shape(shape), "elements": prod(shape)}


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "()"


def _index(place: Sequence[int] | None) -> str | None:
    return None if place is None else f"[{', '.join(map(str, place))}]"
