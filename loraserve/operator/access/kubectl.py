"""The cluster as an operator reaches it: through kubectl, with its contexts and credentials."""

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from loraserve.errors import LoraserveError

FORWARD_SECONDS = 30

context_option = click.option(
    "--context", metavar="NAME", help="A context of your kubeconfig (default: the current one)."
)


class KubectlFailed(LoraserveError):
    """kubectl is not there, or the cluster does not answer."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl on one cluster. Its methods raise KubectlFailed."""

    context: str | None = None

    def run(self, *arguments: str) -> str:
        """What it prints."""
        try:
            done = subprocess.run(self._command(*arguments), capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise _not_installed() from None
        if done.returncode:
            raise KubectlFailed(f"kubectl {arguments[0]}: {_in_short(done.stderr)}")
        return done.stdout

    @contextmanager
    def forward(self, namespace: str, target: str, port: int) -> Iterator[str]:
        """The URL on this machine that reaches a port of `service/NAME` or `pod/NAME`, for as long as it is used."""
        command = self._command("--namespace", namespace, "port-forward", target, f":{port}")
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            try:
                with log.open("wb") as file:
                    process = subprocess.Popen(command, stdout=file, stderr=file)
            except FileNotFoundError:
                raise _not_installed() from None
            try:
                yield _listening(process, log)
            finally:
                process.terminate()
                process.wait()

    def _command(self, *arguments: str) -> list[str]:
        return ["kubectl", *(["--context", self.context] if self.context else []), *arguments]


def _listening(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """The URL, once it is told."""
    deadline = time.monotonic() + FORWARD_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll() is not None  # looked at first: its last words come before its end
        told = log.read_text(errors="replace")
        if address := re.search(r"127\.0\.0\.1:\d+", told):
            return f"http://{address[0]}"
        if ended:
            raise KubectlFailed(f"kubectl port-forward: {_in_short(told)}")
        time.sleep(0.05)
    raise KubectlFailed(f"kubectl port-forward did not begin within {FORWARD_SECONDS} s; look with `loraserve status`")


def _in_short(told: str) -> str:
    """Without its log of every attempt; without a kubeconfig it tries this machine."""
    said = re.sub(r"^[EWI]\d{4} .*\n?", "", told, flags=re.MULTILINE).strip() or told.strip()
    if "localhost:8080" in said:
        return f"{said} No cluster is chosen: `aws eks update-kubeconfig` makes a kubeconfig, KUBECONFIG names one."
    return said


def _not_installed() -> KubectlFailed:
    return KubectlFailed("kubectl is not installed; install it, and set its kubeconfig to the cluster")
