"""``python -m wnconvert``."""

from wnconvert.cli import main

if __name__ == "__main__":
    main()
