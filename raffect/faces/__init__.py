"""Faces in people's own pictures and videos: detectors, tracks, crops, and the table of them."""
