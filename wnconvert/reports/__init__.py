"""Results as text, tables, frames, pictures and pages.

tables     tables: terminal, Markdown, HTML, CSV
text       results as the command line prints them
plots      pictures of magnitudes
drawings   the numbers of one result on axes of matplotlib
frames     results as frames of pandas
cards      the sections of a model card
html       results as pages of HTML
notebooks  what a result shows of itself
"""
