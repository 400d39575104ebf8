"""Frozen image towers of CLIP; torch, without Ray."""
