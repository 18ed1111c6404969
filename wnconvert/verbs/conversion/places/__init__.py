"""Outputs that are no files of a disk.

stored    objects of a store, and folders of them
cleaning  clean_store
piped     stdout
"""
