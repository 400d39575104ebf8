"""Recognising classes by texts: with features as they are, and through trained heads."""
