"""``python -m wnconvert``."""

from wnconvert.cli import main

main()
