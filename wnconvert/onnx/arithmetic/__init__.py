"""What the nodes of an ONNX model compute of its stored tensors, symbolically.

constants  evaluation of shape arithmetic
monomials  products of powers of tensors, by shapes alone
sums       sums of such products, and products of matrices
operators  the result of an operator, as far as its inputs are known
meaning    the rule by which a value is a weight
"""
