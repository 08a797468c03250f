"""What crosses a boundary between two processes: one schema for each."""
