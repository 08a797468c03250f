"""What all tests share."""

from __future__ import annotations

import gc

# To look through all that is loaded, which stays, and through what a program under mocks leaves took a third of the time.
gc.set_threshold(100_000, 50, 100)


def pytest_collection_finish() -> None:
    gc.freeze()
