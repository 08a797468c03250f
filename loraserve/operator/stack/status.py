"""`loraserve status`: what every vLLM pod holds, as its agent reports it; what is declared, where there is no pod."""

import base64
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from typing import Any

from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from loraserve.catalog import versions
from loraserve.catalog.bucket import Bucket, CatalogUnavailable
from loraserve.catalog.versions import VersionId
from loraserve.contract.addresses import (
    AGENT_PORT,
    DESIRED_STATE,
    DESIRED_STATE_FILE,
    GATEWAY_KEYS,
    GATEWAY_KEYS_FILE,
    VLLM,
    VLLM_SELECTOR,
)
from loraserve.contract.agent_state import AdapterStatus, AgentState, State
from loraserve.contract.desired_state import DesiredState
from loraserve.contract.keys import InvalidKeys, Key, KeyRing
from loraserve.errors import LoraserveError
from loraserve.operator.access.kubectl import Kubectl, KubectlFailed
from loraserve.vllm_plugins.gpu_share import LOWERED

SELECTOR = ",".join(f"{key}={value}" for key, value in VLLM_SELECTOR.items())
_ANSWER_SECONDS = 5
_START_BYTES = 200_000
"""Of a log: what vLLM writes at its start."""
_FROM_HERE = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A port of this machine is no business of a proxy."""
_SOON = timedelta(days=14)
"""Time to make a key, have it reviewed and bring it to its tenant."""
_STYLES = {State.READY: "green", State.QUARANTINED: "red", State.DRAINING: "dim", State.ON_DEMAND: "dim"}


@dataclass(frozen=True)
class PodStatus:
    name: str
    state: AgentState | None
    problem: str | None = None
    """Why there is no state."""
    ended: str | None = None
    """What vLLM said last where it has ended with an error, and was started again."""
    lowered: str | None = None
    """What vLLM says of a card that has less free memory than its share."""

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        state = self.state and self.state.model_dump(mode="json", by_alias=True)
        return {
            "name": self.name,
            "state": state,
            "problem": self.problem,
            "ended": self.ended,
            "lowered": self.lowered,
        }


@dataclass(frozen=True)
class Declared:
    """A version that the stack declares, and whether its bytes are in the bucket."""

    name: str
    version: str
    problem: str | None
    """Why they cannot be served; None: they are there, as they were published."""

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "version": self.version, "published": self.problem is None, "problem": self.problem}


@dataclass(frozen=True)
class Status:
    pods: list[PodStatus]
    declared: list[Declared] | None
    """Asked for where there is no pod. None: nothing is deployed there."""
    key_warnings: list[str]
    """API keys that have expired, or soon do."""

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "pods": [pod.plain() for pod in self.pods],
            "declared": self.declared and [version.plain() for version in self.declared],
            "keyWarnings": self.key_warnings,
        }


def read(kubectl: Kubectl, namespace: str) -> Status:
    """Asks the agent of every pod of vLLM. Raises KubectlFailed."""
    pods = json.loads(kubectl.run("get", "pods", "--selector", SELECTOR, "--output=json", "--namespace", namespace))
    ended = {pod["metadata"]["name"]: _last_error(pod) for pod in pods["items"]}
    with ThreadPoolExecutor() as together:
        asked = together.map(lambda name: _read_pod(kubectl, namespace, name), sorted(ended))
        found = [replace(pod, ended=ended[pod.name]) for pod in asked]
    warnings = _key_warnings(kubectl, namespace, datetime.now(UTC))
    return Status(found, None if found else _read_declared(kubectl, namespace), warnings)


def pods_table(pods: list[PodStatus]) -> Table:
    shown, now = Table("Pod", "Adapter", "Version", "State", "Last use", header_style="bold"), time.time()
    for pod in pods:
        for row in _rows(pod, now):
            shown.add_row(*row)
        shown.add_section()
    return shown


def declared_table(declared: list[Declared]) -> Table:
    shown = Table("Model", "Version", "In the bucket", header_style="bold")
    for version in declared:
        problem = f"[red]{escape(version.problem)}[/]" if version.problem else "[green]as published[/]"
        shown.add_row(version.name, version.version, problem)
    return shown


def _last_error(pod: dict[str, Any]) -> str | None:
    """The line of vLLM's log that says why it ended: its last error, else its last line."""
    containers = pod.get("status", {}).get("containerStatuses") or []
    states = [each.get("lastState", {}) | each.get("state", {}) for each in containers if each["name"] == VLLM]
    ended = states[0].get("terminated") if states else None
    if not ended or not ended.get("exitCode"):
        return None
    lines = [line.strip() for line in ended.get("message", "").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or [f"exit code {ended['exitCode']}"])[-1]


def _lowered(kubectl: Kubectl, namespace: str, name: str) -> str | None:
    """Told at its start. Who may not read logs is not told."""
    beginning = ("--container", VLLM, f"--limit-bytes={_START_BYTES}")
    try:
        log = kubectl.run("logs", f"pod/{name}", "--namespace", namespace, *beginning)
    except KubectlFailed:
        return None
    said = re.search(rf"\S+ has .*{LOWERED}.*", log)
    return said[0] if said else None


def _rows(pod: PodStatus, now: float) -> Iterator[tuple[str, ...]]:
    if pod.ended:
        yield pod.name, "", "", f"[red]vLLM ended: {escape(pod.ended)}[/]", ""
    if pod.lowered:
        yield pod.name, "", "", f"[yellow]{escape(pod.lowered)}[/]", ""
    if not pod.state:
        yield pod.name, "", "", f"[red]{escape(pod.problem or '')}[/]", ""
        return
    yield pod.name, *_summary(pod.state)
    for adapter in pod.state.adapters:
        yield "", adapter.name, adapter.version, _state(adapter), _ago(adapter.last_used, now)


def _summary(state: AgentState) -> tuple[str, ...]:
    slots = f"{state.slots.used} of {state.slots.total} slots" if state.slots else "no slots"
    waiting = sum(adapter.state is State.ON_DEMAND for adapter in state.adapters)
    slots += f", {waiting} on demand" if waiting else ""
    problem = f"; [red]{escape(state.problem)}[/]" if state.problem else ""
    return slots, "", f"{'takes requests' if state.ready else 'takes no requests yet'}{problem}", ""


def _state(adapter: AdapterStatus) -> str:
    style = _STYLES.get(adapter.state, "yellow")
    return f"[{style}]{adapter.state}[/]" + (f": {escape(adapter.reason)}" if adapter.reason else "")


def _ago(moment: float | None, now: float) -> str:
    if moment is None:
        return "never"
    seconds = max(0.0, now - moment)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _key_warnings(kubectl: Kubectl, namespace: str, now: datetime) -> list[str]:
    """What `read` warns of. Who may not read the Secret, which holds digests only, is not warned."""
    secret = ("get", "secret", GATEWAY_KEYS, "--namespace", namespace, "--ignore-not-found", "--output=json")
    try:
        found = kubectl.run(*secret)
        keys = (
            KeyRing.parse(base64.b64decode(json.loads(found)["data"][GATEWAY_KEYS_FILE])).keys if found.strip() else ()
        )
    except (KubectlFailed, InvalidKeys):
        return []
    return [_key_warning(key, key.expires_at, now) for key in keys if key.expires_at and key.expires_at < now + _SOON]


def _key_warning(key: Key, end: datetime, now: datetime) -> str:
    verb = "expired" if end <= now else "expires"
    return f"Key {key.id} of {key.tenant} {verb} on {end.astimezone(UTC):%Y-%m-%d %H:%M} UTC: add a new one with `loraserve key {key.tenant}`."


def _read_pod(kubectl: Kubectl, namespace: str, name: str) -> PodStatus:
    """By port-forward, which gets in where a NetworkPolicy keeps the API server out, and needs no right to a shell."""
    try:
        with kubectl.forward(namespace, f"pod/{name}", AGENT_PORT) as agent:
            answer = _FROM_HERE.open(f"{agent}/v1/state", timeout=_ANSWER_SECONDS).read()
        state = AgentState.model_validate_json(answer, by_alias=True)
        return PodStatus(name, state, lowered=_lowered(kubectl, namespace, name))
    except KubectlFailed as error:
        return PodStatus(name, None, str(error))
    except (OSError, HTTPException):
        return PodStatus(name, None, "its agent does not answer (yet); look into its log")
    except ValidationError:
        return PodStatus(name, None, "its agent is of another version of loraserve than this one")


def _read_declared(kubectl: Kubectl, namespace: str) -> list[Declared] | None:
    """What pods would serve. Raises KubectlFailed, InvalidDesiredState."""
    maps = ("get", "configmap", DESIRED_STATE, "--namespace", namespace, "--ignore-not-found", "--output=json")
    found = kubectl.run(*maps)
    if not found.strip():
        return None
    desired = DesiredState.parse(json.loads(found)["data"][DESIRED_STATE_FILE])
    wanted = [
        (adapter.name, adapter.version, VersionId.of_adapter(adapter), adapter.digest) for adapter in desired.adapters
    ]
    if mirror := desired.base.mirror:
        base = desired.base.name
        wanted.insert(0, (base, mirror.version, VersionId.of_base(base, mirror.version), mirror.digest))
    try:
        bucket = Bucket(desired.bucket, desired.region)
    except CatalogUnavailable as error:
        return [Declared(name, version, str(error)) for name, version, *_ in wanted]
    with ThreadPoolExecutor() as together:
        problems = together.map(lambda each: _problem(bucket, each[2], each[3]), wanted)
        return [Declared(name, version, problem) for (name, version, *_), problem in zip(wanted, problems, strict=True)]


def _problem(bucket: Bucket, id: VersionId, digest: str) -> str | None:
    """Why this version cannot be served. Its manifest is uploaded last: where it is, the files are."""
    try:
        versions.pinned_manifest(bucket, id, digest)
    except LoraserveError as error:
        return str(error)
    return None
