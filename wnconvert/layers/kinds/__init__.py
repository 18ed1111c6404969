"""Layers of other kinds than weight norm alone, those of other frameworks, and normalizations.

norms     which normalization is it, and what can be done: one row each
foreign   weight norm in wrappers of other frameworks, one row each
table     other reparameterizations and norms, one row a kind
others    layers of other kinds, by the rows that fold by their keys
formulas  what weights are computed by, in words
classes   the layers that classes of transformers and diffusers build
"""
