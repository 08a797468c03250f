"""Container images, with and without Docker."""
