"""What all tests share."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """All that is loaded stays, and what a program under mocks leaves is soon nobody's: looking through it took a third of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
