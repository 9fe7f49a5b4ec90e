"""Trained networks for other places: a loop over the list of nodes, a small function an operation.

`source` reads what is exported; each format is a module with `write`. README.md says what they
write and how it is used.
"""
