"""`loraserve status`: what every vLLM pod holds, as its agent reports it, in one table."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loraserve.contract.addresses import AGENT_PORT, VLLM_SELECTOR
from loraserve.contract.agent_state import AdapterStatus, AgentState, State
from loraserve.errors import LoraserveError

SELECTOR = ",".join(f"{key}={value}" for key, value in VLLM_SELECTOR.items())
WIDTH_OF_A_FILE = 160
_PRINT_STATE = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{AGENT_PORT}/v1/state').read().decode())"
_STYLES = {State.READY: "green", State.QUARANTINED: "red", State.DRAINING: "dim"}


class StatusUnavailable(LoraserveError):
    """kubectl, the cluster or an agent did not answer."""


@dataclass(frozen=True)
class PodStatus:
    name: str
    state: AgentState | None
    problem: str | None = None
    """Why there is no state."""


def show(namespace: str) -> None:
    """Prints the table. The cluster is the one that kubectl talks to. Raises StatusUnavailable."""
    pods = read(namespace)
    if not pods:
        print(f"No pod of vLLM in namespace {namespace}: it is scaled to zero, or not deployed there.")
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
    console.print(table(pods, now=time.time()))


def read(namespace: str) -> list[PodStatus]:
    """Asks the agent of every pod of vLLM. Raises StatusUnavailable."""
    pods = json.loads(_kubectl("get", "pods", "--selector", SELECTOR, "--output=json", "--namespace", namespace))
    names = sorted(pod["metadata"]["name"] for pod in pods["items"])
    with ThreadPoolExecutor() as together:
        return list(together.map(lambda name: _read_pod(namespace, name), names))


def table(pods: list[PodStatus], now: float) -> Table:
    shown = Table("Pod", "Adapter", "Version", "State", "Last use", header_style="bold")
    for pod in pods:
        for row in _rows(pod, now):
            shown.add_row(*row)
        shown.add_section()
    return shown


def _rows(pod: PodStatus, now: float) -> Iterator[tuple[str, ...]]:
    if not pod.state:
        yield pod.name, "", "", f"[red]{escape(pod.problem or '')}[/]", ""
        return
    yield pod.name, *_summary(pod.state)
    for adapter in pod.state.adapters:
        yield "", adapter.name, adapter.version, _state(adapter), _ago(adapter.last_used, now)


def _summary(state: AgentState) -> tuple[str, ...]:
    slots = f"{state.slots.used} of {state.slots.total} slots" if state.slots else "no slots"
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


def _read_pod(namespace: str, name: str) -> PodStatus:
    try:
        return PodStatus(name, AgentState.model_validate_json(_ask_agent(namespace, name), by_alias=True))
    except StatusUnavailable as error:
        return PodStatus(name, None, str(error))
    except ValidationError:
        return PodStatus(name, None, "its agent is of another version of loraserve than this one")


def _ask_agent(namespace: str, pod: str) -> str:
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}:{AGENT_PORT}/proxy/v1/state"
    try:
        return _kubectl("get", "--raw", path, "--request-timeout=5s")
    except StatusUnavailable:
        # Where a NetworkPolicy keeps the API server from the pod, the kubelet still gets in.
        command = ("python3", "-c", _PRINT_STATE)
        return _kubectl("exec", pod, "--namespace", namespace, "--container=agent", "--", *command)


def _kubectl(*arguments: str) -> str:
    try:
        done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise StatusUnavailable("kubectl is not installed; install it, and set its kubeconfig to the cluster") from None
    if done.returncode:
        raise StatusUnavailable(f"kubectl {arguments[0]}: {done.stderr.strip()}")
    return done.stdout
