"""Results as text: tables, counts and verdicts, as the command line prints them.

conversions     plans and results as text
inspections     inspections as text
exports         exports and checks as text
comparisons     comparisons as text
fleets          many files as text
loads           whether a folder loads, as text
modernizations  what changes in code, as text
recipes         recipes that a model tells, as text
"""
