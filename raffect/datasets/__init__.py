"""Data sets: tasks, manifests of frames, reading pictures, and one importer a data set."""
