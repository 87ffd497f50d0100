"""Pages: one HTML file each, which needs nothing else to be read."""
