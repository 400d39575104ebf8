"""The encoder: torch and open_clip, no Ray."""
