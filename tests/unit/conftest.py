"""What every unit test takes for granted: no server is a public one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import certifi
import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.unit.gateway_world import World

# A busy machine is no reason to fail.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_END = "-----END CERTIFICATE-----\n"


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of all public authorities httpx trusts only one: reading them took every new client 40 ms."""
    bundle = tmp_path_factory.mktemp("authorities") / "ca.pem"
    bundle.write_text(Path(certifi.where()).read_text().partition(_END)[0] + _END)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certifi, "where", lambda: str(bundle))
        yield


@pytest.fixture
def at(tmp_path: Path) -> Iterator[World]:
    """A gateway before its start, and one pod that has faq@v1; tests declare and start."""
    from tests.unit.gateway_world import world

    with world(tmp_path) as made:
        made.pods[0].holds("faq@v1")
        yield made


@pytest.fixture
def serving(at: World) -> World:
    """The same gateway, started, with faq ready."""
    from tests.unit.gateway_world import adapter

    at.start(adapter())
    at.wait_for_status("ready")
    return at
