"""What is fuzzed, by name; a case is made of the seed, the target and its number alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from tests.fuzz import commands, flax, folders, npz, onnx, pickles, safetensors, zips
from tests.fuzz.case import Case

__all__ = ["TARGETS", "made"]


TARGETS: Mapping[str, Callable[[Random], Case]] = {
    "pickles": pickles.case,
    "zips": zips.case,
    "safetensors": safetensors.case,
    "npz": npz.case,
    "flax": flax.case,
    "onnx": onnx.case,
    "folders": folders.case,
    "commands": commands.case,
}


def made(target: str, seed: int, number: int) -> Case:
    """The case of a target with this number."""
    return TARGETS[target](Random(f"{seed} {target} {number}"))
