"""Which normalization is it, and what can be done: one table, for README, ``inspect`` and notes.

A row says what keys show of a normalization, whether its weights fold exactly for inference, how or why not,
and the command. ``kinds`` takes the words of a kind from here.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NORMS", "NormWords", "norms_table"]


@dataclass(frozen=True, slots=True)
class NormWords:
    """A normalization, and ``shows``, the keys that it is known by.

    ``folds`` is ``"yes"``, ``"no"`` or ``"if known"``, and ``how`` says it in half a sentence; ``command`` is
    empty where there is none.
    """

    name: str
    shows: str
    folds: str
    how: str
    command: str = ""


_OF_DATA = "it depends on the data"
_AFFINE = "`weight`, `bias` of one size, as of others"

#: The normalizations that people ask for.
NORMS = {
    row.name: row
    for row in (
        NormWords(
            "weight norm",
            "`X_g`, `X_v`; `parametrizations.X.original0`, `original1`",
            "yes",
            "weight = g · v/‖v‖",
            "wnconvert fold",
        ),
        NormWords(
            "spectral norm",
            "`X_orig`, `X_u`, `X_v`; `parametrizations.X.original`, `0._u`, `0._v`",
            "yes",
            "weight = orig / (uᵀ·mat(orig)·v), mat along dim 1 for ConvTranspose",
            "wnconvert fold --kinds spectral",
        ),
        NormWords(
            "prune", "`X_orig`, `X_mask`", "yes", "weight = orig · mask", "wnconvert fold --kinds prune"
        ),
        NormWords(
            "batch norm",
            "`running_mean`, `running_var`",
            "if known",
            "in eval, into the layer beside it; which one that is, is not in the keys",
            "wnconvert fold --norm by-names --eps E",
        ),
        NormWords("layer norm", _AFFINE, "no", _OF_DATA),
        NormWords("instance norm", f"{_AFFINE}, or nothing", "no", _OF_DATA),
        NormWords("group norm", _AFFINE, "no", _OF_DATA),
        NormWords("switchable norm", "`mean_weight`, `var_weight`", "no", _OF_DATA),
        NormWords(
            "cosine normalization",
            "nothing: a plain `weight`",
            "no",
            "it divides by the length of its input too",
        ),
        NormWords(
            "weight standardization",
            "nothing, or a `gain` beside a plain `weight`",
            "if known",
            "with its eps and where that stands (std + eps, or var + eps)",
        ),
    )
}


def norms_table() -> tuple[str, ...]:
    """The rows of the table in Markdown, one for each normalization.

    >>> norms_table()[2]
    '| prune | `X_orig`, `X_mask` | yes: weight = orig · mask | `wnconvert fold --kinds prune` |'
    """
    return tuple(
        f"| {row.name} | {row.shows} | {row.folds}: {row.how} | "
        f"{f'`{row.command}`' if row.command else 'none'} |"
        for row in NORMS.values()
    )
