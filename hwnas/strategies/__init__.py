"""Search strategies: one file per method, numpy, cma and pymoo only."""
