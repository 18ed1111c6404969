"""The graph of an ONNX model: finding the values that are weight norm, and folding them.

constants  evaluation of shape arithmetic
monomials  products of powers of tensors, by shapes alone
index      the maker and users of each value; the nodes that become unused
rules      the result of an operator, as far as its inputs are known
values     every value of a model, symbolically
views      the values that are the weight in another layout
layers     the values that are weight norm
edits      the changes of the model that fold them
plan       the plan of folding a graph
"""
