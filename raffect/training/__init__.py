"""Training: one batch of heads, runs, sweeps and streams; imports Ray."""
