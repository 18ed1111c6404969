"""What a command does with the files that it is given: one, or many.

start       numpy loaded lightly; whether torch is there
pages       the page that a command writes beside what it prints
fleets      the options of many files, and whether many are meant
many        many files converted, or inspected
models      a fold that is told, and proven, by the model of its checkpoint
conversion  the files of a command converted: one, or many
inspection  the files of a command inspected
comparison  two files compared
"""
