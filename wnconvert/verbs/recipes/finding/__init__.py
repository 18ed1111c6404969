"""What a trace holds: the linear layers, the norms, and which norm goes where.

layers  the linear layers of a forward, and what each is handed
norms   the norms of a forward
behind  norms that fold into the layer before them
"""
