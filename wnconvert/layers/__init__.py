"""Which layers the names and shapes of a state dict show.

dims     which axis a g belongs to, from two shapes
schemes  how layers are spelled: one row a convention
kinds    other reparameterizations and norms, one row a kind
classes  the layers that classes of transformers and diffusers build
find     the layers among the names of a state dict
"""
