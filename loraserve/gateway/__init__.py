"""The door in front of vLLM: keys, aliases, the waiting room, fallback and per-adapter metrics. Stateless."""
