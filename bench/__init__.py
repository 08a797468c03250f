"""What is promised about speed, measured. Run with `make bench`."""
