"""What runs inside vLLM's own process; it imports nothing of ours."""
