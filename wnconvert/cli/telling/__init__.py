"""Commands that only tell how things are here.

loads        loads, clean
environment  env
"""
