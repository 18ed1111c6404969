"""New names for the keys of state dicts, and names that are the same but for a prefix or a wrapper.

renaming    Renaming: prefixes taken off and put before, whole parts of names replaced
wrappers    names seen through the wrappers of torch.compile, FSDP and checkpointing
prefixes    the prefix by which the names of two sides differ
trees       a tree, its record and its modules under their new names
kernels     how frameworks order the axes of kernels
places      how frameworks call the tensors of a module
told        what kernels are, by names and by the sizes of biases
frameworks  a state dict as another framework has it: its names, its axes, the shapes of g
"""
