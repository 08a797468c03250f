"""Prometheus, Grafana, the GPU metrics exporter, and what they look at: one module per subject."""
