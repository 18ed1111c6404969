"""Fold, split and migrate: on files, folders, ONNX models and mappings in memory.

executor       runs a layout: blocks in, blocks out
verify         an output read back and computed again, by readers that are not ours
convert        a plan laid out, run, checked, put in place; Result
onnx           an ONNX model folded, checked and put in place
targets        where a conversion writes
folders        a folder planned, checked for what it replaces, and written
jobs           what is asked for, and the jobs that do it
places         outputs that are no files of a disk: stdout, objects of a store
run            one conversion: open, plan, write
files          fold_file, split_file, migrate_file, as commands have them
state_dict     the same verbs on a mapping in memory
"""
