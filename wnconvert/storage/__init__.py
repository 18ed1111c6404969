"""Checkpoints on disk: opened whatever they are, read in blocks, written whole or not at all.

workers        jobs on several threads
stores         the places where files lie, one class for each: what a store offers, disks
files          names become opened files: the list of stores
staging        a file out, whole or not at all
staged_folder  a folder out, whole or not at all
shards         which tensors go into which file; several files as one tree, one plan as several
recognition    the format of a file, by its content; what else it may be called
folder         folders: their weights, the other files in them, and what a conversion wrote
checkpoint     any checkpoint opened, whatever its format
layouts        an output laid out, whatever its format
sources        its bytes in, block by block, from any thread
"""
