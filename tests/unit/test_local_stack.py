"""What keeps `make up` from starting is said before anything is changed."""

from __future__ import annotations

import os
from collections import namedtuple
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import pytest

from local.cluster import machine, place
from local.cluster.control_plane import ControlPlane
from local.cluster.network import Network
from local.cluster.node import Node
from local.engine import workspace
from local.images import recipes
from local.processes import ProcessError
from local.stack import LocalStack, settings_of
from local.tools import toolchain
from local.tools.toolchain import Tool
from loraserve.planning.setting_sections import Local
from loraserve.planning.settings_parser import parse
from tests.stack_values import stack_values


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def refusal(state: Path) -> str:
    with pytest.raises(ProcessError) as refused:
        LocalStack(state).up()
    assert not state.exists()
    return str(refused.value)


def test_who_is_not_root_is_told_both_ways_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    message = refusal(tmp_path / "state")
    assert "sudo make up" in message
    assert "CONTEXT=" in message


def test_too_little_memory_is_refused_with_how_much_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "_NEEDED_MEMORY_GB", 100_000)
    message = refusal(tmp_path / "state")
    assert "needs about 100000 GB of free memory" in message
    assert "GB are missing" in message


def test_too_little_disk_for_all_of_it_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with nothing: tools and images are added up."""
    monkeypatch.setenv("LORASERVE_CACHE", str(tmp_path / "cache"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(toolchain.shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**9))
    tools = [tool for tool in Tool if tool not in (Tool.KEDA, Tool.KEDA_ADAPTER, *toolchain.OF_TESTS)]
    needed = toolchain.disk_gb(tools) + recipes.IMAGES_DISK_GB
    assert f"needs about {needed:.0f} GB" in (message := refusal(tmp_path / "state"))
    assert f"1.0 GB are free: {needed - 1:.1f} GB are missing" in message
    assert not any((tmp_path / "cache").iterdir())


def test_pods_are_told_of_what_was_made_and_of_the_one_node_still() -> None:
    made = settings_of(
        workspace.shipped_config("local"), "http://10.1.2.3:4566", place.Images("vllm:1", "localhost/ours:2")
    )
    settings = parse(stack_values("local", **made))
    assert settings.local == Local(
        vllm_device="cpu", single_node=True, adapters_in_memory=4, aws_endpoint_url="http://10.1.2.3:4566"
    )
    assert (settings.vllm_image, settings.loraserve_image) == ("vllm:1", "localhost/ours:2")


def test_a_state_that_a_kill_cut_short_is_replaced_by_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "backend" / ".pulumi" / "stacks" / "loraserve"
    folder.mkdir(parents=True)
    state, previous = folder / "local.json", folder / "local.json.bak"
    assert not workspace.restore_checkpoint(tmp_path, "local")  # none was written yet
    previous.write_text('{"version": 3}')
    for cut_short in ("", '{"version": 3, "checkpo'):
        state.write_text(cut_short)
        assert workspace.restore_checkpoint(tmp_path, "local")
        assert state.read_text() == previous.read_text()
    state.write_text('{"version": 4}')
    assert not workspace.restore_checkpoint(tmp_path, "local")
    assert state.read_text() == '{"version": 4}'


def test_attributes_of_a_state_that_a_kill_cut_short_are_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "backend" / ".pulumi" / "stacks" / "loraserve"
    folder.mkdir(parents=True)
    (folder / "local.json").write_text('{"version": 4}')
    short, whole = folder / "local.json.attrs", folder / "local.json.bak.attrs"
    short.touch()
    whole.write_text('{"md5": ""}')
    assert not workspace.restore_checkpoint(tmp_path, "local")
    assert (short.exists(), whole.exists()) == (False, True)


def test_a_node_starts_anew_with_the_images_that_a_later_version_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, boots = Node(tmp_path / "node", ControlPlane(tmp_path / "cluster")), []
    monkeypatch.setattr(Node, "boot", lambda self: boots.append((self.state / "containerd" / "images").read_text()))
    for version in ("first", "first", "second"):
        images = tmp_path / f"containerd-{version}"
        images.mkdir(exist_ok=True)
        (images / "images").write_text(version)
        node.start(images)
    assert boots == ["first", "first", "second"]


def test_a_network_that_this_machine_routes_already_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    first = claim_without_links(monkeypatch, "default")
    second = claim_without_links(monkeypatch, "default", f"{first.pods[7]}", "fe80::/64")
    assert not second.base.overlaps(first.base)


def test_a_network_that_another_stack_has_just_claimed_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    first = claim_without_links(monkeypatch)
    assert not claim_without_links(monkeypatch, links={first.name}).base.overlaps(first.base)


def test_that_every_network_is_taken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.cluster.network._ip_json", lambda *_: [{"dst": "10.0.0.0/8"}])
    with pytest.raises(ProcessError, match="Remove a route"):
        Network.claim()


def claim_without_links(monkeypatch: pytest.MonkeyPatch, *routes: str, links: Collection[str] = ()) -> Network:
    """What is claimed on a machine with these routes, and these links whose routes are not there yet."""

    def ip(*words: str) -> str:
        if words[:2] == ("link", "add") and words[2] in links:
            raise ProcessError("RTNETLINK answers: File exists")
        return ""

    found = {"route": [{"dst": route} for route in routes], "link": [{"ifname": link} for link in links]}
    monkeypatch.setattr("local.cluster.network._ip", ip)
    monkeypatch.setattr("local.cluster.network._ip_json", lambda what, *_: found[what])
    return Network.claim()


def test_an_image_that_another_checkout_has_just_made_is_left_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORASERVE_CACHE", str(tmp_path))
    (tmp_path / "images").mkdir()
    ours, theirs, old = (tmp_path / "images" / f"loraserve-{tag}.tar" for tag in ("aaa", "bbb", "old"))
    for archive in (ours, theirs, old):
        archive.touch()
    os.utime(old, (0, 0))
    recipes.Image("localhost/loraserve:aaa", build=lambda _: None).ensure_archive(lambda _: None)
    assert ours.exists()
    assert theirs.exists()
    assert not old.exists()


@pytest.mark.parametrize("there", [True, False])
def test_the_model_is_woken_where_keda_which_would_is_not_built_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(machine, "are_there", lambda *_: there)
    monkeypatch.setattr(machine, "kubectl", lambda _, *words: called.append(words))
    monkeypatch.setattr(machine.Machine, "_started", lambda _: SimpleNamespace(kubeconfig=tmp_path))
    machine.Machine(tmp_path).wake()
    assert [words[:3] for words in called] == ([] if there else [("scale", "deployment/vllm", "--replicas=1")])
