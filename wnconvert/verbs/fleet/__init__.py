"""The verbs on many checkpoints: found, made into jobs, run side by side, and kept in a journal.

sources    names, globs and folders become sources, with their places below the common root
result     FileResult: what came of one source
jobs       FileJob: what is done with one source, as a small value; outputs that would meet are refused
digests    what a file or folder is, to tell whether it changed
work       one job run, wherever that is
executors  where jobs run: in this process, in others, on a cluster
journal    one line for each file, and what it saves from being done again
fleet      the jobs run, and what came of them, in the order of completion
comparing  compare_folders: file by file
files      fold_files, split_files, migrate_files, inspect_files
"""
