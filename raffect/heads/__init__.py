"""Batches of heads: losses, CVaR, SAM, Adam, the loop, and a head on disk; torch, without Ray."""
