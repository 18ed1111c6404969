"""`modernize` on real projects: python -m tests.real_code FOLDER …, each the tree of a public repository.

Sites are counted by tokens, which share nothing with the rules: before, and again in what was written.
What is there again is reported, or it was missed. No test runs it: the trees are not ours.
"""
