"""One module a command; the only place that imports Ray."""
