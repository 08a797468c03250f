"""What publishers do: rows, training, the gate, the bucket."""
