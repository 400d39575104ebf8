"""Formats and files: numpy and pyarrow, neither torch nor Ray."""
