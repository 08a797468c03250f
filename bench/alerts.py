"""Alerts of the running local stack, each by its cause: the seconds until a webhook has them (`make alerts`, half an hour).

Prometheus, Alertmanager and kube-state-metrics run beside the stack as `make dashboard` starts them: the chart's versions,
the program's own rules and routes, but that no condition has to last longer than `--lasting` (30 s). Each scene makes some
causes at once and waits for their alerts.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr

from bench import report
from bench.callers import Callers
from bench.cold_start import let_it_sleep, wait_until_asleep
from bench.on_call import OnCall, on_call
from bench.served import gateway_url
from infra.names import (
    DESIRED_STATE,
    DESIRED_STATE_FILE,
    GATEWAY,
    METRICS_PORT_NAME,
    PROJECT,
    SERVING_NAMESPACE,
    VLLM,
    VLLM_SERVICE,
)
from local.cluster.kubectl import kubectl
from local.models import BASE_NAME
from local.monitoring import Monitoring
from local.processes import Process
from local.stack import LocalStack, console
from local.tools.toolchain import Tool
from loraserve.contract.keys import EVERY_MODEL, create_key
from loraserve.monitoring.rules import Alert, groups
from loraserve.planning.alerting import Alerting
from loraserve.planning.cold_start import FROM_ZERO

_SEATS = 64
"""Sequences that vLLM runs at once."""
_SLOTS = 4
"""So that two more adapters need no other vLLM."""
_BLOCKS = 64
"""Of the KV cache, 128 tokens each: less than so many sequences take."""
_SILENT_S = 75
_TENANTS = 4
_HELD = 1700
"""Requests; two gateways hold 2,000, of one tenant half."""
_LIMIT_S = 420
_SPEC = ("spec", "template", "spec", "containers", 0)


@dataclass(frozen=True)
class Bench:
    stack: LocalStack
    on_call: OnCall
    keys: Sequence[str]
    """Of tenants beside this machine's own."""

    def callers(self) -> Callers:
        return Callers(gateway_url(self.stack), self.stack.key_file.read_text())

    def kubectl(self, *words: str) -> str:
        return kubectl(self.stack.place.kubeconfig, "--namespace", SERVING_NAMESPACE, *words)

    def apply(self, **settings: Any) -> None:
        self.stack.declare(**settings)
        self.stack.up()

    def change(self, kind: str, name: str, path: Sequence[str | int], change: Callable[[Any], Any]) -> Any:
        """Another value there, by hand; returns the one before."""
        before = json.loads(self.kubectl("get", kind, name, "--output", "json"))
        for step in path:
            before = before[step]
        operation = {"op": "replace", "path": "".join(f"/{step}" for step in path), "value": change(before)}
        self.kubectl("patch", kind, name, "--type", "json", "--patch", json.dumps([operation]))
        return before

    @contextmanager
    def changed(self, kind: str, name: str, path: Sequence[str | int], change: Callable[[Any], Any]) -> Iterator[None]:
        """The same for as long as it is used."""
        before = self.change(kind, name, path, change)
        try:
            yield
        finally:
            self.change(kind, name, path, lambda _: before)

    def roll_out(self) -> None:
        self.kubectl("rollout", "status", f"deployment/{VLLM}", "--timeout", "10m")

    @contextmanager
    def no_node_takes_pods(self) -> Iterator[None]:
        nodes = self.kubectl("get", "nodes", "--output", "name").split()
        self.kubectl("cordon", *nodes)
        try:
            yield
        finally:
            self.kubectl("uncordon", *nodes)

    @contextmanager
    def ledger_refused(self) -> Iterator[None]:
        """The gateways' role may write nothing."""
        assert self.stack.cloud
        iam = self.stack.cloud.client("iam")
        (role,) = (each["RoleName"] for each in iam.list_roles()["Roles"] if "-gateway" in each["RoleName"])
        (policy,) = iam.list_role_policies(RoleName=role)["PolicyNames"]
        document = iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
        iam.delete_role_policy(RoleName=role, PolicyName=policy)
        try:
            yield
        finally:
            iam.put_role_policy(RoleName=role, PolicyName=policy, PolicyDocument=json.dumps(document))


def broken(bench: Bench) -> None:
    """Adapters that cannot be served, a key that ends, a document and a scaler that cannot be read."""
    on_call, callers = bench.on_call, bench.callers()
    keys, good = (bench.stack.declared[f"{PROJECT}:{setting}"] for setting in ("gatewayKeys", "adapters"))
    bad = good[0] | {"model": "never-published"}
    on_call.caused("a version that was never published is declared", "AdapterQuarantined")
    on_call.caused("so is a key that ends in two days", "KeyExpires")
    bench.apply(
        adapters=[*good, bad | {"name": "lost"}, bad | {"name": "spare", "fallback": "base"}],
        gatewayKeys=[*keys, _ending_key()],
    )
    on_call.wait("AdapterQuarantined", limit_s=_LIMIT_S)
    on_call.caused("twenty requests for an adapter in quarantine", "GatewayRefusesRequests", "AvailabilityBurnsFast")
    callers.ask("lost", times=20)
    on_call.caused("a request for another whose fallback is the base", "AdapterAnsweredByBase")
    callers.ask("spare", times=3)
    on_call.wait(*on_call.causes, limit_s=_LIMIT_S)
    bench.apply(adapters=good, gatewayKeys=keys)


def documents(bench: Bench) -> None:
    """A desired state, a scaler and a vLLM that cannot be read."""
    on_call = bench.on_call
    on_call.caused("KEDA's triggers name a port where nobody listens", "ScalingFails")
    on_call.caused("the desired state is replaced by half a document", "DocumentRefused", "AgentOutOfSync")
    on_call.caused("vLLM's Service has no port for metrics", "VllmNotScraped")
    with (
        bench.changed("service", VLLM_SERVICE, ("spec", "ports"), _without_metrics),
        bench.changed("scaledobject", VLLM, ("spec", "triggers"), _to_nobody),
        bench.changed("configmap", DESIRED_STATE, ("data", DESIRED_STATE_FILE), lambda text: text[:99]),
    ):
        on_call.wait("ScalingFails", "DocumentRefused", "AgentOutOfSync", "VllmNotScraped", limit_s=_LIMIT_S)


def overload(bench: Bench) -> None:
    """More load than vLLM takes, which has one slot and a small KV cache."""
    on_call, callers = bench.on_call, bench.callers()
    bench.change("deployment", VLLM, (*_SPEC, "args"), _with_little_room)
    bench.roll_out()
    callers.ask(BASE_NAME, times=1)
    on_call.caused("two adapters share one slot, sixteen callers each", "SlotsThrash")
    with callers.streams({"faq": 16, "legal": 16}):
        on_call.wait("SlotsThrash", limit_s=_LIMIT_S)
    full = ("KvCacheSaturated", "RequestsPreempted", "QueueGrows", "FirstTokenBurnsFast")
    on_call.caused("callers of the base, one more every two seconds", *full)
    with callers.streams({BASE_NAME: 80}, one_more_every_s=2):
        on_call.wait(*full, limit_s=_LIMIT_S)


def gone(bench: Bench) -> None:
    """No gateway, and a vLLM that ends as soon as it starts."""
    on_call = bench.on_call
    on_call.caused("vLLM gets a flag that it does not know", "VllmDoesNotAnswer")
    with bench.changed("deployment", VLLM, (*_SPEC, "args"), lambda args: [*args, "--no-such-flag"]):
        on_call.caused("the gateways are scaled to zero", "GatewayDown")
        with bench.changed("deployment", GATEWAY, ("spec", "replicas"), lambda _: 0):
            on_call.wait("GatewayDown", limit_s=_LIMIT_S)
        on_call.wait("VllmDoesNotAnswer", limit_s=_LIMIT_S)
    bench.kubectl("rollout", "status", f"deployment/{GATEWAY}", "--timeout", "5m")


def asleep(bench: Bench) -> None:
    """A node that nobody needs, then requests that wait for one."""
    on_call, callers = bench.on_call, bench.callers()
    with ExitStack() as held:
        on_call.caused("the gateways' role may not write into the bucket", "UsageNotWritten")
        held.enter_context(bench.ledger_refused())
        callers.ask(BASE_NAME, times=20)
        let_it_sleep(bench.stack)
        wait_until_asleep(bench.stack)
        on_call.caused("the model sleeps, its node stays", "GpuNodeIdle")
        on_call.wait("GpuNodeIdle", limit_s=_LIMIT_S)
        on_call.caused("requests for a sleeping model, and no node takes its pod", "GpuNodeDoesNotArrive")
        held.enter_context(bench.no_node_takes_pods())
        on_call.caused(f"{_HELD} requests of {_TENANTS} tenants for a sleeping model", "WaitingRoomNearlyFull")
        held.enter_context(callers.held(BASE_NAME, _HELD, bench.keys))
        on_call.wait("WaitingRoomNearlyFull", "GpuNodeDoesNotArrive", "UsageNotWritten", limit_s=_LIMIT_S)
    callers.ask(BASE_NAME, times=1)


def slow(bench: Bench) -> None:
    """A start from zero that takes longer than the budget."""
    on_call = bench.on_call
    let_it_sleep(bench.stack)
    wait_until_asleep(bench.stack)
    with bench.callers().held(BASE_NAME, 1, bench.keys):
        with bench.no_node_takes_pods():
            time.sleep(FROM_ZERO.high)
        on_call.caused("a node comes after the budget of a start from zero", "ColdStartOverBudget")
        on_call.wait("ColdStartOverBudget", limit_s=_LIMIT_S)


SCENES: Mapping[str, Callable[[Bench], None]] = {
    scene.__name__: scene for scene in (broken, documents, overload, gone, asleep, slow)
}


def _ending_key() -> dict[str, Any]:
    ends = datetime.now(UTC) + timedelta(days=2)
    _, entry = create_key("visitor", (EVERY_MODEL,), None, expires_at=ends.isoformat(timespec="seconds"))
    return entry.model_dump(mode="json", by_alias=True, exclude_none=True)


def _with_little_room(args: list[str]) -> list[str]:
    """One slot for all adapters, and a small KV cache."""
    kept = [arg for arg in args if not arg.startswith("--max-loras=")]
    return [*kept, "--max-loras=1", f"--num-gpu-blocks-override={_BLOCKS}"]


def _to_nobody(triggers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each | {"metadata": each["metadata"] | {"url": "http://127.0.0.1:9/scale"}} for each in triggers]


def _without_metrics(ports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [port | {"name": port["name"].replace(METRICS_PORT_NAME, "unseen")} for port in ports]


def shorten(monitoring: Monitoring, lasting_s: int) -> None:
    """Has no condition last longer before its alert fires; what it is stays the same."""
    file = monitoring.state / "rules.yaml"
    rules = yaml.safe_load(file.read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if rule.get("for", "0s") != "0s"):
        rule["for"] = f"{lasting_s}s"
    file.write_text(yaml.safe_dump(rules))
    prometheus = Process.load(Tool.PROMETHEUS, monitoring.state)
    assert prometheus
    prometheus.signal(signal.SIGHUP)


def main() -> None:
    """Exit code 1 where an alert did not come."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES))
    options.add_argument("--state", type=Path, help="of a stack that stays (default: one that is made and taken down)")
    options.add_argument("--lasting", type=int, default=30, help="seconds that a condition has to last (default: 30)")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder:
        stack = LocalStack(chosen.state or Path(folder) / "state")
        try:
            found = _run(stack, chosen.scenes, chosen.lasting)
        finally:
            if not chosen.state:
                stack.down()
    every = {
        rule.name: rule.lasting for group in groups({}, cost=None) for rule in group.rules if isinstance(rule, Alert)
    }
    seconds = {alert: found.seconds(alert) for alert in found.causes}
    figures = {
        alert: f"{value:.0f} s (lasting {every[alert]} as deployed) after: {found.causes[alert].words}"
        for alert, value in seconds.items()
        if value
    }
    console.print(f"came besides: {', '.join(sorted(found.arrived.keys() - found.causes.keys())) or 'none'}")
    console.print(f"not caused: {', '.join(sorted(every.keys() - found.causes.keys()))}")
    problems = [f"{alert} did not come" for alert, value in seconds.items() if value is None]
    report.show(figures, problems)
    sys.exit(bool(problems))


def _run(stack: LocalStack, scenes: Sequence[str], lasting_s: int) -> OnCall:
    stack.up()
    made = [create_key(f"tenant-{number}", (EVERY_MODEL,), None) for number in range(_TENANTS)]
    own, *_ = stack.declared[f"{PROJECT}:gatewayKeys"]
    entries = [entry.model_dump(mode="json", by_alias=True, exclude_none=True) for _, entry in made]
    with on_call() as listener:
        bench = Bench(stack, listener, [key for key, _ in made])
        adapters = [entry for entry in stack.declared[f"{PROJECT}:adapters"] if entry["name"] in ("faq", "legal")]
        room = [f"--max-num-seqs={_SEATS}"]
        bench.apply(gatewayKeys=[own, *entries], adapters=adapters, vllmExtraArgs=room, adapterSlots=_SLOTS)
        bench.roll_out()
        stack.place.start_scaling()
        monitoring = stack.monitor(Alerting(webhook_url=SecretStr(listener.url)))
        shorten(monitoring, lasting_s)
        time.sleep(_SILENT_S)
        console.print(f"came before any cause: {', '.join(sorted(listener.arrived)) or 'none'}")
        listener.arrived.clear()
        for name in scenes:
            console.print(f"{name}: {SCENES[name].__doc__}")
            SCENES[name](bench)
    return listener


if __name__ == "__main__":
    main()
