"""The verbs on files and folders, as Python functions and as commands.

overloads  the options of each verb, for type checkers
fold       fold_file
split      split_file
migrate    migrate_file
"""
