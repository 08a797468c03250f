"""How tests are spread where several run at once."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A module's tests stay together, since they share servers; all end-to-end tests share one local stack."""
    for item in items:
        group = "e2e" if item.path.parent.name == "e2e" else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
