"""Hardware cost: measured, from formulas, or from tables."""
