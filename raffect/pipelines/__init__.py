"""What strings everything together."""
