"""Results as text, pictures and pages.

tables  tables: terminal, Markdown, CSV
text    results as the command line prints them
plots   pictures of magnitudes
html    results as pages of HTML
"""
