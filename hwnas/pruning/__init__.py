"""Pruning of Beta-VAEs: which weights go, networks that are really smaller, and a study over many of them."""
