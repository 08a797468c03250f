"""What an operator types, and what it says of a running stack."""
