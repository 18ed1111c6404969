"""Which normalization is it, and what can be done: one table, for README, ``inspect`` and notes.

A row says what keys show of a normalization, whether its weights fold exactly for inference, how or why not,
and the command. ``kinds`` takes the words of a kind from here.
"""

from __future__ import annotations

from wnconvert.frozen import dataclass

__all__ = ["NORMS", "NormWords", "norms_table"]


@dataclass(frozen=True, slots=True)
class NormWords:
    """A normalization, and ``shows``, the keys that it is known by.

    ``folds`` is ``"yes"``, ``"no"`` or ``"if known"``, and ``how`` says it in half a sentence. ``commands``
    are those that fold it, one or the other, or none.
    """

    name: str
    shows: str
    folds: str
    how: str
    commands: tuple[str, ...] = ()


_OF_DATA = "it depends on the data"
_OF_DATA_BUT_AFFINE = f"{_OF_DATA}; its γ and β alone go into what follows"
_RECIPE = "wnconvert fold --recipe FILE"
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
            ("wnconvert fold",),
        ),
        NormWords(
            "spectral norm",
            "`X_orig`, `X_u`, `X_v`; `parametrizations.X.original`, `0._u`, `0._v`",
            "yes",
            "weight = orig / (uᵀ·mat(orig)·v), mat along dim 1 for ConvTranspose",
            ("wnconvert fold --kinds spectral",),
        ),
        NormWords(
            "prune", "`X_orig`, `X_mask`", "yes", "weight = orig · mask", ("wnconvert fold --kinds prune",)
        ),
        NormWords(
            "batch norm",
            "`running_mean`, `running_var`",
            "if known",
            "in eval, into the layer beside it; which one that is, is not in the keys",
            (_RECIPE, "--norm by-names --eps E"),
        ),
        NormWords("layer norm", _AFFINE, "no", _OF_DATA_BUT_AFFINE, (_RECIPE,)),
        NormWords(
            "instance norm",
            f"{_AFFINE}, or nothing",
            "no",
            f"{_OF_DATA}; one with `running_mean`, `running_var` folds as batch norm does",
        ),
        NormWords("group norm", _AFFINE, "no", _OF_DATA_BUT_AFFINE, (_RECIPE,)),
        NormWords(
            "switchable norm",
            "`mean_weight`, `var_weight`",
            "no",
            "in eval, too, it mixes statistics of its input with the running ones",
        ),
        NormWords(
            "cosine normalization",
            "nothing: a plain `weight`",
            "no",
            "it divides by the length of its input too; of an ONNX file, `--kinds unit` folds its weight",
        ),
        NormWords(
            "weight standardization",
            "nothing, or a `gain` beside a plain `weight`",
            "if known",
            "with its eps and where that stands (std + eps, or var + eps)",
            (_RECIPE, "--standardize GLOB …"),
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
        f"{' or '.join(f'`{command}`' for command in row.commands) or 'none'} |"
        for row in NORMS.values()
    )
