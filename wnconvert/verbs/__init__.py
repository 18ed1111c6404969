"""The verbs that users call, one folder for each kind of work.

shared          what verbs of every kind use: their options, streams, progress
inspection      what is in a checkpoint: its layers, their magnitudes, and what the verbs would do to it
conversion      fold, split and migrate: on files, folders, ONNX models and mappings in memory
comparison      whether two checkpoints hold the same weights, and how far apart they are
modules         the verbs on live modules
models          live models: built, read, run and compared
loads           whether the class that a folder names finds its tensors there
export          a module exported to ONNX and proven equal
recipes         which norms of a model fold into which layers, told by a forward and proven
modernization   code taken to the other form of weight norm, and proven to do the same
fleet           fold, split, migrate and inspect on many checkpoints: run side by side, kept in a journal
"""
