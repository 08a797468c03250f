"""A stack before it is there: what its settings give and cost, and whether `up` will work."""
