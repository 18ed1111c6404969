"""A module exported to ONNX and proven equal.

exporters  torch's two exporters behind one function
names      finds the parameter that an initializer came from
graph      the exported graph: folded, named, checked
request    the question that an export or a check answers
ports      pairs the module's inputs with the model's
check      check_onnx: an existing model against a module
cards      the model card of an exported model
told       layers as folds of a recipe, however they were told
folds      check_checkpoint: a folded checkpoint against the module that it was folded for
export     export_onnx: a new model, and the proof
pairs      two ONNX models compared: their weights, and what they compute
"""
