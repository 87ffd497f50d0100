"""Search strategies: one file per method, numpy and pymoo only."""
