"""What is told of norms and weights without the model: by names, or by the user.

asked        what a user asks for instead of a recipe
spellings    which names of a layer and of a norm belong together
families     the layers and norms of one module
arrangement  the modules, keys and sizes of a state dict, asked for their neighbours
neighbours   which norm stands behind which layer
resolved     what is asked for, as a recipe for one state dict
"""
