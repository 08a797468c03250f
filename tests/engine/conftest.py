"""What the engine's tests share: a world of their own for each module, and nothing of it left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.deployed import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    started = World.start(tmp_path_factory.mktemp("world"))
    yield started
    started.stop()
