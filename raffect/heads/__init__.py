"""Heads, side by side: losses, CVaR, SAM, Adam, the loop, and a head on disk; torch, without Ray."""
