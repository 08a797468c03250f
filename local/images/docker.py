"""Images by the user's own Docker, from the same Containerfiles: built where they are missing, and run."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from pathlib import Path

from infra.versions import PYTHON_IMAGE
from local import commands
from local.images import recipes
from local.paths import CHECKOUT, cache_dir
from local.processes import ProcessError
from local.progress import Say, awaited
from local.tools.versions import VLLM_PYTHON_IMAGE

_BUILD_SETTINGS = {
    "DOCKER_BUILDKIT": "1",
    # Attestations make an image an index of several, which clusters' loaders stumble over.
    "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
}


def vllm(say: Say) -> str:
    """The reference of vLLM's CPU build. Raises ProcessError."""
    reference = recipes.vllm_reference(VLLM_PYTHON_IMAGE)
    if not _has_image(reference):
        building = awaited("building the vLLM image (6 GB)", say, usually="3 min")
        with recipes.vllm_packages(say) as packages, building:
            _build(reference, recipes.VLLM_CONTAINERFILE, packages, VLLM_PYTHON_IMAGE)
    return reference


def loraserve(say: Say) -> str:
    """The reference of our own image. Raises ProcessError."""
    reference = recipes.loraserve_reference(PYTHON_IMAGE)
    if not _has_image(reference):
        with awaited("building our own image", say):
            _build(reference, recipes.LORASERVE_CONTAINERFILE, CHECKOUT, PYTHON_IMAGE)
    return reference


def run_in_image(reference: str, command: Sequence[str], folders: Iterable[Path]) -> None:
    """Runs a command in a container as the user of this process, with these folders in it under their own paths."""
    who = [f"--user={os.getuid()}:{os.getgid()}", "--env=HOME=/tmp", "--env=USER=user"]
    mounts = [f"--volume={folder}:{folder}" for folder in folders]
    _docker("run", "--rm", "--network=none", *who, *mounts, reference, *command)


def gateway(network: str) -> IPv4Address:
    """This machine's address in a Docker network. Raises ProcessError where nothing here can listen on it."""
    (inspected,) = json.loads(_docker("network", "inspect", network))
    ranges = inspected["IPAM"]["Config"] or []
    gateways = [config["Gateway"] for config in ranges if "." in config.get("Gateway", "")]
    if not gateways:
        raise ProcessError(f"The Docker network {network} has no IPv4 gateway, at which pods could reach this machine.")
    with socket.socket() as probe:
        try:
            probe.bind((gateways[0], 0))
        except OSError:
            raise ProcessError(
                f"{gateways[0]}, the gateway of the Docker network {network}, is no address of this machine, so pods "
                "cannot reach it there: Docker runs rootless, in a virtual machine or elsewhere. A Docker Engine on this "
                "machine itself is needed."
            ) from None
    return IPv4Address(gateways[0])


def _build(reference: str, containerfile: Path, context: Path, base: str) -> None:
    words = ["build", f"--build-arg=BASE={base}", "--tag", reference, "--file", str(containerfile), str(context)]
    commands.logged(["docker", *words], cache_dir() / "docker.log", env=os.environ | _BUILD_SETTINGS)


def _has_image(reference: str) -> bool:
    return bool(_docker("image", "ls", "--quiet", reference).strip())


def _docker(*arguments: str) -> str:
    if not shutil.which("docker"):
        raise ProcessError("Docker builds the images for a cluster of your own, and there is no `docker` on PATH.")
    return commands.output(["docker", *arguments])
