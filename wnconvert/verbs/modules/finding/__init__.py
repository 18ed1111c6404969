"""The layers of a live module, found by the code that computes them, not by keys.

Nothing here changes a module or computes a weight: torch's kernel writes past its buffer if g does not fit,
so such a g must never reach it.

walk        the modules below a module, with all their names
values      tensors that may be parts of a layer: what they are, and why one cannot be
manners        the classes of torch's that compute weights, as a table
computed    what computes weights in a module: torch's hooks and parametrizations
chains      how a weight is computed, from the outside inward, where one stands upon the other
wrappers    modules that DistributedDataParallel or FSDP holds
candidates  computed weights that may be layers, and the reasons against converting them
compiled    layers in TorchScript and torch.fx graphs
live        the layers of a module, the refused ones, other computed weights
"""
