"""What a fold of a live module is made of: the layers that a recipe tells, numbers, and what is put where.

numbers   the weights of layers, and the biases of those into which a norm is folded
copies    deep copies of modules whose tensors are part of a graph
places    every module and tensor below a module, by all its names
told      the layers that a recipe tells of
trials    small modules run by themselves: what one computes, and what of it remains
layers    how a module reads its weight
plain     what a layer becomes whose class computes its weight
beside    what becomes of the norm beside a layer, and where the bias is put
"""
