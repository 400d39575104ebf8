"""Paths, atomic files, records and tables: what everything else reads and writes with."""
