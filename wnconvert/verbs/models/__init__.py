"""Live models of a user's: built and read, run and compared, followed through a forward.

proof    two models run on the same inputs and compared
loading  the model that a user names: built or read, its weights loaded
"""
