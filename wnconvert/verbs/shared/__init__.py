"""What verbs of every kind use.

selections  which layers a verb is asked for
proofs      what proves an output before it is put in place
options     what the verbs' shared arguments mean
streams     stdout and stderr redirected, for libraries in C too
leftovers   what killed runs left beside a target, in notes
refusals    what the system does not give, in words
digests     the SHA-256 of files and folders
progress    what `progress` may be: a function, a bar, nothing
recipes     recipes on disk
told        what is said in place of a recipe, checked
"""
