"""Faults on purpose, on the local stack under load: what each one costs its clients, and for how long."""
