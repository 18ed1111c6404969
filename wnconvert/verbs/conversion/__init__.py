"""Fold, split and migrate: on files, folders, ONNX models and mappings in memory.

executor    runs a layout: blocks in, blocks out
readers     readers of the output that are not ours
verify      an output read back and computed again
onnx_run    both models run on made-up inputs
onnx_check  a folded model's layers against the original's arithmetic
convert     a plan laid out, run, checked, put in place; Result
onnx        an ONNX model folded and put in place
targets     where a conversion writes
run         one conversion: open, plan, write
files       fold_file, split_file, migrate_file
state_dict  the same verbs on a mapping in memory
"""
