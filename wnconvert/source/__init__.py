"""Python code understood: what its names mean across a project, where it uses weight norm, and edits of it.

code       a Python file or a notebook as code, with the places of its lines; edits put into it
scopes     what the names of one module are bound to
project    what a name means, through imports, aliases, star imports and re-exports of all modules
names      the two forms of torch's weight norm: functions, attributes, keys
sites      what a rule finds: a place, with edits, or with what to do
syntax     calls and imports rewritten by LibCST, with comments and layout
rules      the rules, one function each
migration  all rules on a project: edits and findings for each file
"""
