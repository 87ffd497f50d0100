"""A run's folder: what it says, what goes into it, and what is shown meanwhile."""
