"""The NAT instance: what it does at every boot, and that nothing is sent through it before it has shown that it works."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from infra import nat, versions
from tests.unit.declared import Program, declare


@pytest.fixture(scope="module")
def dev() -> Program:
    return declare("dev")


@pytest.fixture(scope="module")
def files(dev: Program) -> dict[str, str]:
    """What cloud-init writes, by path."""
    document = dev.one("ec2/instance:Instance").inputs["userData"]
    assert document.startswith("#cloud-config\n")
    return {file["path"]: file["content"] for file in json.loads(document.partition("\n")[2])["write_files"]}


def test_forwarding_comes_first_and_without_a_package(files: dict[str, str]) -> None:
    script = files["/usr/local/sbin/nat"]
    assert script.index("ip_forward=1") < script.index("masquerade") < script.index("curl") < script.index(nat.READY)
    assert not any(tool in script for tool in ("dnf", "yum", "rpm"))
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_it_is_tried_again_at_every_boot_until_it_works(files: dict[str, str]) -> None:
    unit = files["/etc/systemd/system/nat.service"]
    assert "Restart=on-failure" in unit
    assert "StartLimitIntervalSec=0" in unit
    assert "WantedBy=multi-user.target" in unit


def test_a_burst_of_image_pulls_is_not_throttled(dev: Program) -> None:
    assert dev.one("ec2/instance:Instance").inputs["creditSpecification"] == {"cpuCredits": "unlimited"}


def test_its_image_is_that_of_the_nodes_release_and_is_raised_with_it(dev: Program) -> None:
    _, date = versions.NODE_RELEASE.split("-")
    assert nat.image_parameter().endswith(f"-{versions.KUBERNETES}-v{date}/image_id")
    instance = dev.one("ec2/instance:Instance")
    assert instance.ignore_changes == []
    assert not instance.delete_before_replace
    assert instance.replace_on_changes == ["#initerror"]


def test_every_route_through_it_waits_for_its_proof_and_nodes_wait_for_the_routes(dev: Program) -> None:
    routes = [route for route in dev.of_type("ec2/route:Route") if "networkInterfaceId" in route.inputs]
    assert len(routes) == 2
    for route in routes:
        assert route.hooks == ["loraserve-dev-nat", "loraserve-dev-nat"]
        for nodes in dev.of_type("eks/nodeGroup:NodeGroup"):
            assert route.urn in nodes.depends_on


def test_a_nat_gateway_needs_no_proof() -> None:
    assert not any(route.hooks for route in declare("dev", nat="gateway").of_type("ec2/route:Route"))


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat, "_INTERVAL_S", 0)


def console(*printed: str) -> Any:
    """Prints this, one text a look; the last one from then on."""

    def looks() -> Iterator[str]:
        yield from printed
        while True:
            yield printed[-1]

    remaining = looks()
    return lambda: next(remaining)


def test_the_wait_ends_with_the_line_that_proves_it(no_pause: None) -> None:
    nat.wait(console("", "booting", f"[  41.2] nat[812]: {nat.READY}"), "eni-1", limit_s=60)


def test_without_it_up_fails_with_the_last_lines_of_the_console(no_pause: None) -> None:
    lines = "\n".join(["kernel", *map(str, range(30)), "curl: (28) Connection timed out"])
    with pytest.raises(TimeoutError, match=r"let no request out.*`pulumi up` waits again") as told:
        nat.wait(console(lines), "eni-1", limit_s=0.01)
    assert str(told.value).endswith("29\ncurl: (28) Connection timed out")
    assert "kernel" not in str(told.value)
