"""Aff-Wild2: its tasks, annotations and importer."""
