"""Which layers the names and shapes of a state dict show.

dims         which axis a g belongs to, from two shapes
rules        how a weight is computed from what is stored, by the roles of its tensors
rows         a layer as a row of a result
recipes      what keys do not show, as data: which norm folds into which layer, with which eps
telling      what is told without the model: by names, with what speaks against it, or by the user
conventions  how frameworks store weight norm: what they compute, and what g looks like, one row each
schemes      how layers are spelled: one row a convention
evidence     what speaks against a pair that has the names of one
kinds        layers of other kinds than weight norm alone, and norms, one row a kind
matching     a recipe on the tensors of a state dict: the layers that it tells there
find         the layers among the names of a state dict
"""
