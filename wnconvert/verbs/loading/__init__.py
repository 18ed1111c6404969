"""The model that a user names: built or read, its weights loaded.

program_texts  which texts may stand in one
programs       .pt2 files, held to what torch writes
weights        a checkpoint put into a module, strictly
model          the model that a text names, its weights loaded
"""
