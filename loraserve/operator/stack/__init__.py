"""A stack that stands, what it does, and what is left of one."""
