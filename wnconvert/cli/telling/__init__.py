"""Commands that only tell how things are.

loads        loads, clean
environment  env
recipe       recipe
"""
