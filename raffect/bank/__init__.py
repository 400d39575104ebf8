"""The bank: its format, its proof, and reading features from it."""
