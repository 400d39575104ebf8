"""Extraction: a manifest becomes a bank; imports Ray."""
