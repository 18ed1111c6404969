"""Inputs as a user writes them and has them.

values    what an input is fed with, where the user says it: fixed numbers, a size, a range
texts     inputs and ranges of sizes, and the texts that give them
files     arrays of the user's, in .npz and .npy files
forwards  the arguments that a model takes, before it is built or after
proposed  texts that are proposed for them
"""
