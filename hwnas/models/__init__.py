"""Lightning modules and the networks that are not searched."""
