"""Folders as outputs: what they will hold, what they may replace, and how they are written.

parts    the weights in the places of a folder, and all that goes along
plan     the plan of a folder: one checkpoint, or the components of a pipeline
unfound  notes on layers that from_pretrained will not find
replace  what may be replaced by a folder, and what may not
shards   its files as jobs of their own, done by any executor
convert  a planned folder written
"""
