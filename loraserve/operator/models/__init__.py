"""What applications' people do with the served models."""
