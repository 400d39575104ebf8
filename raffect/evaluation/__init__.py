"""Judging heads, and learning from few labels."""
