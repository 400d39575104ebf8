"""Ray of this run: started or joined, private, watched, and ended."""
