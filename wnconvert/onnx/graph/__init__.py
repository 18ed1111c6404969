"""The graph of an ONNX model: finding the values that are weights, and folding them.

index   the maker and users of each value; the nodes that become unused
names   names of weights, from the names of their tensors
values  every value of a model, symbolically
views   the values that are the weight in another layout
layers  the values that are weights of layers
edits   the changes of the model that fold them
plan    the plan of folding a graph
"""
