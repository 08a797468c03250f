"""Prometheus, Alertmanager and kube-state-metrics of the local stack, with stand-ins: what they are given, how they start and end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from pydantic import SecretStr

from infra.monitoring.rules import rule_file
from local import monitoring
from local.cluster.user_cluster import UserCluster
from local.monitoring import Monitoring, Watched
from local.paths import CHECKOUT
from local.processes import Process, ProcessError
from local.stack import LocalStack
from local.tools.toolchain import OF_MONITORING
from loraserve.monitoring import rules
from loraserve.monitoring.metrics import SCRAPE_SECONDS
from loraserve.monitoring.rules import Group, Record
from loraserve.planning.alerting import Alerting

SERVER = f"""#!{sys.executable} -SE
import signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ("/-/ready", "/healthz") else 404)
        self.end_headers()
flags = dict(word.split("=", 1) for word in sys.argv[1:])
host, port = flags.get("--web.listen-address", f"{{flags.get('--host')}}:{{flags.get('--port')}}").split(":")
if "--port" not in flags:
    signal.signal(signal.SIGHUP, lambda *_: print("reads its configuration anew", flush=True))
HTTPServer((host, int(port)), Ready).serve_forever()
"""
ALERTING = Alerting(webhook_url=SecretStr("https://alerts.example/secret"))


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    (tmp_path / "Pulumi.yaml").write_text((CHECKOUT / "Pulumi.yaml").read_text())
    stack_file = tmp_path / "Pulumi.local.yaml"
    shipped = yaml.safe_load((CHECKOUT / "Pulumi.local.yaml").read_text())
    shipped["config"]["loraserve:chatTemplateFile"] = str(CHECKOUT / shipped["config"]["loraserve:chatTemplateFile"])
    shipped["config"]["loraserve:objectives"] = {"loraserve/tiny-mistral": {"firstTokenSeconds": 0.05}}
    stack_file.write_text(yaml.safe_dump(shipped))
    return Watched(tmp_path / "kubeconfig", tmp_path / "keda.json", stack_file, "eu-central-1")


@pytest.fixture
def started(tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> Iterator[Monitoring]:
    server = tmp_path / "server"
    server.write_text(SERVER)
    server.chmod(0o755)
    monkeypatch.setattr(monitoring, "ensure", lambda *tools: dict.fromkeys(tools, server))
    servers = Monitoring(tmp_path / "state")
    servers.start(watched, ALERTING)
    yield servers
    servers.stop()


def test_they_start_read_their_configuration_anew_and_end(started: Monitoring, watched: Watched) -> None:
    def processes() -> list[Process | None]:
        return [Process.load(tool, started.state) for tool in OF_MONITORING]

    first = processes()
    assert all(
        httpx.get(f"{url}/-/ready", trust_env=False).is_success for url in (started.prometheus, started.alertmanager)
    )
    started.start(watched, ALERTING)
    assert processes() == first
    started.stop()
    assert processes() == [None] * len(OF_MONITORING)
    assert not any(process and process.running for process in first)


def test_they_are_given_the_programs_rules_and_receivers(started: Monitoring) -> None:
    told = yaml.safe_load((started.state / "rules.yaml").read_text())
    shared = rule_file(rules.groups({}, cost=None))["groups"]
    own: tuple[Any, ...] = ("loraserve-cost", "loraserve-objectives")
    assert [group for group in told["groups"] if group["name"] not in own] == [
        group for group in shared if group["name"] not in own
    ]
    bucket = Record(
        "loraserve:objective:first_token_bucket:own", "vector(1)", {"model": "loraserve/tiny-mistral", "le": "0.05"}
    )
    (expected,) = rule_file([Group("own", (bucket,))])["groups"][0]["rules"]
    assert expected in next(group for group in told["groups"] if group["name"] == "loraserve-objectives")["rules"]
    receivers = yaml.safe_load((started.state / "alertmanager.yaml").read_text())["receivers"]
    (webhook,) = (each["webhook_configs"][0] for each in receivers if "webhook_configs" in each)
    assert Path(webhook["url_file"]).read_text() == "https://alerts.example/secret"
    assert Path(webhook["url_file"]).is_relative_to(started.state)


def test_they_look_as_often_as_in_the_cloud_and_name_targets_alike(started: Monitoring) -> None:
    config = yaml.safe_load((started.state / "prometheus.yaml").read_text())
    assert set(config["global"].values()) == {f"{SCRAPE_SECONDS}s"}
    serving, *others = config["scrape_configs"]
    labels = {rule["target_label"] for rule in serving["relabel_configs"] if "target_label" in rule}
    assert labels == {"namespace", "service", "pod", "container", "job", "endpoint"}
    assert all(each["honor_labels"] for each in others)


def test_pods_of_a_cluster_of_ones_own_are_watched_by_its_own_prometheus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = SimpleNamespace(running=True, context="kind-mine")
    monkeypatch.setattr(UserCluster, "load", lambda _: theirs)
    with pytest.raises(ProcessError, match="loraserve dashboard --context kind-mine"):
        LocalStack(tmp_path).monitor()


def test_there_is_nothing_to_watch_before_up(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="make up"):
        LocalStack(tmp_path).monitor()
