"""ONNX models understood: the file, the graph, and the weight norm in it.

file     an ONNX file: its messages read as data, and written with edits
graph    what a graph computes: which of its values are weight norm, and how to fold them
slices   one value's arithmetic cut out as a model
runtime  onnxruntime, in a process of its own: opened, run, its errors in words
"""
