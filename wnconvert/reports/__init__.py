"""Results as text, pictures and pages.

tables          tables: terminal, Markdown, CSV
conversions     plans and results as text
inspections     inspections as text
fleets          many files as text
exports         exports and checks as text
comparisons     comparisons as text
loads           whether a folder loads, as text
modernizations  what changes in code, as text
recipes         recipes that a model tells, as text
plots           pictures of magnitudes
html            results as pages of HTML
"""
