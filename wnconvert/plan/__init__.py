"""What an output will be, as frozen data, before a tensor is read.

layout   the bytes of an output before they exist: layout, blobs, work
steps    a step, and the work that makes its tensor
plan     Plan: what the whole output will be, frozen
order    where keys, and modules in _metadata, stand
record   what was done, written into the file, to be undone
scope    which state dicts the output has, and what is left out
wanted   which layers are wanted, and which must be refused
draft    what the plans of all verbs have in common
fold     the plan of fold
migrate  the plan of migrate
split    the plan of split, and the three ways to say which weights it is for
"""
