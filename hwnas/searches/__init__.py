"""A search: the problem, the loop, what was found, and how far that is from the best there is."""
