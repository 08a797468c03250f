"""Prometheus, Alertmanager and kube-state-metrics at the chart's versions, as processes of this machine that watch the stack.

What the Prometheus operator makes of the program's objects is written here by hand: which pods are scraped and what their
targets are called. Rules and Alertmanager's configuration are the program's own.
"""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from infra.names import GATEWAY_SELECTOR, KEDA_OPERATOR, METRICS_PORT_NAME, SERVING_NAMESPACE, VLLM_SELECTOR
from local.processes import Process, free_ports
from local.tools.toolchain import OF_MONITORING, Tool, ensure
from loraserve.monitoring import rules
from loraserve.monitoring.metrics import SCRAPE_SECONDS
from loraserve.planning import cost, stack_file
from loraserve.planning.alerting import Alerting

_META = "__meta_kubernetes_"
_COUNTED_KINDS = ("deployments", "nodes", "pods")
"""Of which rules or panels read something."""
_ZONES = 2
"""What idle costs are computed for where nothing runs in any."""


@dataclass(frozen=True)
class Watched:
    """What there is to watch."""

    kubeconfig: Path
    keda: Path
    """A file with the targets of KEDA's operator; it may appear later."""
    stack_file: Path
    region: str


@dataclass(frozen=True)
class Monitoring:
    """The three servers, in one state folder."""

    state: Path

    @property
    def prometheus(self) -> str:
        return f"http://127.0.0.1:{self._ports[Tool.PROMETHEUS]}"

    @property
    def alertmanager(self) -> str:
        return f"http://127.0.0.1:{self._ports[Tool.ALERTMANAGER]}"

    def start(self, watched: Watched, alerting: Alerting) -> None:
        """Starts what does not run; what runs reads its configuration anew. Raises ProcessError."""
        tools = ensure(*OF_MONITORING)
        self.state.mkdir(parents=True, exist_ok=True)
        if not self._running():
            self.stop()
            ports = dict(zip(OF_MONITORING, free_ports(len(OF_MONITORING)), strict=True))
            self._ports_file.write_text(json.dumps(ports))
        self._configure(watched, alerting)
        for tool in reversed(OF_MONITORING):  # Prometheus finds the others
            if process := Process.load(tool, self.state):
                if tool is not Tool.KUBE_STATE_METRICS:
                    process.signal(signal.SIGHUP)
            else:
                process = Process.start(tool, [tools[tool], *self._flags(tool, watched)], self.state)
                process.wait_until(lambda tool=tool: self._is_ready(tool))

    def stop(self) -> None:
        """Does nothing where they do not run."""
        for tool in OF_MONITORING:
            if process := Process.load(tool, self.state):
                process.stop()

    def _running(self) -> bool:
        return all(Process.load(tool, self.state) for tool in OF_MONITORING)

    @property
    def _ports_file(self) -> Path:
        return self.state / "ports.json"

    @property
    def _ports(self) -> dict[str, int]:
        return json.loads(self._ports_file.read_text())

    def _flags(self, tool: Tool, watched: Watched) -> list[str]:
        port = self._ports[tool]
        listen = f"--web.listen-address=127.0.0.1:{port}"
        match tool:
            case Tool.PROMETHEUS:
                return [
                    f"--config.file={self.state / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={self.state / 'data'}",
                    listen,
                ]
            case Tool.ALERTMANAGER:
                config, data = self.state / "alertmanager.yaml", self.state / "alertmanager-data"
                no_peers = "--cluster.listen-address="
                return [f"--config.file={config}", f"--storage.path={data}", listen, no_peers]
            case _:
                return [
                    f"--kubeconfig={watched.kubeconfig}",
                    f"--resources={','.join(_COUNTED_KINDS)}",
                    *(f"--{kind}={value}" for kind, value in (("host", "127.0.0.1"), ("port", port))),
                    *(f"--telemetry-{kind}={value}" for kind, value in (("host", "127.0.0.1"), ("port", 0))),
                ]

    def _is_ready(self, tool: Tool) -> bool:
        path = "healthz" if tool is Tool.KUBE_STATE_METRICS else "-/ready"
        try:
            return httpx.get(f"http://127.0.0.1:{self._ports[tool]}/{path}", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _configure(self, watched: Watched, alerting: Alerting) -> None:
        # Pulumi's SDKs, which these modules bring, take seconds to import.
        from infra.monitoring.alertmanager import SECRETS_FOLDER, configuration
        from infra.monitoring.rules import rule_file

        settings = stack_file.read(watched.stack_file)
        groups = rules.groups(settings.objectives, cost=cost.hourly_cost(settings, watched.region, _ZONES))
        (self.state / "rules.yaml").write_text(yaml.safe_dump(rule_file(groups)))
        told = json.dumps(configuration(alerting)).replace(SECRETS_FOLDER, str(self.state / "secrets"))
        (self.state / "alertmanager.yaml").write_text(told)
        (self.state / "secrets").mkdir(mode=0o700, exist_ok=True)
        for name, secret in alerting.secrets.items():
            (self.state / "secrets" / name).write_text(secret)
        (self.state / "prometheus.yaml").write_text(yaml.safe_dump(self._scraping(watched)))

    def _scraping(self, watched: Watched) -> dict[str, Any]:
        return {
            "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
            "rule_files": ["rules.yaml"],
            "alerting": {
                "alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{self._ports[Tool.ALERTMANAGER]}"]}]}]
            },
            "scrape_configs": [
                _serving(watched.kubeconfig),
                _about_others(KEDA_OPERATOR, file_sd_configs=[{"files": [str(watched.keda)]}]),
                _about_others(
                    Tool.KUBE_STATE_METRICS.value,
                    static_configs=[{"targets": [f"127.0.0.1:{self._ports[Tool.KUBE_STATE_METRICS]}"]}],
                ),
            ],
        }


def _serving(kubeconfig: Path) -> dict[str, Any]:
    """Every port `metrics` of the Services of vLLM and gateway, with the labels that the operator gives."""
    apps = "|".join((VLLM_SELECTOR["app"], GATEWAY_SELECTOR["app"]))
    named = {
        "namespace": "namespace",
        "service": "service_name",
        "pod": "pod_name",
        "container": "pod_container_name",
        "job": "service_name",
        "endpoint": "endpointslice_port_name",
    }
    pods = {"role": "endpointslice", "kubeconfig_file": str(kubeconfig), "namespaces": {"names": [SERVING_NAMESPACE]}}
    return {
        "job_name": "serving",
        "kubernetes_sd_configs": [pods],
        "relabel_configs": [
            {"action": "keep", "source_labels": [f"{_META}service_label_app"], "regex": apps},
            {"action": "keep", "source_labels": [f"{_META}endpointslice_port_name"], "regex": METRICS_PORT_NAME},
            {"action": "drop", "source_labels": [f"{_META}pod_phase"], "regex": "Failed|Succeeded"},
            *({"source_labels": [f"{_META}{source}"], "target_label": label} for label, source in named.items()),
        ],
    }


def _about_others(job: str, **found: Any) -> dict[str, Any]:
    """A target that says namespaces and pods of what it tells about."""
    return {"job_name": job, "honor_labels": True, **found}
