"""What a graph computes: which of its values are weight norm, and how to fold them.

constants  shape arithmetic evaluated
monomials  products of powers, by shapes
index      who makes and who uses each value; what dies
rules      what an operator makes of what is known
values     what each value is, symbolically
views      the last values that are still the weight
layers     which values are weight norm
edits      what changes in the model for it
plan       the plan of folding a graph
"""
