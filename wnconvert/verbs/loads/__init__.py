"""Whether the class that a folder names finds its tensors there.

result     LoadReport
libraries  the class built empty by transformers or diffusers, and what it lacks
loads      loads_folder
"""
