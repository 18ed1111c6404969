"""Folders of weights: which files they are, what lies beside them, and what a conversion wrote.

links       links inside a folder, and the cache of the hub
unnamed     folders in which nothing is called as weights
index       the index of a checkpoint in several files
weights     which files of a folder are its weights
components  a pipeline of several models, each in a folder of its own
config      the class that a folder's config names
written     the files of a folder that a conversion wrote
beside      everything else in a folder
"""
