"""The NAT instance: what it does at every boot, and how `up` knows that nodes get out through it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pulumi

from infra import versions

LIMIT_S = 600
READY = "nat: a node's request came back"
_TOLD_LINES = 20
_INTERVAL_S = 5

_SCRIPT = dedent("""\
    #!/bin/bash
    # Run again from the start until it succeeds.
    set -euo pipefail
    sysctl --quiet --write net.ipv4.ip_forward=1
    nft --file - <<'RULES'
    table ip nat_instance
    delete table ip nat_instance
    table ip nat_instance {
      chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname != "lo" masquerade
      }
    }
    RULES

    # A request as nodes send it: from an address of its own, forwarded and masqueraded.
    ip netns delete node 2>/dev/null || true
    ip netns add node
    ip link add nat-to-node type veth peer name uplink netns node
    ip address add 192.0.2.1/30 dev nat-to-node
    ip link set nat-to-node up
    ip -n node address add 192.0.2.2/30 dev uplink
    ip -n node link set uplink up
    ip -n node route add default via 192.0.2.1
    host=HOST
    address=$(getent ahostsv4 "$host" | awk 'NR == 1 {print $1}')
    ip netns exec node curl --silent --show-error --output /dev/null --connect-timeout 5 --max-time 20 \\
      --resolve "$host:443:$address" "https://$host/"
    ip netns delete node
    echo "READY"
    """)
_UNIT = dedent("""\
    [Unit]
    Description=Way out of the private subnets
    Wants=network-online.target
    After=network-online.target
    StartLimitIntervalSec=0

    [Service]
    Type=oneshot
    RemainAfterExit=yes
    ExecStart=/usr/local/sbin/nat
    Restart=on-failure
    RestartSec=10
    StandardOutput=journal+console
    StandardError=journal+console

    [Install]
    WantedBy=multi-user.target
    """)


def image_parameter() -> str:
    """SSM's name of the image: the EKS AMI of the nodes' release, since Amazon Linux itself has no packet filter's tool."""
    return versions.node_image("arm64", "standard")


def user_data(region: str) -> str:
    """cloud-init's document: one unit, enabled for every boot. Where nodes pull images from is what must answer."""
    script = _SCRIPT.replace("HOST", f"api.ecr.{region}.amazonaws.com").replace("READY", READY)
    files = [
        {"path": "/usr/local/sbin/nat", "permissions": "0755", "content": script},
        {"path": "/etc/systemd/system/nat.service", "content": _UNIT},
    ]
    commands = [["systemctl", "enable", "nat.service"], ["systemctl", "start", "--no-block", "nat.service"]]
    return "#cloud-config\n" + json.dumps({"write_files": files, "runcmd": commands}, indent=1) + "\n"


def proof(name: str, region: str) -> pulumi.ResourceHookBinding:
    """For a route to the instance's network interface: it is neither made nor moved before requests come back."""

    async def answered(route: pulumi.ResourceHookArgs) -> None:
        interface = (route.new_inputs or {})["networkInterfaceId"]
        await asyncio.to_thread(wait, _console_of(interface, region), interface, LIMIT_S)

    hook = pulumi.ResourceHook(name, answered)
    return pulumi.ResourceHookBinding(before_create=[hook], before_update=[hook])


def wait(console: Callable[[], str], interface: str, limit_s: float) -> None:
    """Returns once the console tells that requests come back. Raises TimeoutError with its last lines."""
    deadline = time.monotonic() + limit_s
    while READY not in (printed := console()):
        if time.monotonic() > deadline:
            lines = "\n".join(printed.splitlines()[-_TOLD_LINES:]) or "(nothing yet)"
            raise TimeoutError(
                f"the NAT instance behind {interface} let no request out within {limit_s / 60:.0f} minutes, so no node would "
                f"join. It goes on trying: `pulumi up` waits again, `pulumi up --replace` with its URN makes another. Its "
                f"console ends with:\n{lines}"
            )
        time.sleep(_INTERVAL_S)


def _console_of(interface: str, region: str) -> Callable[[], str]:
    import boto3  # a preview does without it

    ec2: Any = boto3.client("ec2", region_name=region)
    [found] = ec2.describe_network_interfaces(NetworkInterfaceIds=[interface])["NetworkInterfaces"]
    instance = found["Attachment"]["InstanceId"]
    return lambda: ec2.get_console_output(InstanceId=instance, Latest=True).get("Output", "")
