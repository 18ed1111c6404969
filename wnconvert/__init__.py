"""wnconvert: fold, split, migrate, inspect and export weight-normalized PyTorch checkpoints and models."""

__version__ = "0.1.0"
