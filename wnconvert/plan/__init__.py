"""The plan of an output, as frozen data, made before a tensor is read.

layout     the bytes of an output before they exist: layout, blobs, work
steps      a step, and the work that makes its tensor
plan       Plan: what the whole output will be, frozen
order      where keys, and modules in _metadata, stand
record     the record in a file of what was done to it, so that it can be undone
selection  the state dicts and the layers that a plan is about
names      new names for keys, and names that are the same but for a prefix or a wrapper
norms      the steps of a fold beside the weights of layers that take a norm
fold       the plan of fold
migrate    the plan of migrate
split      the plan of split, and the three ways to choose its layers
"""
