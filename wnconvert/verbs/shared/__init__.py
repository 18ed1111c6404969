"""What verbs of every kind use.

options    what the verbs' shared arguments mean
streams    stdout and stderr redirected, for libraries in C too
leftovers  what killed runs left beside a target, in notes
refusals   what the system does not give, in words
progress   what `progress` may be: a function, a bar, nothing
recipes    recipes on disk
"""
