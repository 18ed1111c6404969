"""Inspecting a checkpoint: its layers, their magnitudes, and a forecast of what each verb would do.

request        InspectRequest: the options of an inspection
distributions  how the numbers of rows are distributed, and rows to look at by index
magnitudes     magnitudes and flags of a layer
rows           the rows of layers and weights, made on several threads
health         NaN, infinities, zero rows, halves and empty tensors
result         Inspection, the frozen result
summaries      what is counted and listed beside layers
forecast       fold, split and migrate foretold in words
onnx           the layers of an ONNX model
pickle         the facts of a torch file that only its pickle tells
inspect        inspect_file, inspect_state_dict
"""
