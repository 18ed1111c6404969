"""Fold on ONNX models.

works      weights that are rounded to whole numbers, and weights that no rule knows
formula    the weight of one layer, read in blocks
compared   a new tensor beside what the original says that it is
norms      layers with the norms behind them, run on made-up inputs
evaluated  weights that no rule knows, against the original's arithmetic
layers     a folded model's layers against the original's arithmetic
run        both models run on made-up inputs
ready      onnxruntime started, and the original run, while a fold is planned
check      a folded model against the original: its bytes, onnx's checker, and both of these
record     what was done, behind a model that is proven
fold       an ONNX model folded, checked and put in place
"""
