"""Kubernetes on this machine: a control plane, one real node, KEDA; or a cluster of the user's own."""
