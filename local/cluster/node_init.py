"""Process 1 of a real node: makes the node's private file system, starts its services, keeps them running, reaps.

Runs in namespaces of its own (mounts, network, process ids), made by `local.cluster.node`; needs nothing but the standard
library. When it ends, the kernel ends every process of the node and drops every mount.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_RESTART_PAUSE_S = 1.0


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    state = Path(plan["state"])
    _make_file_system(state)
    _make_cgroup(plan["cgroup"])
    _configure_network(plan["address"], plan["gateway"], plan["interface"])
    services = {name: _start(state, name, command) for name, command in plan["services"].items()}
    (state / "started").touch()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        pid, _ = os.wait()
        for name, process in services.items():
            if process.pid == pid:
                time.sleep(_RESTART_PAUSE_S)
                services[name] = _start(state, name, plan["services"][name])


def _make_file_system(state: Path) -> None:
    """/run and /var/log start empty, as after a boot; what is written below /var/lib stays in the node's folder."""
    _run("mount", "--make-rshared", "/")  # the kubelet passes mounts on into pods
    for folder in ("/run", "/var/log"):
        _run("mount", "-t", "tmpfs", "tmpfs", folder)
    upper, work = state / "var-lib", state / "var-lib.work"
    for folder in (upper, work):
        folder.mkdir(exist_ok=True)
    _run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/var/lib,upperdir={upper},workdir={work}", "/var/lib")


def _make_cgroup(name: str) -> None:
    """One group below which all pods live, in every hierarchy (cgroup v1) or in the only one (v2)."""
    root = Path("/sys/fs/cgroup")
    hierarchies = [root] if (root / "cgroup.controllers").exists() else list(root.iterdir())
    for hierarchy in hierarchies:
        if not hierarchy.is_symlink():
            (hierarchy / name).mkdir(exist_ok=True)


def _configure_network(address: str, gateway: str, interface: str) -> None:
    while subprocess.run(["ip", "link", "show", interface], capture_output=True).returncode:
        time.sleep(0.02)  # the link is plugged in from outside
    for link in ("lo", interface):
        _run("ip", "link", "set", link, "up")
    _run("ip", "address", "add", address, "dev", interface)
    _run("ip", "route", "add", "default", "via", gateway)
    for name in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        setting = Path("/proc/sys", name)
        if setting.exists():
            setting.write_text("1")


def _start(state: Path, name: str, command: list[str]) -> subprocess.Popen[bytes]:
    with (state / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` failed: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
