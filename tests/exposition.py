"""What a process says at /metrics."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def exported(text: str) -> dict[str, set[str]]:
    """Names of samples, each with its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found
