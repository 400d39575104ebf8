"""Captions as targets: their rows, splits and vectors, and those of a teacher."""
