"""The sidecar that makes one vLLM hold exactly the adapters that are desired."""
