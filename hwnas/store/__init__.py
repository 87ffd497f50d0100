"""Evaluations, each computed once: a run's archive, the store of all runs, workers."""
