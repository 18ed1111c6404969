"""ONNX models understood: the file, the graph, and the weights that it computes.

file        an ONNX file: its messages read as data, and written with edits
arithmetic  what nodes compute of stored tensors, symbolically
graph       which values of a graph are weights, and how to fold them
slices      one value's arithmetic cut out as a model
segments    a model of many nodes as models of a few
fractions   quotients of stored tensors in exact fractions
rowed       arithmetic that is done some rows at a time
evaluation  weights that no rule knows, evaluated in float64 and rounded once
runtime     onnxruntime, in a process of its own: opened, run, its errors in words
"""
