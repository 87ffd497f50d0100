"""Evaluations that are paid for once: journals, the store that all runs share, workers."""
