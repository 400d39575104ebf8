"""Heads, and encoders with heads, as files that other tools read."""
