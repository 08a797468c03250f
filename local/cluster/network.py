"""Addresses for one real node: a private range of this machine's that nobody else routes, and the link into the node.

    link      10.N.0.0/30     .1 this machine (API server, emulated AWS), .2 the node
    pods      10.N.64.0/18    routed from this machine through the link
    services  10.N.128.0/18   likewise; the node's kube-proxy turns them into pods

The node has a network namespace of its own, so nothing that this machine had is touched: it gets one bridge more, on whose
address its servers listen, and the routes through it, until `disconnect`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from local import commands
from local.processes import ProcessError

_CANDIDATES = range(213, 250)
NODE_INTERFACE = "eth0"


@dataclass(frozen=True)
class Network:
    """The addresses of one node; `base` is its /16."""

    base: IPv4Network

    @classmethod
    def claim(cls) -> Network:
        """Connects one that overlaps no route of this machine. Raises ProcessError where all are taken."""
        taken = _routed()
        for candidate in _CANDIDATES:
            network = cls(IPv4Network(f"10.{candidate}.0.0/16"))
            # Of two stacks that claim it at once, the kernel gives the link's name to one.
            if not any(network.base.overlaps(other) for other in taken) and network.connect():
                return network
        raise ProcessError(
            f"No private network is free: every 10.{_CANDIDATES.start}.0.0/16 to 10.{_CANDIDATES.stop - 1}.0.0/16 is "
            "routed already (`ip route`). Remove a route, such as that of a VPN."
        )

    @property
    def host(self) -> IPv4Address:
        """This machine, as the node and its pods see it."""
        return self.base[1]

    @property
    def node(self) -> IPv4Address:
        return self.base[2]

    @property
    def pods(self) -> IPv4Network:
        return list(self.base.subnets(new_prefix=18))[1]

    @property
    def services(self) -> IPv4Network:
        return list(self.base.subnets(new_prefix=18))[2]

    @property
    def api_service(self) -> IPv4Address:
        """The `kubernetes` Service, which gets the first address."""
        return self.services[1]

    @property
    def dns_service(self) -> IPv4Address:
        return self.services[10]

    @property
    def name(self) -> str:
        """Tells this stack's things from those of others on this machine."""
        return f"loraserve-{self.base.network_address.packed[1]}"

    @property
    def host_interface(self) -> str:
        """The link's end on this machine; at most 15 characters, with one more for its ports."""
        return self.name

    def connect(self) -> bool:
        """Makes the link's end on this machine, so that servers can listen on its address; it stays until `disconnect`.

        A bridge without ports: it lives on while the node is away, and the node's end is plugged in when it starts.
        Returns False where it is there already.
        """
        try:
            _ip("link", "add", self.host_interface, "type", "bridge")
        except ProcessError:
            if _exists(self.host_interface):
                return False
            raise
        _ip("address", "add", f"{self.host}/30", "dev", self.host_interface)
        _ip("link", "set", self.host_interface, "up")
        return True

    def plug_in(self, pid: int) -> None:
        """Moves the other end into the network namespace of process `pid` and routes pods and services through it."""
        near, far = self._port, f"{self.host_interface}f"
        _delete(near)
        _ip("link", "add", near, "type", "veth", "peer", "name", far)
        _ip("link", "set", near, "master", self.host_interface, "up")
        _ip("link", "set", far, "netns", str(pid), "name", NODE_INTERFACE)
        for network in (self.pods, self.services):
            _ip("route", "replace", str(network), "via", str(self.node), "dev", self.host_interface)

    def disconnect(self) -> None:
        """Removes what `connect` made, and with it its routes. Does nothing where it is gone."""
        for link in (self._port, self.host_interface):
            _delete(link)

    def left_behind(self) -> list[str]:
        """Links and control groups of this name: none once it is disconnected and its node removed."""
        links = Path("/sys/class/net").glob(f"{self.host_interface}*")
        groups = Path("/sys/fs/cgroup").glob(f"**/{self.name}")
        return [*(f"link {link.name}" for link in links), *(f"cgroup {group}" for group in groups)]

    @property
    def _port(self) -> str:
        """The link into the node. A dead node's namespace, and so the link, may be held by its unfinished connections."""
        return f"{self.host_interface}n"


def _exists(link: str) -> bool:
    return any(found["ifname"] == link for found in _ip_json("link"))


def _delete(link: str) -> None:
    """Links into a node's namespace go by themselves once the node is dead, at any moment."""
    if not _exists(link):
        return
    try:
        _ip("link", "delete", link)
    except commands.CommandError:
        if _exists(link):
            raise


def _routed() -> list[IPv4Network]:
    routes = _ip_json("route", "show", "table", "all")
    return [IPv4Network(route["dst"], strict=False) for route in routes if _is_network(route.get("dst", ""))]


def _is_network(destination: str) -> bool:
    return destination[:1].isdigit() and ":" not in destination


def _ip_json(*arguments: str) -> list[dict[str, Any]]:
    return json.loads(_ip("-json", *arguments) or "[]")


def _ip(*arguments: str) -> str:
    return commands.output(["ip", *arguments])
