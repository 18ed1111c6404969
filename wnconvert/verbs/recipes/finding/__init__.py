"""What a trace holds: the linear layers, the norms, and which norm goes where.

layers    the linear layers of a forward, and what each is handed
fits      lines and constants through numbers of very different sizes
computed  what a layer computes its weight by, told by numbers
frozen    norms that a class computes by itself
norms     the norms of a forward
behind    norms that fold into the layer before them
before    norms that fold into what follows them
told      what one forward of a module tells
"""
