"""What runs beside the model: the adapter catalog and the agent that makes one vLLM serve what is desired."""
