"""Pulumi plugins for machines that lack the real ones: small, strict, and only for the types this program emits."""
