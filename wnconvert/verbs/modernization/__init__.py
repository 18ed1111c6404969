"""Code taken to the other form of weight norm: files found, migrated, shown and written.

result     ModernizeReport
files      the Python files and notebooks of a project, found, and read only if they hold the words
writing    all files of a run written, or none
child      the model of one tree, in a process of its own
proof      the models of the old and the new tree do the same
modernize  modernize_code
"""
