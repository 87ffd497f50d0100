"""Official benchmark files: downloaded, converted to compact tables, verified."""
