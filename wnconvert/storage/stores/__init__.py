"""Stores: the places where files lie, one class for each; `storage/files.py` has their list.

system    calls of the system that not every system has, each with a stand-in
store     what every store offers, and the names of files that do not lie on a disk of this machine
disk      the disks of this machine, by paths and by file:// addresses
standard  stdin as a store, stdout as a place, both spooled
"""
