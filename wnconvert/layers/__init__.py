"""Which layers the names and shapes of a state dict show.

dims     which axis a g belongs to, from two shapes
rows     a layer as a row of a result
schemes  how layers are spelled: one row a convention
kinds    other reparameterizations and norms, one row a kind
find     the layers among the names of a state dict
"""
