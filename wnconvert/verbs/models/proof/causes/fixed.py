"""Sizes that an exporter has fixed: the only ones at which a model runs, though they should be dynamic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from wnconvert.errors import VerifyError
from wnconvert.tensors.blocks import Array
from wnconvert.verbs.models.proof.samples import Sample, arrays, export_sample
from wnconvert.verbs.models.proof.signatures import Signature

__all__ = ["fixed_sizes"]


def fixed_sizes(
    candidate: Callable[[Mapping[str, Array]], object], signature: Signature, refused: Sequence[Sample]
) -> dict[str, int]:
    """The letters that have only their exported size in a model that fails on all ``refused`` samples.

    A letter is one of them if the model runs at the exported sizes, and at no other size of this letter.
    """
    exported = export_sample(signature)

    def runs(sizes: Mapping[str, int]) -> bool:
        try:
            candidate(arrays(signature, replace(refused[0], sizes=sizes, values={}, source="")))
        except VerifyError:
            return False
        return True

    if not runs(exported.sizes):
        return {}
    others = {
        letter: {sample.sizes[letter] for sample in refused} - {size}
        for letter, size in exported.sizes.items()
    }
    return {
        letter: size
        for letter, size in exported.sizes.items()
        if others[letter] and not any(runs({**exported.sizes, letter: other}) for other in others[letter])
    }
