"""`loraserve preflight`: will `up` work? This machine is looked at here; the rest is what the program itself checks before its
first resource, run by `pulumi preview` with the stack's own settings, secrets, account, region and role. Nothing is changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import urllib3

from loraserve.contract.checks import REPORT_VARIABLE, Check, CheckVerdict, from_json
from loraserve.errors import LoraserveError
from loraserve.planning import stack_file
from loraserve.planning.stack_settings import Settings

ASK_ADDRESS = "https://checkip.amazonaws.com"
"""AWS' own: answers with the address from which it was asked."""
_SECONDS, _TOOL_SECONDS = 10, 60
_SHOWN_LINES = 12


def run(stack: str, folder: Path, address: str | None) -> Iterator[Check]:
    """The checks, each as it ends; `folder` has the stack's files, `address` is this machine's as others see it."""
    settings = _settings(folder / f"Pulumi.{stack}.yaml")
    yield from _machine(settings, address)
    yield from _program(stack, folder)


def _settings(file: Path) -> Settings | None:
    """None where they are not valid: the program says why."""
    try:
        return stack_file.read(file)
    except LoraserveError:
        return None


def _machine(settings: Settings | None, address: str | None) -> Iterator[Check]:
    if settings and settings.loraserve_image:
        yield Check("docker", CheckVerdict.SKIP, f"not needed: {settings.loraserve_image} is built already")
    else:
        why = "the stack builds its image with it: install Docker with buildx, or set loraserveImage to what another stack built"
        yield _tool("docker", ["docker", "buildx", "version"], why)
    yield _tool("aws CLI", ["aws", "--version"], "the kubeconfig asks it for tokens: install it (version 2)")
    if settings:
        yield _reach(settings, address)


def _tool(name: str, command: Sequence[str], why: str) -> Check:
    if not shutil.which(command[0]):
        return Check(name, CheckVerdict.FAIL, f"{command[0]} is not installed; {why}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        return Check(name, CheckVerdict.FAIL, f"`{' '.join(command)}` fails ({said}); {why}")
    return Check(name, CheckVerdict.PASS, (done.stdout or done.stderr).strip().splitlines()[0])


def _reach(settings: Settings, given: str | None) -> Check:
    """`up` waits five minutes for an API server that does not take this machine's address."""
    name, cidrs = "own address", settings.public_access_cidrs
    if not cidrs:
        return Check(name, CheckVerdict.SKIP, "the API is private: run `up` from within privateAccessCidrs")
    if any(cidr.prefixlen == 0 for cidr in cidrs):
        return Check(name, CheckVerdict.PASS, "publicAccessCidrs admits every address")
    try:
        own = ip_address(given or _asked_of_aws())
    except (ValueError, urllib3.exceptions.HTTPError) as error:
        return Check(name, CheckVerdict.WARN, f"not known ({error}): name it with --address")
    if any(own in cidr for cidr in cidrs):
        return Check(name, CheckVerdict.PASS, f"{own} is within publicAccessCidrs")
    listed = ", ".join(map(str, cidrs))
    return Check(
        name,
        CheckVerdict.FAIL,
        f"{own} is not within publicAccessCidrs ({listed}): add {own}/32, else `up` waits in vain",
    )


def _asked_of_aws() -> str:
    return urllib3.request("GET", ASK_ADDRESS, timeout=_SECONDS, retries=False).data.decode().strip()


def _program(
    stack: str, folder: Path, call: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run
) -> Iterator[Check]:
    if not shutil.which("pulumi"):
        yield Check(
            "pulumi",
            CheckVerdict.FAIL,
            "not installed, so neither state nor account can be checked: https://www.pulumi.com/docs/iac/download-install",
        )
        return
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.json"
        command = ["pulumi", "preview", "--stack", stack, "--non-interactive", "--color", "never"]
        done = call(
            command,
            cwd=folder,
            env=os.environ | {REPORT_VARIABLE: str(report)},
            capture_output=True,
            text=True,
            check=False,
        )
        if report.exists():
            yield Check("state", CheckVerdict.PASS, "its backend answers, its secrets can be read")
            yield from from_json(report.read_text(encoding="utf-8"))
            return
    told = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    yield Check(
        "state",
        CheckVerdict.FAIL,
        "the program could not be run: log in to the state's backend, give its secrets provider what it needs, `pulumi stack init` a "
        "new stack, `pulumi install` its packages; Pulumi said:\n  " + "\n  ".join(told[-_SHOWN_LINES:]),
    )
