"""Checkpoints on disk: opened whatever they are, read in blocks, written whole or not at all.

workers        jobs on several threads
stores         the places where files lie, one class for each: what a store offers, disks
files          names become opened files: the list of stores
staging        a file out, whole or not at all
staged_folder  a folder out, whole or not at all
index          the index of a checkpoint in several files
shards         which tensors go into which file; several files as one tree, one plan as several
folder         a hub folder: its weights, and the other files in it
recognition    the format of a file, by its first bytes
checkpoint     any checkpoint opened, whatever its format
sources        its bytes in, block by block, from any thread
"""
