"""Trained networks as files that need no hwnas."""
