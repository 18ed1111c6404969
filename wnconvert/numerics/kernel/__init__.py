"""What is done with every element: sums of squares and of products, masks, and products rounded once.

library    the library made of sums.c, rows.c and dots.c, and whether it is used
dots       sums of products, as pairs of numbers with a bound on their error
interface  Kernel: what a kernel does
plain      the kernel in numpy
compiled   the kernel in C, its equal: the same bytes, several times as fast
choice     the kernel that is used, chosen once

These, with ``elements.h``, are the source of the compiled one. Where no C compiler was at hand when wnconvert
was installed, it is not there, and the plain one is used.
"""
