"""What the engine's tests share: an emulated AWS, one world for all modules that deploy, and nothing of it left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from local.engine.cloud import Cloud
from tests.engine.deployed import World


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """For tests of single calls: each makes what it needs, under names that no other takes."""
    with Cloud.start(tmp_path_factory.mktemp("cloud"), die_with_parent=True) as started:
        yield started


@pytest.fixture(scope="session")
def empty_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], World]]:
    """Returns the world that runs, or a new one where something was left behind in it."""
    with ExitStack() as running:
        worlds: list[World] = []

        def find() -> World:
            if not worlds or not worlds[-1].empty:
                running.close()
                worlds.append(running.enter_context(World.run(tmp_path_factory.mktemp("world"))))
            return worlds[-1]

        yield find


@pytest.fixture(scope="module")
def world(empty_world: Callable[[], World]) -> World:
    """Empty at the beginning of each module."""
    return empty_world()
