"""Drawn faces in Aff-Wild2's layout."""
