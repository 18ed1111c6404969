"""What is done with every element: the sums of squares of rows, and products rounded once.

library    the library made of rows.c, and whether it is used
interface  Kernel: what a kernel does
plain      the kernel in numpy
compiled   the kernel in C, its equal: the same bytes, several times as fast
choice     the kernel that is used, chosen once

``rows.c`` is the source of the compiled one. Where no C compiler was at hand when wnconvert was installed,
it is not there, and the plain one is used.
"""
