"""What makes a comparison fail, or vary, where no weight is wrong.

fixed   sizes that an exporter has fixed
steady  a reference that is run again until it gives the same twice
"""
