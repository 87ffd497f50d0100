"""Quality estimators."""
