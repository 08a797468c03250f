"""How an operator's commands reach what they work with: terminal, cluster, gateway, Prometheus, Pulumi."""
