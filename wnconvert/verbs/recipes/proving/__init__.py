"""A recipe proven: a model with drawn numbers in float64, unfolded beside folded.

doubled  a forward in float64, whatever dtype its code asks for
applied  a recipe carried out on float64 tensors by plain torch
drawn    numbers for a proof
prove    the two compared
"""
