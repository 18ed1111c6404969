"""Which norms of a model fold into which layers: told by one forward of it, and proven."""
