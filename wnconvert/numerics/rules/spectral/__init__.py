"""Spectral norm: one factor of all elements, found in a reading of its own.

matrix     mat(w) v and its transpose, accurate or exact
sigma      1 / sigma of the stored u and v
roots      sums of terms with roots below, between bounds
normed     that of a matrix whose rows were normed before
step       that after one step from u
square     which axis are the rows, where both have one size
"""
