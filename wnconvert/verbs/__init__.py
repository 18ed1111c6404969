"""The verbs that users call, one folder for each kind of work.

shared          what verbs of every kind use: their options, streams, progress
inspection      what is in a checkpoint: its layers, their magnitudes, and what the verbs would do to it
conversion      fold, split and migrate: on files, folders, ONNX models and mappings in memory
comparison      whether two checkpoints hold the same weights, and how far apart they are
modules         the verbs on live modules
proof           two models run on the same inputs and compared
loads           whether the class that a folder names finds its tensors there
loading         the model that a user names: built or read, its weights loaded
export          a module exported to ONNX and proven equal
modernization   code taken to the other form of weight norm, and proven to do the same
fleet           fold, split, migrate and inspect on many checkpoints: run side by side, kept in a journal
"""
