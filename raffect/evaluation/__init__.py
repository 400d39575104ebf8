"""Judging trained heads."""
