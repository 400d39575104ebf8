"""Texts on a bank: prompt sets, and zero-shot heads that are made of them."""
