"""Whether two checkpoints hold the same weights, and how far apart they are.

result    Comparison: what was found, frozen
pairing   what is compared with what
readings  what is equal; how far the rest is apart
compare   compare_files, compare_state_dicts
"""
