"""What is told of norms without the model: by names, with what speaks against it.

spellings    which names of a layer and of a norm belong together
families     the layers and norms of one module
arrangement  the modules, keys and sizes of a state dict, asked for their neighbours
neighbours   which norm stands behind which layer
"""
