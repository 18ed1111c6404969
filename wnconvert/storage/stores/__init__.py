"""Stores: the places where files lie, one class for each; `storage/files.py` has their list.

system     calls of the system that not every system has, each with a stand-in
renames    names changed in one step: to one that nothing has, or with that of another
temporary  temporary names beside a target: held while their run lives, found again when it was killed
store      what every store offers, and the names of files that do not lie on a disk of this machine
disk       the disks of this machine, by paths and by file:// addresses
windows    pieces of memory that are written by threads of their own
filling    a new file of known size, filled by several threads: reserved, and written past the page cache
kept       files that are opened when they are read, a few of which stay open
remote     stores that answer over the network
standard   stdin as a store, stdout as a place, both spooled
"""
