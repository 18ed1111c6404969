"""The graph of an ONNX model: finding the values that are weights, and folding them.

index       the maker and users of each value; the nodes that become unused
names       names of weights, from the names of their tensors
values      every value of a model, symbolically
views       the values that are the weight in another layout
channels    which axis of a value has the channels
neighbours  the linear node before each norm with running statistics
computed    the values that are weights of a rule
weights     the weights that nodes compute of stored tensors at every run
layers      the layers: weights that are computed, and norms that fold into the layer before them
edits       the changes of the model that fold them
plan        the plan of folding a graph
"""
