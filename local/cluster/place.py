"""Where the stack's pods run: on a node made on this machine (`local.cluster.machine`) or in a cluster of the user's own
(`local.cluster.user_cluster`). What the rest of the local stack needs to know of either stands here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from local.processes import ProcessError
from local.progress import Say

_NEEDED_MEMORY_GB = 6


@dataclass(frozen=True)
class Images:
    """References of the images that pods run."""

    vllm: str
    loraserve: str


class Place(Protocol):
    """A cluster with a node that takes the serving pod; everything that is made there is gone after `remove`."""

    @property
    def kubeconfig(self) -> Path:
        """Of the cluster. Raises ProcessError."""
        ...

    @property
    def context(self) -> str | None:
        """The context of the user's kubeconfig that was chosen; None where nothing of the user's is used."""

    @property
    def title(self) -> str:
        """What `start` does, in a few words."""
        ...

    @property
    def exists(self) -> bool:
        """Whether an earlier `up` has begun here."""
        ...

    @property
    def running(self) -> bool:
        """Whether the cluster answers."""
        ...

    @property
    def address(self) -> str:
        """This machine's address, as pods reach it. Raises ProcessError."""
        ...

    def check(self) -> None:
        """Raises ProcessError, before anything is changed, where the stack cannot run here."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Stack settings that this place needs."""
        ...

    def prepare(self, say: Say) -> Images:
        """Finds or makes tools and images. Raises ToolchainError."""
        ...

    def start(self, say: Say) -> None:
        """Starts what is missing: then the node takes pods that run the images. Raises ProcessError."""

    def wake(self) -> None:
        """Sees to it that there is a pod of the model, where what would do so is not built yet. Raises ProcessError."""

    def start_scaling(self) -> None:
        """Starts what takes the model to zero and back, built first where it is missing. Raises ProcessError."""

    def revive(self) -> None:
        """Repairs what a crash has stopped, so that pods can be ended as they should be."""

    def run_in_vllm_image(self, command: Sequence[str], folders: Sequence[Path]) -> None:
        """Runs a command in a container that sees these folders under their own paths. Raises ProcessError."""

    def status(self) -> dict[str, str]:
        """Parts, and what each does."""
        ...

    def remove(self) -> list[str]:
        """Undoes all of it, also half of it; returns what is left."""
        ...


def check_memory() -> None:
    """Raises ProcessError where this machine has too little free memory for the stack."""
    memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available_gb = int(memory["MemAvailable"].split()[0]) / 1e6
    if available_gb < _NEEDED_MEMORY_GB:
        raise ProcessError(
            f"The local stack needs about {_NEEDED_MEMORY_GB} GB of free memory and {available_gb:.1f} GB are free: "
            f"{_NEEDED_MEMORY_GB - available_gb:.1f} GB are missing. Stop something, then run the same command again."
        )
