"""Layers of other kinds than weight norm alone, and normalizations.

norms     which normalization is it, and what can be done: one row each
foreign   weight norm as other libraries spell it, one row a library
table     other reparameterizations and norms, one row a kind
others    layers of other kinds, by the rows that fold by their keys
formulas  what weights are computed by, in words
"""
