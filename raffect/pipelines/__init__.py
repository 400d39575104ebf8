"""Commands that run many stages: the demo and the doctor."""
