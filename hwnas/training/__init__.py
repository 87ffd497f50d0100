"""Training: recipes, networks from scratch, shared weights, the reference model."""
