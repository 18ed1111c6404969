"""What of a checkpoint a plan is about.

scope    the state dicts that the output has, and what is left out
ties     tensors that are those of other names too
wanted   the layers that are wanted, and those that must be refused
foreign  what names classes that a reader of weights does not know
again    whether the layers of an output are found in it again
nothing  why a plan changes nothing
draft    what the plans of all verbs have in common
"""
