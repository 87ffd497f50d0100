"""Hardware costs: measured, from formulas, or from tables."""
