"""A network that one can draw into: a packed network in a page of its own."""
