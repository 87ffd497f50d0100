"""The command line: one file per command, and how their words become objects."""
