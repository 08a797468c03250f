"""Is a version good enough to be released: its answers against those of the base and of what is in production."""
