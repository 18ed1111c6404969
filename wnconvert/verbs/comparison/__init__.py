"""Comparing the weights of two checkpoints: whether they are equal, and how far apart they are.

result        Comparison, the frozen result
items         what is compared, and a pair of it
pairing       the tensors of both sides, matched by name
readings      two readings: which pairs are equal, and how far apart the others are
initializers  the weights of two ONNX models, matched by name and by what they hold
compare       compare_files, compare_state_dicts
"""
