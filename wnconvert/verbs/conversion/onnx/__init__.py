"""Fold on ONNX models.

run    both models run on made-up inputs
check  a folded model's layers against the original's arithmetic
fold   an ONNX model folded, checked and put in place
"""
