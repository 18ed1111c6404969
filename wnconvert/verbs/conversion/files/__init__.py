"""The verbs on files and folders, as Python functions and as commands.

overloads  the options of each verb, for type checkers
fold       fold_file
split      split_file
relayout   a checkpoint as another framework has it
migrate    migrate_file
"""
