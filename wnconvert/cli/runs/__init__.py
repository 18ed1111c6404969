"""What a command does with the files that it is given: one, or many.

start       numpy loaded lightly
fleets      the options of many files, and whether many are meant
many        many files converted, or inspected
conversion  the files of a command converted: one, or many
inspection  the files of a command inspected
"""
