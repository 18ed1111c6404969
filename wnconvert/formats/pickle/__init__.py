"""Pickles as data: read by a small machine that imports and calls nothing, and written back.

values  the content of a pickle, as data
reader  bytes to data; nothing is imported or called
writer  data to bytes
"""
