"""The record in a file of what was done to it, so that it can be undone.

patterns  names and numbers that go on alike, in few bytes
origins   layers as they were before a step, and the rows of a record that hold them
history   the record: read, written, carried over, renamed
"""
