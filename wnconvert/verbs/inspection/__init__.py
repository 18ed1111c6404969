"""What is in a checkpoint: its layers, their magnitudes, and what the verbs would do to it.

request     what to show, and how much to read
magnitudes  magnitudes and flags of a layer
result      Inspection: what was found, frozen
forecast    what fold, split and migrate would do
onnx        the layers of an ONNX model
inspect     inspect_file, inspect_state_dict
"""
